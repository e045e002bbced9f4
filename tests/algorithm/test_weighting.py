import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clp_jax.algorithm import weighting as w

ALPHA_MINS = st.floats(1e-3, 0.5)


@given(ALPHA_MINS, st.floats(0, 1))
def test_softmax_mix_is_the_mixing_of_optimal_logits(alpha_min, u):
    # App. A.4: ζ_α = ζ_ref + (1 − α) R / α = (1 − β) ζ_αmin + β ζ_ref, for any R.
    alpha = alpha_min + u * (1 - alpha_min)
    beta = w.SoftmaxKLMix(alpha_min)(alpha)
    assert (1 - beta) * (1 - alpha_min) / alpha_min == pytest.approx((1 - alpha) / alpha, abs=1e-9)


@given(ALPHA_MINS, st.floats(0, 1))
def test_inverse_is_an_inverse(alpha_min, beta):
    mix = w.SoftmaxKLMix(alpha_min)
    assert mix(mix.inverse(beta)) == pytest.approx(beta, abs=1e-9)
    assert alpha_min <= mix.inverse(beta) <= 1 + 1e-12


def test_end_points_and_median_of_the_softmax_mix():
    mix = w.SoftmaxKLMix(0.01)
    assert mix(0.01) == 0
    assert mix(1.0) == 1
    assert mix.inverse(0.0) == pytest.approx(0.01)  # the printed formula gives 0 here
    assert mix.inverse(0.5) == pytest.approx(2 * 0.01 / 1.01)  # the median the paper states


def test_linear_mix_is_the_identity():
    mix = w.LinearKLMix(0.01)
    assert (mix(0.3), mix.inverse(0.3)) == (0.3, 0.3)


@pytest.mark.parametrize("mix", [w.SoftmaxKLMix(0.02), w.LinearKLMix(0.02)])
def test_inverse_cdf_makes_beta_uniform(mix):
    keys = jax.random.split(jax.random.key(0), 4000)
    alpha = np.asarray(jax.vmap(w.InverseCDFKLWeight(mix))(keys), np.float64)
    assert alpha.min() >= 0.02 - 1e-6
    assert alpha.max() <= 1 + 1e-6
    lowest = float(mix(0.02))
    beta = (mix(alpha) - lowest) / (1 - lowest)
    assert stats.kstest(beta, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("concentration", [0.3, 1.0, (2.0, 0.5, 1.0)])
def test_dirichlet_moments(concentration):
    sampler = w.DirichletRewardWeights(concentration, 3)
    draws = np.asarray(jax.vmap(sampler)(jax.random.split(jax.random.key(1), 20_000)))
    expected = stats.dirichlet(np.broadcast_to(concentration, 3))
    np.testing.assert_allclose(draws.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(draws.mean(axis=0), expected.mean(), atol=0.01)
    np.testing.assert_allclose(draws.var(axis=0), expected.var(), atol=0.01)


def test_mixture_draws_from_its_parts():
    corner, centre = w.FixedRewardWeights((1.0, 0.0)), w.FixedRewardWeights((0.5, 0.5))
    sampler = w.MixtureSampler((corner, centre), (0.25, 0.75))
    draws = np.asarray(jax.vmap(sampler)(jax.random.split(jax.random.key(2), 4000)))
    assert (draws[:, 0] == 1).mean() == pytest.approx(0.25, abs=0.03)


def test_sample_weightings_are_independent_draws():
    draws = w.sample_weightings(
        jax.random.key(0), w.InverseCDFKLWeight(), w.DirichletRewardWeights(1.0, 2), count=8
    )
    assert draws.kl_weight.shape == (8,)
    assert draws.reward_weights.shape == (8, 2)
    assert len(np.unique(draws.kl_weight)) == 8
    assert len(np.unique(draws.reward_weights[:, 0])) == 8
    assert draws[3].kl_weight == draws.kl_weight[3]


def test_one_reward_has_weight_one():
    assert w.DirichletRewardWeights(1.0, 1)(jax.random.key(0)) == jnp.ones([1])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((0.5, 0.3, 0.2), "has 3 weights, but there are 2 rewards"),
        ((1.5, -0.5), "negative"),
        ((0.5, 0.6), "sums to 1.1"),
        ((float("nan"), 0.5), "not finite"),
        ((float("inf"), 0.5), "not finite"),
    ],
)
def test_bad_reward_weights(weights, message):
    with pytest.raises(ValueError, match=f"--reward_weights=.*{message}"):
        w.check_reward_weights(weights, 2, "--reward_weights")


