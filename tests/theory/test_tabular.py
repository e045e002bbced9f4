import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize
from scipy.special import log_softmax, logsumexp

from clp_jax.algorithm.weighting import SoftmaxKLMix
from clp_jax.theory import tabular

KL_WEIGHTS = st.floats(0.01, 1)
SHARES = st.floats(0, 1)


@st.composite
def problems(draw):
    """(log π_ref [X, Y], rewards [2, X, Y], α, logit errors of two experts [2, X, Y])."""
    contexts, outputs = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    finite = {"min_value": -4, "max_value": 4}

    def array(*shape):
        return draw(hnp.arrays(float, shape, elements=st.floats(**finite)))

    reference = log_softmax(array(contexts, outputs), axis=-1)
    scale = draw(st.sampled_from([1e-3, 0.1, 1.0]))
    rewards = array(2, contexts, outputs) / 4
    return reference, rewards, draw(KL_WEIGHTS), scale * array(2, contexts, outputs)


def random_problem(rng):
    contexts, outputs = rng.integers(1, 4), rng.integers(2, 9)
    reference = np.log(rng.dirichlet(np.ones(outputs), contexts))
    rewards = rng.uniform(-1, 1, [2, contexts, outputs])
    errors = 10 ** rng.uniform(-3, 0.7) * rng.normal(size=[2, contexts, outputs])
    return reference, rewards, 10 ** rng.uniform(-1.5, 0), errors


def random_problems(count, seed=0):
    rng = np.random.default_rng(seed)
    return [(*random_problem(rng), rng.uniform()) for _ in range(count)]


def mixed_experts(reference, rewards, kl_weight, errors, share):
    """(experts [2, X, Y], ε_i [2], regret of their mixture), means over the contexts."""
    experts = log_softmax(tabular.optimal_policy(reference, rewards, kl_weight) + errors, axis=-1)
    weights = np.array([1 - share, share])
    mixed_reward = np.tensordot(weights, rewards, 1)
    suboptimality = tabular.regret(experts, reference, rewards, kl_weight).mean(axis=-1)
    regret = tabular.regret(tabular.mix(experts, weights), reference, mixed_reward, kl_weight)
    return experts, suboptimality, regret.mean()


# Optimal policies and values


@pytest.mark.parametrize("kl_weight", [0.05, 0.3, 0.9])
def test_no_policy_that_an_optimiser_finds_is_better(kl_weight):
    rng = np.random.default_rng(1)
    reference = np.log(rng.dirichlet(np.ones(4)))
    rewards = rng.uniform(size=4)

    def loss(logits):
        policy = np.exp(logits) / np.exp(logits).sum()
        kl = (policy * (np.log(policy) - reference)).sum()
        return -((1 - kl_weight) * policy @ rewards - kl_weight * kl)

    found = optimize.minimize(loss, np.zeros(4), tol=1e-12)
    best = tabular.optimal_policy(reference, rewards, kl_weight)
    assert tabular.optimal_value(reference, rewards, kl_weight) == pytest.approx(-found.fun)
    np.testing.assert_allclose(np.exp(best), np.exp(log_softmax(found.x)), atol=1e-4)


@given(problems())
def test_regret_is_the_gap_in_value(problem):
    reference, rewards, kl_weight, errors = problem
    policy = log_softmax(reference + errors[0], axis=-1)
    best = tabular.optimal_value(reference, rewards[0], kl_weight)
    gap = best - tabular.value(policy, reference, rewards[0], kl_weight)
    np.testing.assert_allclose(
        tabular.regret(policy, reference, rewards[0], kl_weight), gap, atol=1e-12
    )
    assert gap.shape == reference.shape[:-1]
    assert np.all(gap >= -1e-12)
    at_best = tabular.optimal_policy(reference, rewards[0], kl_weight)
    np.testing.assert_allclose(
        tabular.value(at_best, reference, rewards[0], kl_weight), best, atol=1e-12
    )


def test_the_value_is_the_formula_of_the_paper():
    reference, rewards = np.log([0.2, 0.5, 0.3]), np.array([1.0, 0.0, 0.75])
    expected = 0.1 * logsumexp(reference + 0.9 * rewards / 0.1)
    assert tabular.optimal_value(reference, rewards, 0.1) == pytest.approx(expected, abs=1e-14)
    policy = np.log([0.6, 0.1, 0.3])
    kl = 0.6 * np.log(0.6 / 0.2) + 0.1 * np.log(0.1 / 0.5)
    assert tabular.value(policy, reference, rewards, 0.1) == pytest.approx(
        0.9 * (0.6 + 0.3 * 0.75) - 0.1 * kl
    )


def test_without_kl_the_best_outputs_share_as_in_the_reference():
    reference, rewards = np.log([0.2, 0.3, 0.5]), [1.0, 1.0, 0.0]
    best = tabular.optimal_policy(reference, rewards, 0.0)
    np.testing.assert_allclose(np.exp(best), [0.4, 0.6, 0.0])
    assert tabular.optimal_value(reference, rewards, 0.0) == 1
    assert tabular.value(best, reference, rewards, 0.0) == pytest.approx(1)
    nearly = tabular.optimal_policy(reference, rewards, 1e-3)
    np.testing.assert_allclose(np.exp(nearly), np.exp(best), atol=1e-12)


