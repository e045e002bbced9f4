"""Metrics of a front and comparisons of two: does one policy dominate another, is it steerable?

The paper asks two things of a multi-objective policy (Sec. 2): Pareto-dominance, that it be better
at every weighting, and steerability, that the weighting move it. It judges both by eye; these are
numbers for them. `paired_dominance`, `hypervolume` and `mutual_igd_plus` measure the first;
`extent`, ranges, `controllability` and `evenness` the second; `self_regret` whether each weighting
gets what the front has for it. None of them alone says that a front is good: one that has collapsed
onto a point has no self-regret, and one whose points lie 1e-6 apart can be perfectly even.

All functions are pure, of numpy arrays, and share their arguments: `reward_weights` w [n, m] of one
α; `values` v [n, m], KL-regularised rewards (Sec. 4.1.2) in units of normalised reward, maximised;
`prompt_values` [n, P, m], of which `values` are the means over P prompts; R `resamples` and a
`seed` for the bootstrap over the prompts. Its intervals hold the policy and its completions fixed:
they say nothing of how another training seed would have done.

All raise ValueError for shapes that do not match and numbers that are not finite.
"""

import dataclasses
import itertools

import moocore
import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

_BLOCK = 2**22  # counts that the bootstrap holds at a time: 32 MB
_CORNER_TOLERANCE = 1e-6  # weights may have been stored as float32


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A statistic and its 95 % percentile interval; NaN where it is not defined.

    Noise widens a front, so the bootstrap distributions of hypervolume, extent, ranges and
    self-regret sit a little above the value, which may lie below the interval if P is small.
    """

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class PairedDominance:
    """V_w(ours) − V_w(theirs) at n weightings, in units of normalised reward.

    Attributes:
      differences: means over the prompts, [n].
      low: lower ends of their 95 % intervals, [n]; each covers its own weighting, not all jointly.
      high: upper ends, [n].
      mean: of the differences.
      least: the smallest difference.
      share_above: of the weightings, those whose interval lies above 0; range [0, 1].
    """

    differences: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: float
    least: float
    share_above: float


@dataclasses.dataclass(frozen=True)
class FrontMetrics:
    """The metrics of one front, each described at the function of its name.

    Attributes:
      evenness: NaN unless there are two objectives.
      controllability: of each of the m objectives.
      ranges: max − min of each of the m objectives over the weightings.
      reference_point: of the hypervolume, m numbers; without it a hypervolume means nothing.
    """

    hypervolume: Estimate
    extent: Estimate
    evenness: Estimate
    self_regret: Estimate
    controllability: tuple[Estimate, ...]
    ranges: tuple[Estimate, ...]
    reference_point: tuple[float, ...]


def resampled_means(prompt_values: ArrayLike, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Means over bootstrap samples of the prompts (Efron and Tibshirani 1993).

    Which prompts are drawn depends on P, `resamples` and `seed` alone, so that all weightings, and
    two policies measured on the same prompts, are resampled alike: differences are paired.

    Args:
      prompt_values: any numbers of each prompt, [n, P, ...].
      resamples: R, at least 1.
      seed: of the draws.

    Returns:
      [R, n, ...] float64. Weightings with equal values for every prompt keep equal means.
    """
    values = _finite("prompt_values", prompt_values)
    if values.ndim < 2:
        raise ValueError(f"prompt_values must be [n, P, ...]; its shape is {values.shape}")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}; at least 1 is needed")
    num_prompts = values.shape[1]
    distinct, places = _distinct(np.moveaxis(values, 1, -1).reshape(-1, num_prompts))
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // num_prompts)
    sums = [
        _draw_counts(rng, min(rows, resamples - start), num_prompts) @ distinct.T
        for start in range(0, resamples, rows)
    ]
    means = np.concatenate(sums)[:, places] / num_prompts
    return means.reshape(resamples, values.shape[0], *values.shape[2:])


