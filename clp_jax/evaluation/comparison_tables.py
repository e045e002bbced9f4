"""A comparison as tables to read, and as text."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from clp_jax.evaluation import comparison as comparison_lib
from clp_jax.evaluation.comparison import Comparison, Front
from clp_jax.evaluation.pareto import Estimate


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as they are shown; every row has the columns of the first."""

    title: str
    rows: Sequence[Mapping[str, str]]


def numbers(values: Sequence[float] | np.ndarray) -> str:
    """'0.5, 0.5'."""
    return ", ".join(f"{value:.3g}" for value in values)


def weighting(front: Front, row: int) -> str:
    """How one of a front's weightings is written: w, or α where that is what varies."""
    part = front.any_part
    if front.kl_weight is None:
        return f"α = {part.kl_weights[row]:.3g}"
    return f"({numbers(part.reward_weights[row])})"


def front_title(front: Front) -> str:
    """'α = 0.01', or nothing where α varies along the front."""
    return "" if front.kl_weight is None else f"α = {front.kl_weight:.3g}"


def summary(comparison: Comparison) -> list[str]:
    """What the numbers mean, one line each."""
    names = comparison.fronts[0].objectives
    n = sum(len(front.weights) for front in comparison.fronts)
    lines = [
        f"Objectives: {', '.join(names)}. {comparison.num_prompts} prompts, {n} weightings.",
        f"Reference point of every hypervolume: ({numbers(comparison.reference_point)}) for "
        f"({', '.join(names)}).",
        f"[low, high]: 95 % bootstrap interval over the prompts, {comparison.resamples} resamples. "
        "It does not hold the spread over training seeds.",
        f"Baseline: {comparison.baseline}.",
    ]
    for run in comparison.runs:
        lines.append(f"{run.label}: {run.source}")
        if run.result.truncated_prompts:
            lines.append(f"{run.label}: {run.result.truncated_prompts} prompts were truncated")
    return [*lines, *comparison.notes]


def tables(comparison: Comparison) -> list[Table]:
    """Of each front: its metrics, the comparison with the baseline, the weightings; progress."""
    found = []
    for front in comparison.fronts:
        where = f" at {front_title(front)}" if front_title(front) else ""
        found.append(Table(f"Fronts{where}", _metric_rows(front)))
        if comparison.others:
            title = f"Against {comparison.baseline}{where}"
            found.append(Table(title, _against_rows(comparison, front)))
        found.append(Table(f"Weightings{where}", _weighting_rows(comparison, front)))
    progress = list(_progress_rows(comparison))
    return [*found, *([Table("Progress over training steps", progress)] if progress else [])]


def text(comparison: Comparison) -> str:
    """metrics.txt: the summary and all tables, columns aligned."""
    blocks = ["\n".join(summary(comparison))]
    for table in tables(comparison):
        lines = [list(table.rows[0]), *([*row.values()] for row in table.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        blocks.append("\n".join([table.title, "-" * len(table.title), *aligned]))
    return "\n\n".join(blocks) + "\n"


def _cell(value: float) -> str:
    return _three_digits(value) if math.isfinite(value) else "n/a"


def _estimate_cell(estimate: Estimate) -> str:
    if not math.isfinite(estimate.value):
        return "n/a"
    value, low, high = map(_three_digits, dataclasses.astuple(estimate))
    return f"{value} [{low}, {high}]"


def _three_digits(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # not -0.000


def _metric_rows(front: Front) -> list[dict[str, str]]:
    """One row a metric, one column a run."""
    columns = {}
    point, n = numbers(front.reference_point), len(front.weights)
    for label, metrics in front.metrics.items():
        estimates = {
            f"hypervolume, reference ({point})": metrics.hypervolume,
            "extent": metrics.extent,
            **{
                f"{metric} of {name}": estimate
                for metric, each in (
                    ("range", metrics.ranges),
                    ("Kendall tau", metrics.controllability),
                )
                for name, estimate in zip(front.objectives, each, strict=True)
            },
            "evenness (beside extent)": metrics.evenness,
            "self-regret": metrics.self_regret,
        }
        columns[label] = {name: _estimate_cell(each) for name, each in estimates.items()}
        columns[label][f"points not above ({point})"] = f"{front.not_above[label]} of {n}"
    return _by_metric(columns)


def _against_rows(comparison: Comparison, front: Front) -> list[dict[str, str]]:
    """One row a metric, one column a run other than the baseline."""
    columns = {}
    for label, dominance in front.dominance.items():
        ours, theirs = front.igd_plus[label]
        columns[label] = {
            "mean difference of V": _cell(dominance.mean),
            "least difference of V": _cell(dominance.least),
            "share of weightings with interval above 0": _cell(dominance.share_above),
            f"IGD+ to {comparison.baseline}'s front": _cell(ours),
            f"IGD+ of {comparison.baseline}'s front to it": _cell(theirs),
        }
    return _by_metric(columns)


def _by_metric(columns: Mapping[str, Mapping[str, str]]) -> list[dict[str, str]]:
    """Run -> metric -> cell, as rows."""
    metrics = next(iter(columns.values()))
    return [{"metric": m} | {run: cells[m] for run, cells in columns.items()} for m in metrics]


def _weighting_rows(comparison: Comparison, front: Front) -> list[dict[str, str]]:
    """One row a weighting and run."""
    rows = []
    weights = "α" if front.kl_weight is None else f"w ({', '.join(comparison.names)})"
    for i in range(len(front.weights)):
        for label, part in front.parts.items():
            row = {weights: weighting(front, i), "run": label}
            row |= {f"R {n}": _cell(x) for n, x in zip(part.names, part.normalised[i], strict=True)}
            row["KL"] = _cell(part.kl[i])
            if len(part.names) > 1:
                row |= {f"V {n}": _cell(x) for n, x in zip(part.names, part.values[i], strict=True)}
            row["V"] = _cell(front.scalarized[label].value[i])
            if comparison.others:
                compared = label in front.dominance
                difference = _estimate_cell(front.difference(label, i)) if compared else ""
                row[f"V − V of {comparison.baseline}"] = difference
            row |= {"length": f"{part.length[i]:.1f}", "repetition": _cell(part.repetition[i])}
            rows.append(row)
    return rows


def _progress_rows(comparison: Comparison) -> Iterator[dict[str, str]]:
    """One row a run, step and front."""
    objectives, point = comparison.fronts[0].objectives, numbers(comparison.reference_point)
    for at in comparison_lib.progress(comparison):
        yield {
            "run": at.label,
            "step": str(at.step),
            "α": "varies" if at.kl_weight is None else f"{at.kl_weight:.3g}",
            f"hypervolume, reference ({point})": _cell(at.hypervolume),
            **{f"range of {n}": _cell(x) for n, x in zip(objectives, at.ranges, strict=True)},
            "length": f"{at.length:.1f}",
        }
