"""What a sweep measured: one value for every prompt at every weighting, in memory and in a file."""

import dataclasses
import functools
import json
import pathlib
import zipfile
from typing import Any

import numpy as np

PROMPTS = "prompts.npz"

_TEXTS = ("documents", "references", "completions")
_NAMES = ("names", "other_names")


def _mean(prompt_values: str) -> "functools.cached_property[np.ndarray]":
    """The means over the prompts of one of the arrays of a `SweepResult`, [n, ...]."""
    return functools.cached_property(
        lambda result: getattr(result, prompt_values).mean(axis=1, dtype=float)
    )


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """A policy at n weightings over P prompts, with m objectives.

    `raw`, `normalised`, `kl`, `length`, `repetition`, `other_raw` and `other_normalised` are the
    means over the prompts, [n, ...]; `prompt_...` holds what they are means of.

    Attributes:
      names: of the m objectives.
      kl_weights: α, [n].
      reward_weights: w, [n, m].
      prompt_raw: raw rewards, [n, P, m], in each reward's units.
      prompt_normalised: normalised rewards, [n, P, m].
      prompt_kl: sampled KL to the reference, [n, P], in nats.
      prompt_length: completion length, [n, P], in tokens.
      prompt_repetition: share of a completion's 3-grams that it had said before, [n, P], in [0, 1).
      other_names: of k rewards that the policy did not learn (EVAL_REWARDS).
      prompt_other_raw: theirs, [n, P, k], in their own units.
      prompt_other_normalised: likewise, normalised.
      documents: the prompts, P strings.
      references: the reference summaries, P strings; empty where the data have none.
      completions: [n, P] strings.
      truncated_prompts: how many prompts were longer than the encoder's length.
    """

    names: tuple[str, ...]
    kl_weights: np.ndarray
    reward_weights: np.ndarray
    prompt_raw: np.ndarray
    prompt_normalised: np.ndarray
    prompt_kl: np.ndarray
    prompt_length: np.ndarray
    prompt_repetition: np.ndarray
    other_names: tuple[str, ...]
    prompt_other_raw: np.ndarray
    prompt_other_normalised: np.ndarray
    documents: np.ndarray
    references: np.ndarray
    completions: np.ndarray
    truncated_prompts: int

    @property
    def num_prompts(self) -> int:
        """P."""
        return len(self.documents)

    raw = _mean("prompt_raw")  # [n, m]
    normalised = _mean("prompt_normalised")  # [n, m]
    kl = _mean("prompt_kl")  # [n], in nats
    length = _mean("prompt_length")  # [n], in tokens
    repetition = _mean("prompt_repetition")  # [n]
    other_raw = _mean("prompt_other_raw")  # [n, k]
    other_normalised = _mean("prompt_other_normalised")  # [n, k]

    @functools.cached_property
    def values(self) -> np.ndarray:
        """KL-regularised rewards v_i = (1 − α) R_i − α KL (Sec. 4.1.2), [n, m]."""
        return self.prompt_values.mean(axis=1)

    @functools.cached_property
    def prompt_values(self) -> np.ndarray:
        """KL-regularised rewards of each prompt, [n, P, m] float64; the sampled KL stands in."""
        alpha = self.kl_weights[:, None, None]
        kl = self.prompt_kl.astype(float)[..., None]
        return (1 - alpha) * self.prompt_normalised.astype(float) - alpha * kl

    def fronts(self) -> list["SweepResult"]:
        """One part for each α, in which only w varies; with one reward, everything, as α varies."""
        return [self.part(rows) for rows in self.front_rows()]

    def front_rows(self) -> list[np.ndarray]:
        """The rows of each of `fronts`."""
        if len(self.names) == 1:
            return [np.arange(len(self.kl_weights))]
        distinct = dict.fromkeys(self.kl_weights.tolist())
        return [np.flatnonzero(self.kl_weights == kl_weight) for kl_weight in distinct]

    def part(self, rows: np.ndarray) -> "SweepResult":
        """The weightings of some rows alone."""
        whole = (*_NAMES, "documents", "references", "truncated_prompts")
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return SweepResult(**{k: v if k in whole else v[rows] for k, v in fields.items()})

    @property
    def ranges(self) -> dict[str, float]:
        """max − min of each objective's value over the weightings; meant for one of `fronts`."""
        spread = np.ptp(self.values, axis=0)
        return dict(zip(self.names, spread.tolist(), strict=True))

    @property
    def controllability(self) -> dict[str, float]:
        """Kendall's τ-b between w_i and v_i over the weightings; 1 is perfectly steerable.

        0 where it is not defined, because w_i or v_i is constant.
        """
        from clp_jax.evaluation import pareto  # results are written where moocore is not installed

        taus = pareto.controllability(self.reward_weights, self.values)
        return dict(zip(self.names, taus.tolist(), strict=True))

    def rows(self) -> list[dict[str, Any]]:
        """One row a weighting, for a table."""
        columns: dict[str, np.ndarray] = {
            **{f"w {name}": w for name, w in zip(self.names, self.reward_weights.T, strict=True)},
            "α": self.kl_weights,
            **dict(zip(self.names, self.normalised.T, strict=True)),
            **{f"{name} (raw)": r for name, r in zip(self.names, self.raw.T, strict=True)},
            "KL": self.kl,
            **{f"V {name}": v for name, v in zip(self.names, self.values.T, strict=True)},
            "length": self.length,
            "repetition": self.repetition,
        }
        others = zip(self.other_names, self.other_normalised.T, self.other_raw.T, strict=True)
        for name, normalised, raw in others:
            columns |= {f"other {name}": normalised, f"other {name} (raw)": raw}
        return [
            {name: float(column[i]) for name, column in columns.items()}
            for i in range(len(self.kl_weights))
        ]

    def scalars(self) -> dict[str, float]:
        """What a training run logs of an evaluation."""
        return {
            **{f"eval/range/{name}": value for name, value in self.ranges.items()},
            **{f"eval/kendall_tau/{name}": value for name, value in self.controllability.items()},
            "eval/kl": float(self.kl.mean()),
            "eval/length": float(self.length.mean()),
            "eval/repetition": float(self.repetition.mean()),
            **{
                f"eval/other/{name}": float(values.mean())
                for name, values in zip(self.other_names, self.other_normalised.T, strict=True)
            },
        }

    def to_json(self) -> dict[str, Any]:
        """The means, as plain lists, with one completion at each weighting."""
        means = ("raw", "normalised", "kl", "length", "repetition", "other_raw", "other_normalised")
        arrays = ("kl_weights", "reward_weights", *means, "values")
        return {
            "names": self.names,
            "other_names": self.other_names,
            **{key: getattr(self, key).tolist() for key in arrays},
            "num_prompts": self.num_prompts,
            "truncated_prompts": self.truncated_prompts,
            "samples": self.completions[:, 0].tolist(),
            "fronts": [
                {
                    "kl_weight": float(front.kl_weights[0]),
                    "range": front.ranges,
                    "kendall_tau": front.controllability,
                }
                for front in self.fronts()
            ],
        }

    def save(self, path: pathlib.Path) -> None:
        """Writes everything to an .npz file, whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            fields: Any = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
            texts = {key: json.dumps(np.asarray(fields[key]).tolist()) for key in _TEXTS}
            np.savez_compressed(file, **fields | texts)
        partial.rename(path)


def load(path: pathlib.Path) -> SweepResult:
    """Reads what `SweepResult.save` wrote.

    Raises:
      ValueError: not such a file.
    """
    try:
        # NumPy leaves a file open that it opened itself and cannot read.
        with path.open("rb") as stream, np.load(stream) as file:
            fields = {key: file[key] for key in file.files}
        fields |= {key: np.array(json.loads(str(fields[key])), object) for key in _TEXTS}
        fields |= {key: tuple(fields[key].tolist()) for key in _NAMES}
        return SweepResult(**{**fields, "truncated_prompts": int(fields["truncated_prompts"])})
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a file of evaluated prompts: {error}") from error


def find(path: str) -> pathlib.Path:
    """The prompts.npz that a path means.

    Args:
      path: the file, the folder of an evaluation, or a MODEL_DIR, of which the newest step is taken
        that the run itself evaluated.

    Raises:
      ValueError: there is none.
    """
    given = pathlib.Path(path)
    if given.is_file():
        return given
    if (given / PROMPTS).is_file():
        return given / PROMPTS
    steps = evaluations(given)
    if not steps:
        raise ValueError(
            f"{path} has no evaluation: give a MODEL_DIR whose run has finished, or was evaluated "
            f"by clp_jax.evaluate, or a folder with a {PROMPTS}"
        )
    return steps[max(steps)]


def evaluations(model_dir: pathlib.Path) -> dict[int, pathlib.Path]:
    """Step -> prompts.npz of the evaluations that a run made itself, in order of steps."""
    found = pathlib.Path(model_dir, "evaluation").glob(f"*/{PROMPTS}")
    steps = {int(p.parent.name): p for p in found if p.parent.name.isdigit()}
    return dict(sorted(steps.items()))