@pytest.mark.parametrize("alpha", [0.009, 1.01, -0.1, float("nan")])
def test_bad_kl_weight(alpha):
    with pytest.raises(ValueError, match=r"--kl_weight=.* is outside \[0.01, 1\]"):
        w.check_kl_weight(alpha, 0.01, "--kl_weight")


@pytest.mark.parametrize("alpha_min", [0, 1, -1, float("nan")])
def test_bad_kl_weight_min(alpha_min):
    with pytest.raises(ValueError, match=r"kl_weight_min=.* is outside \(0, 1\)"):
        w.SoftmaxKLMix(alpha_min)


def test_fixed_kl_weight_below_alpha_min():
    part = w.MixtureSampler((w.FixedKLWeight(0.001), w.FixedKLWeight(0.5)), (0.5, 0.5))
    with pytest.raises(ValueError, match="FixedKLWeight.kl_weight=0.001 is outside"):
        w.check_kl_sampler(part, w.SoftmaxKLMix(0.01))


def test_sampler_with_another_mix_than_the_policy():
    with pytest.raises(ValueError, match="differs from KL_MIX"):
        w.check_kl_sampler(w.InverseCDFKLWeight(w.SoftmaxKLMix(0.1)), w.SoftmaxKLMix(0.01))


def test_samplers_are_fitted_to_the_rewards():
    fixed = w.FixedRewardWeights((0.5, 0.5))
    fitted = w.for_objectives(w.MixtureSampler((fixed, w.DirichletRewardWeights()), (0.5, 0.5)), 2)
    assert fitted.samplers[1].num_objectives == 2
    with pytest.raises(ValueError, match="has 2 weights, but there are 3 rewards"):
        w.for_objectives(fixed, 3)
    with pytest.raises(ValueError, match="has 2 entries, but there are 3 rewards"):
        w.for_objectives(w.DirichletRewardWeights((1.0, 2.0)), 3)


@pytest.mark.parametrize("concentration", [0, -1.0, float("nan"), (1.0, 0.0)])
def test_bad_concentration(concentration):
    with pytest.raises(ValueError, match="must be positive"):
        w.DirichletRewardWeights(concentration)


def test_typed_weights_are_renormalised():
    assert sum(w.check_reward_weights((0.333, 0.333, 0.3335), 3)) == pytest.approx(1, abs=1e-12)
    fixed = w.for_objectives(w.FixedRewardWeights((0.3335, 0.666)), 2)
    assert sum(fixed.reward_weights) == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match="sums to 0.99"):
        w.check_reward_weights((0.5, 0.49), 2)


def test_kl_weight_and_reward_weights_are_independent():
    def one_number(key):
        return jax.random.uniform(key)

    def two_numbers(key):
        first = jax.random.uniform(key)
        return jnp.stack([first, 1 - first])

    drawn = w.sample_weightings(jax.random.key(0), one_number, two_numbers, 2000)
    assert abs(np.corrcoef(drawn.kl_weight, drawn.reward_weights[:, 0])[0, 1]) < 0.1
    assert len(np.unique(drawn.kl_weight)) > 1900  # and from draw to draw


