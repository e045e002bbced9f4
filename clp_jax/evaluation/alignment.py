"""Evaluated runs: read, checked to be comparable, and matched in their weightings."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from clp_jax.evaluation import result
from clp_jax.evaluation.result import SweepResult

PROGRESS_STEPS = 6  # evaluated steps of a run that are read, at most
_WEIGHT_TOLERANCE = 1e-5  # float32 and float64 of one weighting
_RANGE_TOLERANCE = 1e-3  # of a range's width; it is told by float32 rewards


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """A run and what its evaluation measured.

    Attributes:
      label: names the method.
      source: the prompts.npz that was read.
      result: of the step that is compared.
      steps: evaluated training step -> result, where there is more than one; else empty.
    """

    label: str
    source: pathlib.Path
    result: SweepResult
    steps: Mapping[int, SweepResult] = dataclasses.field(default_factory=dict)


def read(argument: str) -> EvaluatedRun:
    """Reads a run.

    Args:
      argument: `path` or `label=path`; the path is a MODEL_DIR, the folder of an evaluation or its
        prompts.npz. Without a label, it is the folder's name, and MODEL_DIR/STEP for an evaluation
        inside a MODEL_DIR.

    Raises:
      ValueError: no evaluation there; or the label is empty.
    """
    label, equals, path = argument.partition("=")
    if not equals or pathlib.Path(argument).exists():  # a folder may have '=' in its name
        label, path = "", argument
    elif not label.strip() or not path:
        raise ValueError(f"run {argument!r}: expected PATH or LABEL=PATH")
    file = result.find(path)
    steps = result.evaluations(pathlib.Path(path))
    label = label.strip() or _folder_name(file, path)
    if len(steps) < 2 or file not in steps.values():
        return EvaluatedRun(label, file, result.load(file))
    kept = np.linspace(0, len(steps) - 1, min(len(steps), PROGRESS_STEPS)).round().astype(int)
    loaded = {step: result.load(steps[step]) for step in np.array(list(steps))[kept].tolist()}
    return EvaluatedRun(label, file, loaded[max(loaded)], loaded)


def _folder_name(file: pathlib.Path, path: str) -> str:
    folder = file.resolve().parent
    if folder.parent.name != "evaluation":
        return folder.name
    model_dir = folder.parent.parent
    whole = pathlib.Path(path).resolve() == model_dir
    return model_dir.name if whole else f"{model_dir.name}/{folder.name}"


def align(runs: Sequence[EvaluatedRun]) -> tuple[list[EvaluatedRun], list[str]]:
    """The runs at the weightings that all of them have, in one order.

    Args:
      runs: that `check` let pass.

    Returns:
      (the runs with matched rows, in their earlier steps too; lines that say what was left out).

    Raises:
      ValueError: no weighting in common.
    """
    weightings, notes = common_weightings(runs)
    aligned = []
    for run in runs:
        steps = {}
        for step, earlier in run.steps.items():
            found = rows(earlier, weightings) if earlier.names == run.result.names else -1
            problem = difference(run.result, earlier)
            if np.any(found == -1) and not problem:
                problem = "it lacks some of the weightings that are compared"
            if problem:
                notes.append(f"step {step} of {run.label} is left out of the progress: {problem}")
            else:
                steps[step] = earlier.part(np.asarray(found))
        part = run.result.part(rows(run.result, weightings))
        aligned.append(dataclasses.replace(run, result=part, steps=steps))
    return aligned, notes


def common_weightings(runs: Sequence[EvaluatedRun]) -> tuple[np.ndarray, list[str]]:
    """The weightings (α, w) that every run has.

    Returns:
      ([n, 1 + m], in order of α with one reward, of w with two, else as the first run has them;
      lines that say which runs have more).

    Raises:
      ValueError: there are none; says what each run has.
    """
    first = _weightings(runs[0].result)
    distinct = first[np.unique(rows(runs[0].result, first))]  # each weighting once
    shared = np.all([rows(run.result, distinct) >= 0 for run in runs], axis=0)
    weightings = distinct[shared]
    if not len(weightings):
        own = "; ".join(f"{run.label} has {_listed(_weightings(run.result))}" for run in runs)
        raise ValueError(f"the runs have no weighting (α, w) in common: {own}")
    match len(runs[0].result.names):
        case 1:
            weightings = weightings[np.argsort(weightings[:, 0], kind="stable")]
        case 2:
            weightings = weightings[np.argsort(-weightings[:, 1], kind="stable")]
    notes = [
        f"{run.label} has {len(run.result.kl_weights)} weightings; "
        f"the {len(weightings)} that all runs have are compared"
        for run in runs
        if len(run.result.kl_weights) > len(weightings)
    ]
    return weightings, notes


def _weightings(swept: SweepResult) -> np.ndarray:
    return np.column_stack([swept.kl_weights, swept.reward_weights]).astype(float)


def rows(swept: SweepResult, weightings: np.ndarray) -> np.ndarray:
    """The row of each weighting, [k]; −1 where there is none."""
    distances = np.abs(weightings[:, None] - _weightings(swept)[None]).max(axis=-1)
    nearest = distances.argmin(axis=1)  # the first of equal ones
    return np.where(distances.min(axis=1) <= _WEIGHT_TOLERANCE, nearest, -1)


def _listed(weightings: np.ndarray, at_most: int = 4) -> str:
    texts = [f"({a:g}, ({', '.join(f'{x:g}' for x in w)}))" for a, *w in weightings[:at_most]]
    more = f" and {len(weightings) - at_most} more" if len(weightings) > at_most else ""
    return ", ".join(texts) + more


def check(runs: Sequence[EvaluatedRun]) -> None:
    """Raises ValueError unless the runs can be compared."""
    sources: dict[str, pathlib.Path] = {}
    for run in runs:
        if run.label in sources:
            raise ValueError(
                f"two runs are called {run.label!r} ({sources[run.label]} and {run.source}): "
                "name them with LABEL=PATH"
            )
        sources[run.label] = run.source
        if not np.isfinite(run.result.prompt_values).all():
            raise ValueError(f"{run.label} ({run.source}) has values that are not finite")
        problem = difference(runs[0].result, run.result)
        if problem:
            raise ValueError(f"{runs[0].label} and {run.label} cannot be compared: {problem}")


def difference(one: SweepResult, other: SweepResult) -> str:
    """Why two results are not comparable; empty if they are."""
    if one.names != other.names:
        return f"their objectives are {', '.join(one.names)} and {', '.join(other.names)}"
    if one.num_prompts != other.num_prompts:
        return f"they were evaluated on {one.num_prompts} and {other.num_prompts} prompts"
    differ = np.flatnonzero(one.documents != other.documents)
    if len(differ):
        at = differ[0]
        return (
            f"{len(differ)} of their {one.num_prompts} prompts differ, the first of them prompt "
            f"{at}: {one.documents[at][:60]!r} and {other.documents[at][:60]!r}"
        )
    for i, name in enumerate(one.names):
        a, b = _range(one, i), _range(other, i)
        if a is None or b is None:
            continue
        if np.abs(a - b).max() > _RANGE_TOLERANCE * abs(a[1] - a[0]):
            texts = [f"({low:.4g}, {high:.4g})" for low, high in (a, b)]
            return f"the range of {name} that is mapped to (0, 1) is {texts[0]} and {texts[1]}"
    return ""


def _range(swept: SweepResult, objective: int) -> np.ndarray | None:
    """The raw scores that become 0 and 1, [2], told by the scores; None if they do not tell."""
    raw = swept.prompt_raw[..., objective].astype(float).ravel()
    normalised = swept.prompt_normalised[..., objective].astype(float).ravel()
    if np.ptp(normalised) < 1e-2:
        return None
    slope, low = np.polyfit(normalised, raw, 1)
    if np.abs(low + slope * normalised - raw).max() > _RANGE_TOLERANCE * abs(slope):
        return None  # not affine
    return np.array([low, low + slope])
