import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clp_jax.evaluation import pareto

GRID = np.stack([np.linspace(0, 1, 11), 1 - np.linspace(0, 1, 11)], axis=1)
CIRCLE = GRID / np.linalg.norm(GRID, axis=1, keepdims=True)  # argmax of w · v on the unit circle
CENTRE = np.full((11, 2), math.sqrt(0.5))

# Quarters make ties and duplicates frequent.
QUARTERS = st.integers(-4, 8).map(lambda k: k / 4)


@st.composite
def fronts(draw, count, max_points=6, same_length=False):
    """`count` arrays [n, m] of one m in 1..3."""
    m, lengths = draw(st.integers(1, 3)), st.integers(1, max_points)
    n = [draw(lengths)] * count if same_length else [draw(lengths) for _ in range(count)]
    return [draw(hnp.arrays(float, (k, m), elements=QUARTERS)) for k in n]


def spread_over_prompts(values, num_prompts=200, noise=0.1, seed=0):
    """Values of prompts, [n, P, m], whose means are `values` up to rounding."""
    draws = np.random.default_rng(seed).normal(size=(len(values), num_prompts, values.shape[1]))
    return values[:, None] + noise * (draws - draws.mean(axis=1, keepdims=True))


# Bootstrap


def test_resampled_means_have_the_moments_of_a_bootstrap():
    values = np.random.default_rng(1).gamma(1.0, size=(3, 50))
    means = pareto.resampled_means(values, resamples=20_000)
    np.testing.assert_allclose(means.mean(axis=0), values.mean(axis=1), atol=0.006)
    np.testing.assert_allclose(np.cov(means.T), np.cov(values, bias=True) / 50, atol=0.001)


def test_resamples_are_multinomial_counts_of_prompts():
    # The value of prompt p at "weighting" q is 1 if p = q, so the means are the counts over P.
    counts = 12 * pareto.resampled_means(np.eye(12), resamples=8000)
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    np.testing.assert_allclose(counts.sum(axis=1), 12)
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.06)
    expected = np.eye(12) - 1 / 12
    np.testing.assert_allclose(np.cov(counts.T), expected, atol=0.09)


def test_policies_and_weightings_are_resampled_alike():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 4, 30, 3))
    resample = pareto.resampled_means
    np.testing.assert_allclose(resample(a) - resample(b), resample(a - b), atol=1e-12)
    np.testing.assert_allclose(resample(a)[:, 2:], resample(a[2:]), atol=1e-12)
    np.testing.assert_allclose(resample(a)[..., 1], resample(a[..., 1]), atol=1e-12)
    assert resample(a, resamples=7).shape == (7, 4, 3)
    assert not np.allclose(resample(a), resample(a, seed=1))


@pytest.mark.parametrize("block", [1, 70, 10**6])
def test_blocks_do_not_change_the_draws(monkeypatch, block):
    values = np.random.default_rng(3).normal(size=(2, 30))
    expected = pareto.resampled_means(values, resamples=11)
    monkeypatch.setattr(pareto, "_BLOCK", block)
    np.testing.assert_allclose(pareto.resampled_means(values, resamples=11), expected, rtol=1e-12)
    assert len(np.unique(expected[:, 0])) == 11


def test_weightings_with_the_same_completions_stay_tied():
    # 200 is large enough for a matrix product to round equal columns in several ways.
    said = np.random.default_rng(4).random((1, 200, 3))
    means = pareto.resampled_means(np.repeat(said, 66, axis=0), resamples=50)
    assert (means == means[:, :1]).all()
    assert (means[:, 0, 0] != means[:, 0, 1]).all()


def test_interval_holds_the_middle():
    low, high = pareto.interval(np.stack([np.arange(101.0), np.full(101, 7.0)], axis=1), level=0.9)
    np.testing.assert_allclose([low, high], [[5, 7], [95, 7]])
    low, high = pareto.interval(np.arange(1001.0))
    assert (low, high) == pytest.approx((25, 975))
    assert np.isnan(pareto.interval([1.0, math.nan, 2.0])).all()


# Comparisons


def test_scalarized_is_a_dot_product_by_weighting():
    values = np.array([[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [4.0, 40.0]]])  # [2, n, m]
    weights = np.array([[1.0, 0.0], [0.25, 0.75]])
    np.testing.assert_allclose(pareto.scalarized(values, weights), [[1, 15.5], [3, 31]])
    np.testing.assert_allclose(pareto.scalarized(values[0], weights), [1, 15.5])


