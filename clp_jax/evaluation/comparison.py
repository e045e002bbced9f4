"""Several runs at the same weightings and on the same prompts: their fronts in numbers."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from clp_jax.evaluation import alignment, pareto
from clp_jax.evaluation.alignment import EvaluatedRun
from clp_jax.evaluation.result import SweepResult
from clp_jax.reporting.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Interval:
    """A statistic at each of n weightings, with its bootstrap interval over prompts; each [n]."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, row: int) -> pareto.Estimate:
        """At one of the weightings."""
        return pareto.Estimate(self.value[row], self.low[row], self.high[row])


@dataclasses.dataclass(frozen=True)
class Front:
    """What the runs reached at the n weightings of one front, with k objectives.

    With several rewards a front has one α, and its objectives are the m KL-regularised rewards.
    With one reward α varies, and the objectives are the reward and −KL, weighted with (1 − α, α).
    The weighted sum is V_{α,w} (Eq. 1) in either case.

    Attributes:
      kl_weight: α; None where it varies.
      objectives: k names.
      weights: of the objectives, [n, k].
      parts: label -> the run at these weightings.
      reference_point: of the hypervolumes, [k].
      not_above: label -> how many of the n points are not above the reference point in every
        objective; they add nothing to the hypervolume.
      metrics: label -> metrics of the run's front.
      scalarized: label -> V_{α,w}.
      dominance: label -> paired differences of V_{α,w} to the baseline's; without the baseline.
      igd_plus: label -> mutual IGD+: of the run's front measured against the baseline's, and of
        the baseline's measured against the run's; without the baseline.
      shortfall: label -> 1 − V / V of the baseline (Fig. 4), NaN where the baseline's V is not
        above 0 with its whole interval; without the baseline.
    """

    kl_weight: float | None
    objectives: tuple[str, ...]
    weights: np.ndarray
    parts: Mapping[str, SweepResult]
    reference_point: np.ndarray
    not_above: Mapping[str, int]
    metrics: Mapping[str, pareto.FrontMetrics]
    scalarized: Mapping[str, Interval]
    dominance: Mapping[str, pareto.PairedDominance]
    igd_plus: Mapping[str, tuple[float, float]]
    shortfall: Mapping[str, Interval]

    @property
    def any_part(self) -> SweepResult:
        """Any run's part, for what all of them have in common."""
        return next(iter(self.parts.values()))

    def difference(self, label: str, row: int) -> pareto.Estimate:
        """Of V_{α,w} to the baseline's, at one of the weightings."""
        found = self.dominance[label]
        return pareto.Estimate(found.differences[row], found.low[row], found.high[row])


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs at the weightings that all of them have.

    Attributes:
      runs: their results hold the common weightings only, in one order.
      baseline: label of the run that the others are compared with.
      fronts: one for each α; with a single reward, one in all.
      resamples: of the bootstrap over prompts.
      notes: what was left out, one line each.
    """

    runs: tuple[EvaluatedRun, ...]
    baseline: str
    fronts: tuple[Front, ...]
    resamples: int
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the m rewards."""
        return self.runs[0].result.names

    @property
    def num_prompts(self) -> int:
        """P."""
        return self.runs[0].result.num_prompts

    @property
    def reference_point(self) -> np.ndarray:
        """Of every hypervolume, [k]."""
        return self.fronts[0].reference_point

    @property
    def others(self) -> tuple[str, ...]:
        """The labels without the baseline's."""
        return tuple(run.label for run in self.runs if run.label != self.baseline)


@dataclasses.dataclass(frozen=True)
class Progress:
    """One front of a run at one training step.

    Attributes:
      label: the run's.
      step: of training.
      kl_weight: α; None where it varies.
      hypervolume: against the comparison's reference point.
      ranges: max − min of each of the k objectives over the weightings, [k].
      length: mean over prompts and weightings, in tokens.
    """

    label: str
    step: int
    kl_weight: float | None
    hypervolume: float
    ranges: np.ndarray
    length: float


def compare(
    runs: Sequence[EvaluatedRun],
    baseline: str | None = None,
    reference_point: Sequence[float] | None = None,
    resamples: int = 1000,
) -> Comparison:
    """Compares runs at the weightings that all of them have.

    Args:
      runs: of the same objectives, evaluated on the same prompts, with distinct labels.
      baseline: label; None for the first run.
      reference_point: of the hypervolumes, one number an objective of `Front`. None for 0, the low
        end of a reward's range, for each reward, and −(the largest mean KL, rounded up) for −KL.
      resamples: of the bootstrap over prompts, at least 1.

    Raises:
      ValueError: the runs cannot be compared; says in what they differ. An unknown baseline. A
        reference point that is not finite or of another length. No resamples.
    """
    alignment.check(runs)
    labels = [run.label for run in runs]
    if baseline is None:
        baseline = labels[0]
    if baseline not in labels:
        raise ValueError(unknown_name("baseline", baseline, labels))
    if resamples < 1:
        raise ValueError(f"{resamples} resamples; expected 1 or more")
    aligned, notes = alignment.align(runs)
    point = _reference_point(aligned, reference_point)
    fronts = tuple(
        _front({r.label: r.result.part(rows) for r in aligned}, baseline, point, resamples)
        for rows in aligned[0].result.front_rows()
    )
    return Comparison(tuple(aligned), baseline, fronts, resamples, tuple(notes))