def test_which_sampler_of_a_mixture_says_nothing_of_its_draw():
    mixture = w.MixtureSampler((jax.random.uniform, lambda key: 2 + jax.random.uniform(key)),
                               (0.5, 0.5))  # fmt: skip
    draws = np.asarray(jax.vmap(mixture)(jax.random.split(jax.random.key(0), 4000)))
    for low in (0, 2):
        of_one = draws[(draws >= low) & (draws < low + 1)] - low
        assert stats.kstest(of_one, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("alpha", "weights", "message"),
    [
        (0.1, (0.9, 0.9), "reward_weights=0.9,0.9 sums to 1.8; reward weights must sum to 1"),
        (0.1, (1.5, -0.5), "negative weight"),
        (0.1, (float("nan"), 1), "not finite"),
        (-0.1, (0.5, 0.5), r"kl_weight=-0.1 is outside \[0, 1\]"),
        (1.5, (0.5, 0.5), r"kl_weight=1.5 is outside \[0, 1\]"),
        (float("nan"), (0.5, 0.5), "kl_weight=nan is outside"),
        ([0.1, 0.2], [(1, 0), (0.4, 0.4)], "sums to 0.8"),
        ([0.1, 1.2], [(1, 0), (0, 1)], "kl_weight=1.2"),
        ([0.1, 0.2], (0.5, 0.5), r"shape \(2,\) and reward_weights of shape \(2,\); valid are"),
        ([0.1], [(1, 0), (0, 1)], r"shape \(1,\) and reward_weights of shape \(2, 2\)"),
        (0.1, 1.0, r"shape \(\) and reward_weights of shape \(\)"),
        (0.1, [[[1.0]]], r"shape \(1, 1, 1\)"),
    ],
)
def test_numbers_that_are_no_weighting(alpha, weights, message):
    with pytest.raises(ValueError, match=message):
        w.Weighting.of(alpha, weights)


def test_a_batch_of_weightings():
    batch = w.Weighting.of(0.25, [(1, 0), (0.5, 0.5), (0, 1)])
    assert batch.kl_weight.tolist() == [0.25] * 3
    assert batch.reward_weights.tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    each = w.Weighting.of([0.25, 0.5], [(1, 0), (0, 1)])
    assert each.kl_weight.tolist() == [0.25, 0.5]
    one = w.Weighting.of(0.01, (0.3, 0.7))  # float32 rounds down what is α_min
    assert (one.kl_weight.shape, one.reward_weights.shape) == ((), (2,))
    assert w.check_kl_weight(float(one.kl_weight), 0.01) == float(np.float32(0.01))
    with pytest.raises(ValueError, match="outside"):
        w.check_kl_weight(0.00999, 0.01)


def drawn(function):
    return lambda key: jnp.asarray(function(jax.random.uniform(key)))


GOOD_ALPHA, GOOD_W = drawn(lambda u: 0.01 + 0.99 * u), drawn(lambda u: jnp.stack([u, 1 - u]))


@pytest.mark.parametrize(
    ("alpha", "weights", "message"),
    [
        (drawn(lambda u: 0.2 * u), GOOD_W, r"a draw of KL_WEIGHT_SAMPLER=.*\[0.01, 1\]"),
        (drawn(lambda u: 2 * u + 0.01), GOOD_W, "a draw of KL_WEIGHT_SAMPLER="),
        (drawn(lambda u: u[None] + 0.1), GOOD_W, r"draws arrays of shape \(1,\); valid is \(\)"),
        (GOOD_ALPHA, drawn(lambda u: jnp.stack([u, u])), "a draw of REWARD_WEIGHTS_SAMPLER=.*sums"),
        (GOOD_ALPHA, drawn(lambda u: jnp.stack([1 + u, -u])), "negative"),
        (
            GOOD_ALPHA,
            drawn(lambda u: jnp.ones(1)),
            r"of shape \(1,\); valid is \(2,\)",
        ),
        (w.FixedKLWeight(0.01), drawn(lambda u: jnp.stack([u, u])), "sums"),
        (
            w.MixtureSampler((drawn(lambda u: 2 * u + 0.01),) * 2, (0.5, 0.5)),
            GOOD_W,
            "KL_WEIGHT_SA",
        ),
    ],
)
def test_samplers_of_ones_own_are_checked_by_their_draws(alpha, weights, message):
    with pytest.raises(ValueError, match=message):
        w.check_draws(alpha, weights, w.SoftmaxKLMix(0.01), 2)


def test_good_samplers_pass():
    mix = w.SoftmaxKLMix(0.01)
    w.check_draws(GOOD_ALPHA, GOOD_W, mix, 2)
    w.check_draws(w.InverseCDFKLWeight(mix), w.DirichletRewardWeights(0.3, 2), mix, 2)
    w.check_draws(w.FixedKLWeight(0.01), GOOD_W, mix, 2)