def interval(statistics: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of bootstrapped statistics (Efron and Tibshirani 1993).

    Args:
      statistics: [R, ...]; where one of the R is NaN, so are both ends.
      level: coverage, in (0, 1).

    Returns:
      Lower and upper ends, [...] each.
    """
    drawn = np.asarray(statistics, float)
    if not drawn.size:
        raise ValueError(f"statistics has shape {drawn.shape}; an interval needs at least one")
    if not 0 < level < 1:
        raise ValueError(f"level={level}; the coverage of an interval lies in (0, 1)")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def scalarized(values: ArrayLike, reward_weights: ArrayLike) -> np.ndarray:
    """V_w = w · v, what the policy maximises at w (Eq. 2): [..., n, m] and [n, m] -> [..., n]."""
    front, weights = _finite("values", values), _shaped("reward_weights", reward_weights, "n, m")
    _check_match("values", front.shape[-2:], weights)
    return (front * weights).sum(axis=-1)


def paired_dominance(
    ours: ArrayLike,
    theirs: ArrayLike,
    reward_weights: ArrayLike,
    resamples: int = 1000,
    seed: int = 0,
) -> PairedDominance:
    """Compares two policies weighting by weighting (Sec. 2), at the same w and on the same prompts.

    Args:
      ours: prompt_values, [n, P, m].
      theirs: of the other policy, [n, P, m].
    """
    a, b = _shaped("ours", ours, "n, P, m"), _shaped("theirs", theirs, "n, P, m")
    if a.shape != b.shape:
        wanted = "a paired comparison needs the same weightings, prompts and objectives"
        raise ValueError(f"ours has shape {a.shape} and theirs {b.shape}; {wanted}")
    by_prompt = scalarized(np.swapaxes(a - b, 0, 1), reward_weights).T
    differences = by_prompt.mean(axis=1)
    low, high = interval(resampled_means(by_prompt, resamples, seed))
    mean, least, share = differences.mean(), differences.min(), (low > 0).mean()
    return PairedDominance(differences, low, high, float(mean), float(least), float(share))


def hypervolume(values: ArrayLike, reference_point: ArrayLike) -> float:
    """The volume between the reference point and the front (Zitzler and Thiele 1999), by moocore.

    Args:
      values: [n, m]. Dominated points, and points that are no better than the reference point in
        some objective, add nothing.
      reference_point: [m]; the same for all fronts that are compared.

    Returns:
      In units of value to the power of m; ≥ 0.
    """
    front = _shaped("values", values, "n, m")
    reference = _finite("reference_point", reference_point)
    if reference.shape != front.shape[1:]:
        wanted = f"it must be a list of {front.shape[1]} numbers, one for each objective"
        raise ValueError(f"reference_point={reference.tolist()}; {wanted}")
    return float(moocore.hypervolume(front, ref=reference, maximise=True))


def mutual_igd_plus(ours: ArrayLike, theirs: ArrayLike) -> tuple[float, float]:
    """How far each front falls short of the other: IGD+ (Ishibuchi et al. 2015), by moocore.

    The mean over the nondominated points z of the other front of min_a ‖max(z − a, 0)‖, a in this
    one; 0 if this one reaches or surpasses all of them. Equal points count once.

    Args:
      ours: values, [n, m].
      theirs: values, [k, m].

    Returns:
      Ours measured against theirs, and theirs against ours, in units of value; lower is better.
    """
    a, b = _shaped("ours", ours, "n, m"), _shaped("theirs", theirs, "k, m")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"ours has {a.shape[1]} objectives, but theirs has {b.shape[1]}")
    a, b = (moocore.filter_dominated(front, maximise=True) for front in (a, b))
    forth, back = (moocore.igd_plus(x, ref=y, maximise=True) for x, y in ((a, b), (b, a)))
    return float(forth), float(back)


def extent(reward_weights: ArrayLike, values: ArrayLike) -> float:
    """The distance ‖v(e_i) − v(e_j)‖ between the values at two corners, its mean over pairs.

    Returns:
      In units of value; NaN if a corner is not among the weightings, and for one objective.

    Raises:
      ValueError: also for a corner that is there twice, e.g. once for each of several α.
    """
    weights, front = _weighted_front(reward_weights, values)
    at_corner = np.abs(weights - 1) <= _CORNER_TOLERANCE
    if weights.shape[1] == 1 or not at_corner.any(axis=0).all():
        return float("nan")
    if (at_corner.sum(axis=0) > 1).any():
        raise ValueError("reward_weights has a corner twice; give the weightings of one kl_weight")
    pairs = itertools.combinations(front[at_corner.argmax(axis=0)], 2)
    return float(np.mean([np.linalg.norm(a - b) for a, b in pairs]))


def evenness(values: ArrayLike) -> float:
    """Entropy of the shares of the front's length between neighbours, over log(n − 1).

    Pielou's (1966) evenness of the gaps. Blind to size: report it beside `extent`.

    Args:
      values: [n, 2], rows in the order of w.

    Returns:
      1 if neighbours are equally far apart, 0 if one gap is the whole length; NaN if there are
      fewer than three points or all are equal.
    """
    front = _shaped("values", values, "n, m")
    if front.shape[1] != 2:
        raise ValueError(f"evenness is of two objectives; values has {front.shape[1]}")
    gaps = np.linalg.norm(np.diff(front, axis=0), axis=1)
    if len(gaps) < 2 or not gaps.any():
        return float("nan")
    return float(special.entr(gaps / gaps.sum()).sum() / np.log(len(gaps)))


def controllability(reward_weights: ArrayLike, values: ArrayLike) -> np.ndarray:
    """Kendall's (1945) τ-b between w_i and v_i over the weightings, for each objective.

    Returns:
      [m], range [−1, 1]: 1 if more weight always gave more value; 0 where w_i or v_i is constant.
    """
    weights, front = _weighted_front(reward_weights, values)
    return np.array([_tau(w, v) for w, v in zip(weights.T, front.T, strict=True)])


def self_regret(reward_weights: ArrayLike, values: ArrayLike) -> float:
    """max_w [max_w' w · v(w') − w · v(w)], ≥ 0: the most that asking for another w would gain."""
    weights, front = _weighted_front(reward_weights, values)
    scores = weights @ front.T  # of the point of each column under the weighting of each row
    return float((scores.max(axis=1) - np.diagonal(scores)).max())


def front_metrics(
    reward_weights: ArrayLike,
    prompt_values: ArrayLike,
    reference_point: ArrayLike,
    resamples: int = 1000,
    seed: int = 0,
) -> FrontMetrics:
    """All metrics of one front, with intervals; rows in any order. Raises what `extent` raises."""
    weights = _shaped("reward_weights", reward_weights, "n, m")
    by_prompt = _shaped("prompt_values", prompt_values, "n, P, m")
    _check_match("prompt_values", by_prompt.shape[::2], weights)
    order = np.argsort(weights[:, 0], kind="stable")
    weights, by_prompt = weights[order], by_prompt[order]
    measured = _measure(weights, by_prompt.mean(axis=1), reference_point)
    resampled = resampled_means(by_prompt, resamples, seed)
    low, high = interval([_measure(weights, values, reference_point) for values in resampled])
    estimates = [Estimate(*map(float, ends)) for ends in zip(measured, low, high, strict=True)]
    (volume, spread, even, regret), m = estimates[:4], weights.shape[1]
    taus, ranges = tuple(estimates[4:-m]), tuple(estimates[-m:])
    point = tuple(np.asarray(reference_point, float).tolist())
    return FrontMetrics(volume, spread, even, regret, taus, ranges, point)


def _measure(weights: np.ndarray, values: np.ndarray, reference_point: ArrayLike) -> list[float]:
    """The 4 + 2 m metrics in the order of `FrontMetrics`; rows in the order of w."""
    return [
        hypervolume(values, reference_point),
        extent(weights, values),
        evenness(values) if values.shape[1] == 2 else float("nan"),
        self_regret(weights, values),
        *controllability(weights, values),
        *np.ptp(values, axis=0),
    ]


def _tau(weights: np.ndarray, values: np.ndarray) -> float:
    if not np.ptp(weights) or not np.ptp(values):
        return 0.0
    # Of the p-value, which nobody reads: exact takes milliseconds, asymptotic needs three points.
    method = "asymptotic" if len(values) > 2 else "exact"
    return float(stats.kendalltau(weights, values, method=method).statistic)


def _draw_counts(rng: np.random.Generator, resamples: int, num_prompts: int) -> np.ndarray:
    """How often each bootstrap sample has each prompt, [resamples, P] float64."""
    drawn = rng.integers(num_prompts, size=(resamples, num_prompts))
    drawn += num_prompts * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * num_prompts)
    return counts.reshape(resamples, num_prompts).astype(float)


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows, and the place of each row among them.

    A matrix product rounds equal columns differently by where they stand. A policy that says the
    same at several weightings must keep its ties, or τ and evenness would rank rounding errors.
    """
    known: dict[bytes, int] = {}
    places = np.array([known.setdefault(row.tobytes(), len(known)) for row in rows])
    return rows[np.unique(places, return_index=True)[1]], places


def _finite(name: str, array: ArrayLike) -> np.ndarray:
    numbers = np.asarray(array, float)
    if not numbers.size:
        raise ValueError(f"{name} is empty: its shape is {numbers.shape}")
    bad = numbers[~np.isfinite(numbers)]
    if bad.size:
        raise ValueError(f"{name} has {bad.size} numbers that are not finite, e.g. {bad[0]}")
    return numbers


def _shaped(name: str, array: ArrayLike, axes: str) -> np.ndarray:
    numbers = _finite(name, array)
    if numbers.ndim != len(axes.split(",")):
        raise ValueError(f"{name} must be [{axes}]; its shape is {numbers.shape}")
    return numbers


def _check_match(name: str, n_and_m: tuple[int, ...], weights: np.ndarray) -> None:
    if n_and_m != weights.shape:
        raise ValueError(f"{name} has (n, m) = {n_and_m}, but reward_weights {weights.shape}")


def _weighted_front(weights: ArrayLike, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    w, front = _shaped("reward_weights", weights, "n, m"), _shaped("values", values, "n, m")
    _check_match("values", front.shape, w)
    return w, front