def test_divergences_of_policies_that_exclude_outputs_and_of_near_ones():
    with np.errstate(divide="ignore"):
        sure, fair = np.log([1.0, 0.0]), np.log([0.5, 0.5])
    assert tabular.kl(sure, fair) == pytest.approx(np.log(2))
    assert tabular.kl(fair, sure) == np.inf
    # ½ Var δ for a small change δ of the logits; summed naively, rounding is all that is left.
    near = log_softmax([1e-9, 0.0])
    assert tabular.kl(near, fair) == pytest.approx(0.5 * 0.25e-18, rel=1e-3)


def test_what_the_reference_excludes_stays_excluded():
    with np.errstate(divide="ignore"):
        reference, outside = np.log([0.5, 0.5, 0.0]), np.log([0.5, 0.0, 0.5])
    for kl_weight in (0.0, 0.1, 1.0):
        best = tabular.optimal_policy(reference, [0.0, 1.0, 9.0], kl_weight)
        assert best[2] == -np.inf
    assert tabular.optimal_value(reference, [0.0, 1.0, 9.0], 0.0) == 1
    assert tabular.value(outside, reference, [0.0, 1.0, 9.0], 0.1) == -np.inf
    assert tabular.value(outside, reference, [0.0, 1.0, 9.0], 0.0) == 4.5


@pytest.mark.parametrize("kl_weight", [-0.1, 1.1, float("nan")])
def test_kl_weights_out_of_range_are_refused(kl_weight):
    with pytest.raises(ValueError, match=f"kl_weight={kl_weight:g} is outside"):
        tabular.optimal_policy(np.log([0.5, 0.5]), [0.0, 1.0], kl_weight)


def test_regret_needs_a_positive_kl_weight():
    with pytest.raises(ValueError, match="kl_weight=0"):
        tabular.regret(np.log([0.5, 0.5]), np.log([0.5, 0.5]), [0.0, 1.0], 0.0)


# Logit mixing


@given(problems(), SHARES)
def test_mixed_optimal_policies_are_optimal_for_the_mixed_reward(problem, share):
    reference, rewards, kl_weight, _ = problem
    weights = [1 - share, share]
    mixture = tabular.mix(tabular.optimal_policy(reference, rewards, kl_weight), weights)
    expected = tabular.optimal_policy(reference, np.tensordot(weights, rewards, 1), kl_weight)
    np.testing.assert_allclose(mixture, expected, atol=1e-9)


@given(problems(), SHARES, st.floats(0.01, 0.5))
def test_dera_mixes_the_policy_of_any_kl_weight(problem, position, kl_weight_min):
    reference, rewards, _, _ = problem
    kl_weight = kl_weight_min + position * (1 - kl_weight_min)
    beta = SoftmaxKLMix(kl_weight_min)(kl_weight)
    at_least = tabular.optimal_policy(reference, rewards[0], kl_weight_min)
    mixture = tabular.mix([at_least, reference], [1 - beta, beta])
    expected = tabular.optimal_policy(reference, rewards[0], kl_weight)
    np.testing.assert_allclose(mixture, expected, atol=1e-9)


def test_a_mixture_is_the_normalised_geometric_mean():
    first, second = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    product = first**0.25 * second**0.75
    mixture = tabular.mix(np.log([first, second]), [0.25, 0.75])
    np.testing.assert_allclose(np.exp(mixture), product / product.sum())


def test_mixing_policies_that_exclude_outputs():
    with np.errstate(divide="ignore"):
        first, second, other = np.log([[1, 0, 0], [0, 1, 0], [0.5, 0, 0.5]])
    np.testing.assert_array_equal(tabular.mix([first, second], [0, 1]), second)
    np.testing.assert_array_equal(tabular.mix([first, other], [0.5, 0.5]), first)
    with pytest.raises(ValueError, match="no output is possible"):
        tabular.mix([first, second], [0.5, 0.5])  # Sec. 6.2 at α = 0


# Coverage and the bounds


def test_concentrability_is_the_largest_ratio():
    with np.errstate(divide="ignore"):
        first, second = np.log([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]])
        wide = np.log([0.2, 0.3, 0.5])
    assert tabular.concentrability(first, second) == pytest.approx(0.9 / 0.5)
    assert tabular.concentrability(second, first) == pytest.approx(0.5 / 0.1)
    assert tabular.concentrability(first, wide) == np.inf
    assert tabular.concentrability(wide, first) == pytest.approx(2.5)


@settings(max_examples=300)
@given(problems(), SHARES)
def test_the_bounds_hold(problem, share):
    check_bounds(*problem, share)


def test_the_bounds_hold_on_random_problems():
    for problem in random_problems(3000):
        check_bounds(*problem)