def test_paired_dominance_on_planted_differences():
    # Prompts differ far more than the policies do: only pairing can see the difference.
    rng = np.random.default_rng(5)
    theirs = rng.normal(scale=10, size=(1, 400, 2)) + rng.normal(scale=0.01, size=(3, 400, 2))
    planted = np.array([[0.3, 0.1], [-0.2, 0.22], [-0.1, -0.1]])
    ours = theirs + spread_over_prompts(planted, num_prompts=400, noise=0.5)
    weights = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    result = pareto.paired_dominance(ours, theirs, weights, resamples=20_000)
    by_prompt = np.einsum("npm,nm->np", ours - theirs, weights)
    means, errors = np.array([0.3, 0.01, -0.1]), by_prompt.std(axis=1) / 20
    np.testing.assert_allclose(result.differences, means)
    np.testing.assert_allclose(result.low, means - 1.96 * errors, atol=0.1 * errors.max())
    np.testing.assert_allclose(result.high, means + 1.96 * errors, atol=0.1 * errors.max())
    assert (result.mean, result.least) == pytest.approx((0.07, -0.1))
    assert result.share_above == pytest.approx(1 / 3)  # .01 is less than its standard error
    same = pareto.paired_dominance(ours, ours, weights)
    assert (same.mean, same.least, same.share_above) == (0, 0, 0)


def test_intervals_of_paired_dominance_cover_the_truth():
    rng = np.random.default_rng(6)
    weights = np.array([[1.0, 0.0], [0.7, 0.3], [0.4, 0.6], [0.0, 1.0]])
    truth, covered = np.array([0.0, 0.5, -0.5, 2.0]), []
    for seed in range(300):
        theirs = rng.normal(size=(4, 150, 2))
        ours = theirs + truth[:, None, None] + rng.normal(size=theirs.shape)
        result = pareto.paired_dominance(ours, theirs, weights, resamples=300, seed=seed)
        covered += ((result.low <= truth) & (truth <= result.high)).tolist()
    assert len(covered) == 1200
    assert 0.925 <= np.mean(covered) <= 0.97  # .95 ± 4 standard errors, less what 300 draws cost


@settings(deadline=None)
@given(fronts(1), st.lists(QUARTERS, min_size=3, max_size=3))
def test_hypervolume_by_inclusion_and_exclusion(front, reference):
    (front,) = front
    reference = np.array(reference[: front.shape[1]])
    expected = sum(
        (-1) ** (size + 1) * np.prod(np.maximum(np.min(boxes, axis=0) - reference, 0))
        for size in range(1, len(front) + 1)
        for boxes in itertools.combinations(front, size)
    )
    assert pareto.hypervolume(front, reference) == pytest.approx(expected, abs=1e-9)


def brute_nondominated(front):
    distinct = sorted(set(map(tuple, front.tolist())))
    return [a for a in distinct if sum(np.greater_equal(b, a).all() for b in distinct) == 1]


def brute_igd_plus(front, reference_set):
    total = 0.0
    for z in reference_set:
        total += min(math.hypot(*np.maximum(np.subtract(z, a), 0)) for a in front)
    return total / len(reference_set)


@settings(deadline=None)
@given(fronts(2))
def test_mutual_igd_plus_by_its_definition(pair):
    ours, theirs = pair
    a, b = brute_nondominated(ours), brute_nondominated(theirs)
    expected = (brute_igd_plus(a, b), brute_igd_plus(b, a))
    assert pareto.mutual_igd_plus(ours, theirs) == pytest.approx(expected, abs=1e-9)


# Steerability


def test_extent_is_the_mean_distance_of_corners():
    weights = np.array([[0.2, 0.3, 0.5], [0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float32)
    values = np.array([[9.0, 9, 9], [0, 0, 0], [3, 4, 0], [3, 4, 12]])
    # |v(e_1) − v(e_2)| = 12, |v(e_1) − v(e_3)| = 5, |v(e_2) − v(e_3)| = 13
    assert pareto.extent(weights, values) == pytest.approx(10)
    assert math.isnan(pareto.extent(weights[:3], values[:3]))
    assert math.isnan(pareto.extent(weights[:, :1], values[:, :1]))
    rounded = np.array([[1 - 1e-7, 1e-7], [0, 1]])
    assert pareto.extent(rounded, np.eye(2)) == pytest.approx(math.sqrt(2))


def test_evenness_in_closed_form():
    steps = np.array([[0.6, -0.8], [2.0, 0.0], [3.0, -4.0]])
    gaps = np.array([1, 2, 5])
    front = np.concatenate([np.zeros((1, 2)), steps.cumsum(axis=0)])
    shares = gaps / 8
    expected = -(shares * np.log(shares)).sum() / math.log(3)
    assert pareto.evenness(front) == pytest.approx(expected)
    assert pareto.evenness(front[[0, 0, 1]]) == 0
    assert pareto.evenness(np.arange(5.0)[:, None] * steps[0]) == pytest.approx(1)
    assert math.isnan(pareto.evenness(front[:2]))
    assert math.isnan(pareto.evenness(CENTRE))


@settings(deadline=None)
@given(fronts(2, max_points=8, same_length=True))
def test_controllability_by_counting_pairs(arrays):
    weights, values = arrays
    expected = []
    for w, v in zip(weights.T, values.T, strict=True):
        signs = [
            (np.sign(w[j] - w[i]), np.sign(v[j] - v[i]))
            for i, j in itertools.combinations(range(len(w)), 2)
        ]
        untied = math.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))
        expected.append(sum(a * b for a, b in signs) / untied if untied else 0.0)
    assert pareto.controllability(weights, values) == pytest.approx(expected)


