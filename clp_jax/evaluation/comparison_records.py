"""A comparison for programs: every number with what it is a number of, as CSV and JSON."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from clp_jax.evaluation.comparison import Comparison, Front, progress
from clp_jax.evaluation.pareto import Estimate

CSV_COLUMNS = (
    "front_alpha", "run", "step", "baseline", "metric", "objective", "alpha", "w",
    "value", "low", "high", "reference_point",
)  # fmt: skip


def csv_text(comparison: Comparison) -> str:
    """metrics.csv: one line a number, with the columns `CSV_COLUMNS`."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in records(comparison):
        vectors = {k: v for k, v in record.items() if isinstance(v, list)}
        shown = {k: " ".join(f"{x:g}" for x in vector) for k, vector in vectors.items()}
        writer.writerow(record | shown)
    return file.getvalue()


def json_text(comparison: Comparison) -> str:
    """metrics.json: what was compared, and the lines of metrics.csv; null for what is undefined."""
    content = {
        "names": list(comparison.names),
        "objectives": list(comparison.fronts[0].objectives),
        "reference_point": comparison.reference_point.tolist(),
        "baseline": comparison.baseline,
        "num_prompts": comparison.num_prompts,
        "resamples": comparison.resamples,
        "runs": {run.label: str(run.source) for run in comparison.runs},
        "notes": list(comparison.notes),
        "metrics": list(records(comparison)),
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def records(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Every number of the comparison, with what it is a number of."""
    for front in comparison.fronts:
        for label in front.parts:
            for record in (*_front_records(front, label), *_weighting_records(front, label)):
                own = {"front_alpha": front.kl_weight, "run": label}
                compared = {"baseline": comparison.baseline} if record.pop("paired", False) else {}
                yield {**own, **compared, **{k: _plain(v) for k, v in record.items()}}
    yield from _progress_records(comparison)


def _progress_records(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Of each run at each evaluated step, the last one included."""
    point = comparison.reference_point.tolist()
    for at in progress(comparison):
        own = {"front_alpha": at.kl_weight, "run": at.label, "step": at.step}
        yield own | {
            "metric": "progress_hypervolume", "value": at.hypervolume, "reference_point": point
        }  # fmt: skip
        for name, spread in zip(comparison.fronts[0].objectives, at.ranges.tolist(), strict=True):
            yield own | {"metric": "progress_range", "objective": name, "value": spread}
        yield own | {"metric": "progress_length", "value": at.length}


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def _front_records(front: Front, label: str) -> Iterator[dict[str, Any]]:
    """Of a run's whole front."""
    metrics = front.metrics[label]
    point = front.reference_point.tolist()
    yield _estimate("hypervolume", metrics.hypervolume) | {"reference_point": point}
    yield {"metric": "points_not_above", "value": front.not_above[label], "reference_point": point}
    for metric in ("extent", "evenness", "self_regret"):
        yield _estimate(metric, getattr(metrics, metric))
    for metric, each in (("range", metrics.ranges), ("kendall_tau", metrics.controllability)):
        for name, estimate in zip(front.objectives, each, strict=True):
            yield _estimate(metric, estimate) | {"objective": name}
    if label in front.dominance:
        dominance, (ours, theirs) = front.dominance[label], front.igd_plus[label]
        for metric, value in (
            ("mean_difference", dominance.mean),
            ("least_difference", dominance.least),
            ("share_above", dominance.share_above),
            ("igd_plus", ours),
            ("igd_plus_of_baseline", theirs),
        ):
            yield {"metric": metric, "value": value, "paired": True}


def _weighting_records(front: Front, label: str) -> Iterator[dict[str, Any]]:
    """Of a run at each weighting."""
    part, value = front.parts[label], front.scalarized[label]
    for i in range(len(front.weights)):
        at = {"alpha": float(part.kl_weights[i]), "w": part.reward_weights[i].tolist()}
        yield _estimate("V", value.at(i)) | at
        if label in front.dominance:
            yield _estimate("difference", front.difference(label, i)) | at | {"paired": True}
            yield _estimate("shortfall", front.shortfall[label].at(i)) | at | {"paired": True}
        for metric, columns in (("reward", part.normalised), ("V_objective", part.values)):
            for name, mean in zip(part.names, columns[i], strict=True):
                yield {"metric": metric, "objective": name, "value": mean} | at
        for metric in ("kl", "length", "repetition"):
            yield {"metric": metric, "value": getattr(part, metric)[i]} | at
        for name, mean in zip(part.other_names, part.other_normalised[i], strict=True):
            yield {"metric": "other_reward", "objective": name, "value": mean} | at


def _estimate(metric: str, estimate: Estimate) -> dict[str, Any]:
    return {"metric": metric, **dataclasses.asdict(estimate)}
