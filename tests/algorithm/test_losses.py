import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from clp_jax.algorithm import losses

VOCABULARY = 3


def test_token_log_probs_against_scipy():
    logits = 30 * np.random.default_rng(0).normal(size=(2, 4, 7))
    tokens = np.random.default_rng(1).integers(0, 7, (2, 4))
    expected = np.take_along_axis(special.log_softmax(logits, axis=-1), tokens[..., None], -1)[
        ..., 0
    ]
    got = losses.token_log_probs(jnp.asarray(logits), jnp.asarray(tokens))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_sampled_kl_sums_the_log_ratio_under_the_mask():
    policy = jnp.array([[-1.0, -2.0, -9.0]])
    reference = jnp.array([[-1.5, -1.0, -3.0]])
    mask = jnp.array([[1.0, 1.0, 0.0]])
    assert losses.sampled_kl(policy, reference, mask) == pytest.approx(0.5 - 1.0)


def test_exact_token_kl_against_scipy():
    rng = np.random.default_rng(0)
    policy, reference = rng.normal(size=(2, 1, 3, 5))
    p, q = special.softmax(policy, -1), special.softmax(reference, -1)
    expected = special.rel_entr(p, q).sum(-1)[:, :2].sum(-1)
    got = losses.exact_token_kl(policy, reference, jnp.array([[1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_regularized_reward_is_line_6():
    rewards, weights = jnp.array([[1.0, 3.0]]), jnp.array([[0.25, 0.75]])
    scalarized = losses.scalarize(rewards, weights)
    # wᵀR = 0.25 + 2.25 = 2.5; (1 − 0.2) 2.5 − 0.2 · 4 = 1.2
    r = losses.regularized_reward(scalarized, jnp.array([4.0]), jnp.array([0.2]))
    assert r == pytest.approx(1.2)


def test_normalize():
    normalised, scale = losses.normalize(jnp.array([1.0, 3.0, 5.0, 7.0]), epsilon=0)
    assert scale == pytest.approx(np.std([1, 3, 5, 7]))
    assert float(jnp.mean(normalised)) == pytest.approx(0, abs=1e-6)
    assert float(jnp.std(normalised)) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(losses.normalize(jnp.array([2.0, 2.0]))[0], [0, 0])


def test_value_loss_and_its_gradient():
    values, rewards = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]])
    assert losses.value_loss(values, rewards) == pytest.approx((1 + 4) / 2)
    np.testing.assert_allclose(jax.grad(losses.value_loss)(values, rewards), [[1.0, -2.0]])
    np.testing.assert_array_equal(jax.grad(losses.value_loss, 1)(values, rewards), [[0, 0]])


def test_low_precision_logits_are_normalised_in_float32():
    logits = (8 * jax.random.normal(jax.random.key(0), (2, 3, 50))).astype(jnp.bfloat16)
    tokens = jnp.array([[1, 2, 3], [40, 5, 6]])
    exact = special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    expected = np.take_along_axis(exact, np.asarray(tokens)[..., None], -1)[..., 0]
    got = losses.token_log_probs(logits, tokens)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_reinforce_has_no_gradient_through_the_advantage():
    log_probs, advantages = jnp.array([-1.0, -3.0]), jnp.array([0.5, -2.0])
    got = jax.grad(losses.reinforce_loss, argnums=(0, 1))(log_probs, advantages)
    np.testing.assert_allclose(got[0], [-0.25, 1.0])
    np.testing.assert_array_equal(got[1], [0, 0])


# A policy of two tokens, small enough to sum over every completion: logits of the first token [V],
# and of the second given the first [V, V].
THETA = {
    "first": jnp.array([0.3, -0.2, 0.5]),
    "second": jnp.array([[0.1, 0.7, -0.4], [0.0, 0.2, 0.9], [-0.3, 0.4, 0.1]]),
}
REFERENCE = jax.tree.map(lambda x: 0.3 - 0.5 * x, THETA)
COMPLETIONS = jnp.array([(a, b) for a in range(VOCABULARY) for b in range(VOCABULARY)])
REWARDS = jnp.array([0.9, 0.1, 0.4, 0.0, 1.0, 0.3, 0.6, 0.2, 0.8])
ALPHA = 0.3
MASK = jnp.ones(COMPLETIONS.shape)


def logits(theta):
    first = jnp.broadcast_to(theta["first"], (len(COMPLETIONS), VOCABULARY))
    return jnp.stack([first, theta["second"][COMPLETIONS[:, 0]]], axis=1)


def log_probs(theta):
    return losses.token_log_probs(logits(theta), COMPLETIONS)


def value(theta):
    """V_{α,R} of Eq. 1, summed over all completions."""
    sequence = log_probs(theta).sum(axis=1)
    ratio = sequence - log_probs(REFERENCE).sum(axis=1)
    return jnp.sum(jnp.exp(sequence) * ((1 - ALPHA) * REWARDS - ALPHA * ratio))


def expected_loss(theta, exact_kl):
    """E over completions of the loss that `train_step.update` takes, without baseline."""
    probabilities = len(COMPLETIONS) * jnp.exp(log_probs(THETA).sum(axis=1))  # of the sampler
    current = log_probs(theta)
    if exact_kl:
        kl = losses.exact_token_kl(logits(theta), logits(REFERENCE), MASK)
    else:
        kl = losses.sampled_kl(log_probs(THETA), log_probs(REFERENCE), MASK)
    r = losses.regularized_reward(REWARDS, jax.lax.stop_gradient(kl), ALPHA)
    loss = losses.reinforce_loss(current.sum(axis=1), probabilities * r)
    return loss + exact_kl * jnp.mean(probabilities * ALPHA * kl)


@pytest.mark.parametrize("exact_kl", [False, True])
def test_expected_gradient_is_that_of_the_objective(exact_kl):
    got = jax.grad(expected_loss)(THETA, exact_kl)
    expected = jax.grad(value)(THETA)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(-g, e, atol=1e-6), got, expected)


def test_an_exact_kl_without_its_gradient_would_be_wrong():
    # Why the default takes the sampled log-ratio: the exact KL alone loses part of the gradient.
    def wrong(theta):
        kl = losses.exact_token_kl(logits(THETA), logits(REFERENCE), MASK)
        r = losses.regularized_reward(REWARDS, kl, ALPHA)
        probabilities = len(COMPLETIONS) * jnp.exp(log_probs(THETA).sum(axis=1))
        return losses.reinforce_loss(log_probs(theta).sum(axis=1), probabilities * r)

    assert not np.allclose(
        -jax.grad(wrong)(THETA)["second"], jax.grad(value)(THETA)["second"], atol=1e-2
    )


@pytest.mark.parametrize("size", [2, 3, 33, 100])
@pytest.mark.parametrize("value", [0.1, 0.7, 3.3])
def test_equal_advantages_are_not_blown_up(size, value):
    normalised, _ = losses.normalize(jnp.full(size, value))
    np.testing.assert_allclose(normalised, 0, atol=0.1)