@settings(deadline=None)
@given(fronts(2, max_points=8, same_length=True))
def test_self_regret_by_a_double_loop(arrays):
    weights, values = arrays
    regrets = [w @ other - w @ v for w, v in zip(weights, values, strict=True) for other in values]
    regret = pareto.self_regret(weights, values)
    assert regret == pytest.approx(max(regrets), abs=1e-12)
    assert regret >= 0


def test_self_regret_of_an_optimal_front_and_of_a_reversed_one():
    assert pareto.self_regret(GRID, CIRCLE) == 0
    assert pareto.self_regret(GRID, CIRCLE[::-1]) == pytest.approx(1)  # at a corner: 1 − 0


# All of them


def values_of(estimates):
    return [estimate.value for estimate in estimates]


def test_front_metrics_are_the_metrics_with_intervals_around_them():
    by_prompt = spread_over_prompts(CIRCLE)
    shuffled = np.random.default_rng(7).permutation(11)
    metrics = pareto.front_metrics(GRID[shuffled], by_prompt[shuffled], [0.1, 0.2], resamples=300)
    assert metrics.hypervolume.value == pytest.approx(pareto.hypervolume(CIRCLE, [0.1, 0.2]))
    assert metrics.extent.value == pytest.approx(math.sqrt(2))
    assert metrics.evenness.value == pytest.approx(pareto.evenness(CIRCLE))
    assert metrics.self_regret.value == pytest.approx(0, abs=1e-9)
    assert values_of(metrics.controllability) == [1, 1]
    assert values_of(metrics.ranges) == pytest.approx([1, 1])
    assert metrics.reference_point == (0.1, 0.2)
    narrow = [metrics.hypervolume, metrics.extent, *metrics.ranges]
    assert all(e.low < e.value < e.high < e.low + 0.1 for e in narrow)


def test_intervals_of_front_metrics_are_those_of_resampled_fronts():
    by_prompt = spread_over_prompts(CIRCLE, num_prompts=40, noise=0.5)
    metrics = pareto.front_metrics(GRID, by_prompt, [-1, 0], resamples=50, seed=3)
    resampled = pareto.resampled_means(by_prompt, 50, 3)
    for estimate, metric in (
        (metrics.hypervolume, lambda v: pareto.hypervolume(v, [-1, 0])),
        (metrics.extent, lambda v: np.linalg.norm(v[0] - v[-1])),
        (metrics.self_regret, lambda v: pareto.self_regret(GRID, v)),
        (metrics.evenness, pareto.evenness),
        (metrics.controllability[1], lambda v: pareto.controllability(GRID, v)[1]),
        (metrics.ranges[0], lambda v: v[:, 0].max() - v[:, 0].min()),
    ):
        ends = np.quantile([metric(v) for v in resampled], [0.025, 0.975])
        assert (estimate.low, estimate.high) == pytest.approx(tuple(ends))


@pytest.mark.parametrize("m", [1, 3])
def test_front_metrics_of_other_numbers_of_objectives(m):
    weights = np.concatenate([np.eye(m), np.full((1, m), 1 / m)]) if m > 1 else np.ones((4, 1))
    values = np.arange(4.0)[:, None] + np.zeros(m)
    metrics = pareto.front_metrics(weights, spread_over_prompts(values), np.ones(m), resamples=20)
    assert metrics.hypervolume.value == pytest.approx(2**m)
    assert math.isnan(metrics.evenness.value)
    assert math.isnan(metrics.extent.value) == (m == 1)
    assert len(metrics.controllability) == len(metrics.ranges) == m
    assert values_of(metrics.ranges) == pytest.approx([3] * m)