def check_bounds(reference, rewards, kl_weight, errors, share):
    experts, suboptimality, regret = mixed_experts(reference, rewards, kl_weight, errors, share)
    bound = tabular.mixing_bound(experts, [1 - share, share], suboptimality)
    epsilon, least = suboptimality.max(), np.exp(experts.min())
    slack = 1e-12
    assert regret <= bound * (1 + 1e-9) + slack
    assert bound <= epsilon / least * (1 + 1e-9) + slack
    assert regret <= tabular.printed_bound(experts, share, epsilon) + slack
    # The coverage term of Theorem E.1, with C and η as its proof needs them.
    width = np.ptp(experts, axis=-1).max()
    coverage = (1 - share) * tabular.concentrability(*experts) ** share
    coverage += share * tabular.concentrability(*experts[::-1]) ** (1 - share)
    if bound > 0:
        assert np.log(bound) <= np.log(epsilon * coverage) + width**2 / 8 + 1e-9


def test_the_bound_holds_for_three_experts():
    rng = np.random.default_rng(2)
    for _ in range(300):
        reference, rewards = np.log(rng.dirichlet(np.ones(5))), rng.uniform(size=[3, 5])
        weights = rng.dirichlet(np.ones(3))
        best = tabular.optimal_policy(reference, rewards, 0.2)
        experts = log_softmax(best + rng.normal(size=[3, 5]), axis=-1)
        suboptimality = tabular.regret(experts, reference, rewards, 0.2)
        mixture = tabular.mix(experts, weights)
        regret = tabular.regret(mixture, reference, weights @ rewards, 0.2)
        assert regret <= tabular.mixing_bound(experts, weights, suboptimality)


def test_the_bound_is_met_by_equal_experts_and_by_one_alone():
    reference, rewards, kl_weight, errors = random_problem(np.random.default_rng(3))
    experts, (first, _), regret = mixed_experts(reference, rewards, kl_weight, errors, 0.0)
    assert regret == pytest.approx(first)
    assert tabular.mixing_bound(experts, [1, 0], [first, np.nan]) == pytest.approx(first)
    same = np.stack([experts[0], experts[0]])
    assert tabular.mixing_bound(same, [0.3, 0.7], [first, first]) == pytest.approx(first)


def test_coverage_is_needed_in_the_bound():
    # Without it, the bound would be the mean of the experts' regrets: not so.
    exceeds = []
    for *problem, share in random_problems(300, seed=4):
        _, suboptimality, regret = mixed_experts(*problem, share)
        exceeds.append(regret > np.dot([1 - share, share], suboptimality))
    assert 0.02 < np.mean(exceeds) < 0.5


def test_the_bound_of_two_experts_by_hand():
    first, second = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.6, 0.3])
    experts = np.log([first, second])
    product = first**0.75 * second**0.25
    mixture = product / product.sum()
    expected = 0.75 * max(mixture / first) * 0.01 + 0.25 * max(mixture / second) * 0.03
    assert tabular.mixing_bound(experts, [0.75, 0.25], [0.01, 0.03]) == pytest.approx(expected)
    eta = np.log(7) / 2  # the first expert's logits range from log .1 to log .7
    coverage = 0.75 * 7**0.25 + 0.25 * 3**0.75  # max π1/π2 = 7 and max π2/π1 = 3
    printed = 0.03 * (np.exp(eta**2 / 8) * coverage + 4 * 3 / 0.1)
    assert tabular.printed_bound(experts, 0.25, 0.03) == pytest.approx(printed)


def test_without_cover_there_is_no_bound():
    with np.errstate(divide="ignore"):
        experts = np.log([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    assert tabular.printed_bound(experts, 0.5, 0.1) == np.inf


# Steps of the printed proof that do not hold (docs/theory.md)


def test_lemma_e4_needs_the_range_of_the_logits():
    x = np.array([1.0, -1.0])
    left = 0.5 * logsumexp(x) + 0.5 * logsumexp(-x) - logsumexp(0 * x)
    assert left == pytest.approx(np.log(np.cosh(1)))
    assert left > 1 / 8  # B = 1, as printed
    assert left <= 2**2 / 8  # their range is 2


def test_strong_convexity_bounds_the_square_of_the_distance():
    best, near = np.array([0.0, 0.0]), np.array([0.01, 0.0])
    divergence = tabular.kl(log_softmax(near), log_softmax(best))
    sigma = np.exp(log_softmax(near)).min() / 2
    assert np.linalg.norm(near - best) > 2 / sigma * divergence  # as printed
    assert np.sum((near - best) ** 2) <= 2 / sigma * divergence


def test_the_on_policy_term_alone_exceeds_its_printed_bound():
    best = np.log([[0.8, 0.2], [0.2, 0.8]])
    experts = log_softmax(best + np.array([[-0.01, 0.0], [0.0, 0.0]]), axis=-1)
    mixture = np.exp(tabular.mix(experts, [0.5, 0.5]))
    on_policy = 0.5 * (mixture @ (experts - best).T).sum()
    epsilon = tabular.kl(experts, best).max()
    coverage = 0.5 * np.sum([tabular.concentrability(*experts[order]) ** 0.5
                             for order in ([0, 1], [1, 0])])  # fmt: skip
    width = np.ptp(experts, axis=-1).max()
    assert on_policy > 2 * epsilon * np.exp(width**2 / 8) * coverage