def measured(part: SweepResult) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """What is maximised on a front.

    Returns:
      (names of the k objectives, their weights [n, k], their values on each prompt [n, P, k]), such
      that the weighted sum is V_{α,w}. With several rewards they are the KL-regularised rewards;
      with one, the reward and −KL, weighted with (1 − α, α).
    """
    if len(part.names) > 1:
        return part.names, part.reward_weights.astype(float), part.prompt_values
    rewards = part.prompt_normalised[..., 0].astype(float)
    weights = np.stack([1 - part.kl_weights, part.kl_weights], axis=-1).astype(float)
    return (part.names[0], "−KL"), weights, np.stack([rewards, -part.prompt_kl.astype(float)], -1)


def progress(comparison: Comparison) -> Iterator[Progress]:
    """Of each run that was evaluated at more than one step."""
    for run in comparison.runs:
        for step, swept in run.steps.items() if len(run.steps) > 1 else ():
            for front, rows in zip(comparison.fronts, swept.front_rows(), strict=True):
                values = measured(swept.part(rows))[2].mean(axis=1)
                yield Progress(
                    label=run.label,
                    step=step,
                    kl_weight=front.kl_weight,
                    hypervolume=pareto.hypervolume(values, front.reference_point),
                    ranges=np.ptp(values, axis=0),
                    length=float(swept.length[rows].mean()),
                )


def _reference_point(
    runs: Sequence[EvaluatedRun], reference_point: Sequence[float] | None
) -> np.ndarray:
    names = measured(runs[0].result)[0]
    if reference_point is None:
        if len(runs[0].result.names) > 1:
            return np.zeros(len(names))
        largest = max(float(run.result.kl.max()) for run in runs)
        return np.array([0.0, -max(1, math.ceil(largest))])
    if len(reference_point) != len(names):
        raise ValueError(
            f"reference point {list(reference_point)} has {len(reference_point)} numbers; "
            f"expected {len(names)}: for {', '.join(names)}"
        )
    if not np.all(np.isfinite(reference_point)):
        raise ValueError(f"reference point {list(reference_point)} is not finite")
    return np.asarray(reference_point, float)


def _front(
    parts: Mapping[str, SweepResult], baseline: str, reference_point: np.ndarray, resamples: int
) -> Front:
    objectives, weights, theirs = measured(parts[baseline])
    values = {label: measured(part)[2] for label, part in parts.items()}
    means = {label: v.mean(axis=1) for label, v in values.items()}
    scalarized = {k: pareto.scalarized(v.swapaxes(0, 1), weights).T for k, v in values.items()}
    resampled = {k: pareto.resampled_means(v, resamples) for k, v in scalarized.items()}
    intervals = {
        label: Interval(scalarized[label].mean(axis=1), *pareto.interval(statistics))
        for label, statistics in resampled.items()
    }
    others = [label for label in parts if label != baseline]
    return Front(
        kl_weight=None if len(parts[baseline].names) == 1 else float(parts[baseline].kl_weights[0]),
        objectives=objectives,
        weights=weights,
        parts=parts,
        reference_point=reference_point,
        not_above={
            label: int(np.any(mean <= reference_point, axis=1).sum())
            for label, mean in means.items()
        },
        metrics={
            label: pareto.front_metrics(weights, v, reference_point, resamples)
            for label, v in values.items()
        },
        scalarized=intervals,
        dominance={
            label: pareto.paired_dominance(values[label], theirs, weights, resamples)
            for label in others
        },
        igd_plus={label: pareto.mutual_igd_plus(means[label], means[baseline]) for label in others},
        shortfall={
            label: _shortfall(intervals, resampled, label, baseline) for label in others
        },
    )  # fmt: skip


def _shortfall(
    intervals: Mapping[str, Interval], resampled: Mapping[str, np.ndarray], ours: str, theirs: str
) -> Interval:
    """1 − V / V of the baseline, where the latter is surely positive."""
    defined = intervals[theirs].low > 0
    # Prompts are resampled alike for both runs, so the interval is that of the paired ratio.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = intervals[ours].value / intervals[theirs].value
        low, high = pareto.interval(1 - resampled[ours] / resampled[theirs])
    return Interval(*(np.where(defined, x, np.nan) for x in (1 - ratio, low, high)))