def test_collapse_is_punished():
    # Collapsed onto the circle's best point for w = (½, ½), which is optimal there: exactly, and
    # but for a line of points 1e-6 apart whose order follows w.
    along = np.arange(11)[:, None] * np.array([1e-6, -1e-6])
    spread, point, line = (
        pareto.front_metrics(GRID, spread_over_prompts(front), [0, 0], resamples=100)
        for front in (CIRCLE, CENTRE, CENTRE + along)
    )
    for collapsed in (point, line):
        assert collapsed.hypervolume.high + 0.1 < spread.hypervolume.low
        assert collapsed.extent.high + 1 < spread.extent.low
        for kind in ("ranges", "controllability"):
            for ours, theirs in zip(getattr(spread, kind), getattr(collapsed, kind), strict=True):
                assert theirs.high + 0.2 < ours.low
    for front in (CENTRE, CENTRE + along):
        assert pareto.mutual_igd_plus(front, CIRCLE)[0] > 0.2
        assert pareto.mutual_igd_plus(CIRCLE, front)[0] < 1e-4
    # Where no weighting moves anything τ is 0, not undefined.
    assert pareto.controllability(GRID, CIRCLE).tolist() == [1, 1]
    assert pareto.controllability(GRID, CENTRE).tolist() == [0, 0]
    # Why these two are only read beside the extent: neither sees anything wrong.
    assert pareto.evenness(CENTRE + along) == pytest.approx(1)
    assert pareto.self_regret(GRID, CENTRE) == pytest.approx(0, abs=1e-12)


def test_a_policy_that_ignores_its_weighting_has_exact_zeros():
    by_prompt = np.repeat(np.random.default_rng(8).random((1, 200, 2)), 66, axis=0)
    first = np.linspace(0, 1, 66)
    metrics = pareto.front_metrics(np.stack([first, 1 - first], 1), by_prompt, [0, 0], resamples=50)
    zero = pareto.Estimate(0.0, 0.0, 0.0)
    assert metrics.controllability == metrics.ranges == (zero, zero)
    assert metrics.extent == zero
    assert np.isnan(dataclasses.astuple(metrics.evenness)).all()


# Bad input

BY_PROMPT = np.zeros((11, 5, 2))
WITH_NAN = np.where(np.arange(11)[:, None] == 3, np.nan, CIRCLE)
TWO_ALPHAS = np.concatenate([GRID, GRID])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: pareto.hypervolume(CIRCLE, [0.0]), r"reference_point=\[0.0\].*2 numbers"),
        (lambda: pareto.hypervolume(CIRCLE, 0.0), "reference_point=0.0.*2 numbers"),
        (lambda: pareto.hypervolume(CIRCLE, [0, np.inf]), "reference_point has 1 .*finite.*inf"),
        (lambda: pareto.hypervolume(WITH_NAN, [0, 0]), "values has 2 .*not finite, e.g. nan"),
        (lambda: pareto.hypervolume(CIRCLE[0], [0, 0]), r"values must be \[n, m\].*\(2,\)"),
        (lambda: pareto.hypervolume(CIRCLE[:0], [0, 0]), r"values is empty.*\(0, 2\)"),
        (lambda: pareto.mutual_igd_plus(CIRCLE, np.eye(3)), "ours has 2.*theirs has 3"),
        (lambda: pareto.mutual_igd_plus(CIRCLE, WITH_NAN), "theirs has 2 .*not finite"),
        (lambda: pareto.extent(GRID[:10], CIRCLE), r"values .*\(11, 2\).*weights \(10, 2\)"),
        (lambda: pareto.extent(TWO_ALPHAS, TWO_ALPHAS), "corner twice.*one kl_weight"),
        (lambda: pareto.evenness(np.eye(3)), "two objectives; values has 3"),
        (lambda: pareto.controllability(GRID, CIRCLE[:, :1]), r"values .*\(11, 1\)"),
        (lambda: pareto.self_regret(WITH_NAN, CIRCLE), "reward_weights has 2 .*not finite"),
        (lambda: pareto.scalarized(CIRCLE[:3], GRID), r"values .*\(3, 2\).*\(11, 2\)"),
        (lambda: pareto.scalarized(CIRCLE, GRID[0]), r"reward_weights must be \[n, m\]"),
        (lambda: pareto.interval([1.0], level=95), "level=95.*in \\(0, 1\\)"),
        (lambda: pareto.interval([]), "at least one"),
        (lambda: pareto.resampled_means([1.0, 2.0]), r"must be \[n, P, \.\.\.\].*\(2,\)"),
        (lambda: pareto.resampled_means(BY_PROMPT[:, :0]), "prompt_values is empty"),
        (lambda: pareto.resampled_means(BY_PROMPT, resamples=0), "resamples=0.*at least 1"),
        (lambda: pareto.paired_dominance(BY_PROMPT, BY_PROMPT[:, :4], GRID), "same.*prompts"),
        (lambda: pareto.paired_dominance(CIRCLE, CIRCLE, GRID), r"ours must be \[n, P, m\]"),
        (lambda: pareto.paired_dominance(BY_PROMPT, BY_PROMPT, GRID[:4]), r"\(4, 2\)"),
        (lambda: pareto.front_metrics(GRID[:4], BY_PROMPT, [0, 0]), r"\(11, 2\).*\(4, 2\)"),
        (lambda: pareto.front_metrics(GRID, BY_PROMPT, [0, 0, 0]), "reference_point=.*2 numbers"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
