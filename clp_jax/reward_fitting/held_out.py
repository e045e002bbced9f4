"""What a reward model is worth: metrics of its scores on a held-out split."""

import decimal
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

CALIBRATION_BINS = 15
_HISTOGRAM_BINS = 30
_RANGE_PERCENTILES = (5.0, 95.0)


def nli_report(
    label_log_probs: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    entailment: str,
) -> dict[str, Any]:
    """The report on a model of natural language inference.

    Args:
      label_log_probs: of each class, [N, C]; need not be normalised over the classes.
      scores: the reward, [N].
      labels: index into `class_names`, [N] int.
      class_names: C names.
      entailment: which of them is the reward.

    Returns:
      JSON: "examples"; "accuracy" over the classes; "auc" of the scores, `entailment` against the
      rest; "expected_calibration_error" of the predicted class's probability among the classes;
      "confusion" {label: {predicted: count}}; and what `scores_report` returns.

    Raises:
      ValueError: a score is not finite.
    """
    predicted = np.argmax(label_log_probs, axis=1)
    confidence = np.max(scipy.special.softmax(label_log_probs.astype(float), axis=1), axis=1)
    entailed = labels == list(class_names).index(entailment)
    counts = np.zeros((len(class_names), len(class_names)), int)
    np.add.at(counts, (labels, predicted), 1)
    return {
        "examples": len(labels),
        "accuracy": float(np.mean(predicted == labels)),
        "auc": auc(scores[entailed], scores[~entailed]),
        "expected_calibration_error": expected_calibration_error(confidence, predicted == labels),
        "confusion": {
            name: dict(zip(class_names, row.tolist(), strict=True))
            for name, row in zip(class_names, counts, strict=True)
        },
        **scores_report({entailment: scores[entailed], "other": scores[~entailed]}, most=0.0),
    }


def preference_report(scores: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """The report on a preference model.

    Args:
      scores: of the better and the worse summary, [N, 2].
      lengths: of the two in tokens, [N, 2].

    Returns:
      JSON: "examples"; "accuracy", the share of pairs whose better summary scores more, ties
      counting half; "auc" of all scores, better against worse; "expected_calibration_error" of
      the probability sigmoid(|difference|) that the higher score is the better's;
      "longer_is_better", the accuracy of preferring the longer summary, and "length_baseline", that
      of the better of the two rules on length; and what `scores_report` returns.

    Raises:
      ValueError: a score is not finite.
    """
    better, worse = scores.astype(float).T
    right = _greater(better, worse)
    longer = float(np.mean(_greater(*lengths.T)))
    confidence = scipy.special.expit(np.abs(better - worse))
    return {
        "examples": len(scores),
        "accuracy": float(np.mean(right)),
        "auc": auc(better, worse),
        "expected_calibration_error": expected_calibration_error(confidence, right),
        "longer_is_better": longer,
        "length_baseline": max(longer, 1 - longer),
        **scores_report({"better": better, "worse": worse}),
    }


def _greater(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """1 where left > right, 1/2 where they are equal, 0 elsewhere."""
    return (left > right) + 0.5 * (left == right)


def auc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """The probability that a random positive score exceeds a random negative one, ties half.

    The area under the ROC curve, from the Mann-Whitney U statistic.

    Args:
      positive: [P].
      negative: [Q].

    Returns:
      In [0, 1]; None where there are none of one kind.
    """
    if not len(positive) or not len(negative):
        return None
    statistic = scipy.stats.mannwhitneyu(positive, negative, method="asymptotic").statistic
    return float(statistic) / (len(positive) * len(negative))


def expected_calibration_error(
    confidence: np.ndarray, right: np.ndarray, bins: int = CALIBRATION_BINS
) -> float:
    """The mean distance of confidence from accuracy over bins of equal width (Guo et al. 2017).

    Args:
      confidence: the probability that a prediction is right, as the model has it; [N], in [0, 1].
      right: whether it is, [N]; 1/2 for a tie.
      bins: how many divide [0, 1]; bin b is (b / bins, (b + 1) / bins], the first with 0.

    Returns:
      Σ_b (n_b / N) · |mean confidence - mean right| of bin b; in [0, 1].
    """
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(index, confidence, bins) - np.bincount(index, right.astype(float), bins)
    return float(np.sum(np.abs(gap)) / len(confidence))


def scores_report(scores: Mapping[str, np.ndarray], most: float = math.inf) -> dict[str, Any]:
    """How scores are distributed.

    Args:
      scores: group -> scores.
      most: the greatest that a score can be.

    Returns:
      JSON: "mean" and "standard_deviation" of all scores; "range", see `proposed_range`; and
      "histogram": "edges" [bins + 1] and "counts" {group: [bins]}.

    Raises:
      ValueError: a score is not finite.
    """
    together = np.concatenate(list(scores.values()))
    low, high = proposed_range(together, most)
    edges = np.histogram_bin_edges(together, _HISTOGRAM_BINS)
    counts = {name: np.histogram(group, edges)[0].tolist() for name, group in scores.items()}
    return {
        "mean": float(np.mean(together, dtype=float)),
        "standard_deviation": float(np.std(together, dtype=float)),
        "range": [low, high],
        "histogram": {"edges": edges.tolist(), "counts": counts},
    }


def proposed_range(scores: np.ndarray, most: float = math.inf) -> tuple[float, float]:
    """The raw scores to map to 0 and 1: the 5th and the 95th percentile, rounded outward.

    Both are rounded to the second significant digit of the one that is larger in size.

    Args:
      scores: [N].
      most: the greatest that a score can be, hence the upper end too.

    Returns:
      (low, high), low < high.

    Raises:
      ValueError: a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{np.sum(~np.isfinite(scores))} of {len(scores)} held-out scores are not finite: "
            "training has diverged; try a lower learning rate"
        )
    ends = np.percentile(np.asarray(scores, float), _RANGE_PERCENTILES)
    size = float(np.max(np.abs(ends)))
    unit = decimal.Decimal(1).scaleb(math.floor(math.log10(size)) - 1 if size else 0)
    low = decimal.Decimal(str(ends[0])).quantize(unit, decimal.ROUND_FLOOR)
    high = decimal.Decimal(str(ends[1])).quantize(unit, decimal.ROUND_CEILING)
    if high > most:
        high = decimal.Decimal(most)
    if low >= high:  # nearly all scores are the same
        low = high - unit
    return float(low) + 0.0, float(high) + 0.0  # + 0.0 makes 0 of -0


def plot(report: Mapping[str, Any], path: pathlib.Path, title: str) -> None:
    """Draws the histogram of the scores, and where the proposed range ends.

    Args:
      report: see `nli_report`, `preference_report`.
      path: a file whose ending says the format.
      title: of the plot.
    """
    from matplotlib.figure import Figure

    figure = Figure((6, 4.5), layout="constrained")  # not of pyplot, which wants a display
    axes = figure.subplots()
    histogram = report["histogram"]
    for name, counts in histogram["counts"].items():
        axes.stairs(counts, histogram["edges"], fill=True, alpha=0.5, label=name)
    for end in report["range"]:
        axes.axvline(end, color="black", linestyle="--", linewidth=1)
    axes.set_title(title, fontsize="small")
    axes.set(xlabel="score (dashed: the proposed range)", ylabel="held-out examples")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
