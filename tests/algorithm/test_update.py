"""One update, each part told from the others: whose prompts, which KL, dropout, optimizers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from clp_jax.algorithm import subset, train_step
from clp_jax.algorithm.conditioning import condition
from clp_jax.algorithm.rollout import Rollout, completion_logits
from clp_jax.algorithm.train_step import CLP, init_train_state
from clp_jax.algorithm.weighting import Weighting
from clp_jax.models.decoding import Decoding
from clp_jax.models.t5 import Transformer
from clp_jax.models.value import predict_values

M = 2
PLAIN = jnp.array([[15, 1, 0], [16, 17, 1], [18, 1, 0], [19, 20, 1]], jnp.int32)
COMPLETIONS = jnp.array(
    [[7, 1, 0, 0, 0], [5, 0, 5, 5, 5], [0, 3, 4, 0, 2], [2, 2, 1, 0, 0]], jnp.int32
)
MASK = jnp.array([[1, 1, 0, 0, 0], [1] * 5, [1] * 5, [1, 1, 1, 0, 0]], jnp.float32)
REWARDS = np.array([[0.1, 0.9], [0.7, 0.2], [0.4, 0.4], [0.0, 0.6]], np.float32)
ONE = Weighting(np.array([0.2], np.float32), np.array([[0.3, 0.7]], np.float32))

gradients = jax.jit(train_step.gradients, static_argnums=0)
update = jax.jit(train_step.update, static_argnums=0)
logits_of = jax.jit(completion_logits, static_argnums=0)


def make_clp(module, **settings):
    sgd = optax.sgd(1.0)
    return CLP(module, Decoding(5), policy_optimizer=sgd, value_optimizer=sgd, **settings)


def moved(tree, scale=0.1):
    rng = np.random.default_rng(5)
    return jax.tree.map(
        lambda x: jnp.asarray(x + scale * rng.normal(size=x.shape).astype(np.float32)), tree
    )


@pytest.fixture(scope="module")
def state(module, reference):
    init = functools.partial(init_train_state, make_clp(module), subset=subset.attention())
    made = jax.jit(functools.partial(init, num_objectives=M))(reference)
    return made.replace(params=moved(made.params), value_params=moved(made.value_params))


@pytest.fixture
def rollout(module, reference, prompts):
    """What was sampled from prompts that have weights in them, of which PLAIN has none."""
    made = Rollout(prompts, COMPLETIONS, MASK, 0.1 * COMPLETIONS * MASK - MASK, PLAIN)
    return train_step.score(make_clp(module), reference, made)


def token_log_probs(logits):
    return np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)), np.float64)


def advantages_of(state, module, kl, alpha=0.2, w=(0.3, 0.7)):
    """App. B.1 in numpy; also the scale that advantages are divided by."""
    values = np.asarray(predict_values(module, state.value_params, PLAIN, M), np.float64)
    raw = (1 - alpha) * REWARDS @ np.array(w) - alpha * kl - values @ np.array(w)
    return (raw - raw.mean()) / (raw.std() + 1e-5), raw.std() + 1e-5


@pytest.mark.parametrize("exact_kl", [False, True])
def test_each_network_reads_its_own_prompts(module, reference, state, rollout, prompts, exact_kl):
    clp = make_clp(module, exact_kl=exact_kl)

    def logits(params):
        policy = condition(params, reference, ONE[0], clp.kl_mix)
        return completion_logits(module, policy, prompts, COMPLETIONS, MASK)

    policy = token_log_probs(logits(state.params))
    fixed = token_log_probs(logits_of(module, reference, PLAIN, COMPLETIONS, MASK))
    if exact_kl:
        token_kl = special.rel_entr(np.exp(policy), np.exp(fixed)).sum(axis=-1)
    else:
        log_ratio = np.take_along_axis(policy - fixed, np.asarray(COMPLETIONS)[..., None], -1)
        token_kl = log_ratio[..., 0]
    kl = (token_kl * MASK).sum(axis=1)
    advantages, scale = advantages_of(state, module, kl)

    def loss(params):
        predicted = jax.nn.log_softmax(logits(params))
        chosen = jnp.take_along_axis(predicted, COMPLETIONS[..., None], -1)[..., 0]
        total = -jnp.mean(jnp.asarray(advantages, jnp.float32) * jnp.sum(chosen * MASK, axis=1))
        if exact_kl:
            token_kl = jnp.sum(jnp.exp(predicted) * (predicted - fixed), axis=-1)
            total += jnp.mean(0.2 * jnp.sum(token_kl * MASK, axis=1)) / scale
        return total

    def value_error(value_params):
        return jnp.mean((predict_values(module, value_params, PLAIN, M) - REWARDS) ** 2)

    arguments = (clp, state, reference, rollout, REWARDS, ONE, jax.random.key(0))
    policy_grads, value_grads, metrics = gradients(*arguments)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-5)
    jax.tree.map(close, policy_grads, jax.jit(jax.grad(loss))(state.params))
    jax.tree.map(close, value_grads, jax.jit(jax.grad(value_error))(state.value_params))
    assert float(metrics["objective/kl"]) == pytest.approx(float(kl.mean()), rel=1e-4)
    metrics = jax.device_get(update(*arguments)[1])
    norms = [float(optax.tree.norm(grads)) for grads in (policy_grads, value_grads)]
    assert metrics["gradient/policy_norm"] == pytest.approx(norms[0], rel=1e-5)
    assert metrics["gradient/value_norm"] == pytest.approx(norms[1], rel=1e-5)
    assert norms[0] != pytest.approx(norms[1], rel=0.01)
    assert metrics["rollout/ended"] == 0.5  # of the second and the third none has EOS
    assert metrics["rollout/length"] == (2 + 5 + 5 + 3) / 4


@pytest.mark.parametrize("exact_kl", [False, True])
def test_dropout_is_in_the_gradient_and_not_in_the_sampled_kl(
    module, reference, state, rollout, exact_kl
):
    noisy = Transformer(dataclasses.replace(module.config, dropout_rate=0.4))

    def made(module, key, **settings):
        clp = make_clp(module, exact_kl=exact_kl, **settings)
        return gradients(clp, state, reference, rollout, REWARDS, ONE, jax.random.key(key))

    without, _, _ = made(module, 0)
    off, _, _ = made(noisy, 0)
    first, values, metrics = made(noisy, 0, dropout=True)
    again, _, _ = made(noisy, 0, dropout=True)
    other, other_values, _ = made(noisy, 1, dropout=True)

    def distance(a, b):
        gap = optax.tree.norm(jax.tree.map(jnp.subtract, a, b))
        return float(gap / optax.tree.norm(b))

    assert distance(off, without) == distance(again, first) == 0
    assert distance(first, without) > 0.05
    assert distance(other, first) > 0.05
    assert distance(values, other_values) == 0  # the value network has no dropout
    if not exact_kl:  # what was sampled was sampled without dropout
        ratio = (rollout.log_probs - rollout.reference_log_probs) * MASK
        expected = float(jnp.mean(jnp.sum(ratio, axis=1)))
        assert float(metrics["objective/kl"]) == pytest.approx(expected, rel=1e-5)


def test_dropout_differs_between_groups(module, reference, state, rollout):
    """Two groups that are the same but for their keys."""
    noisy = Transformer(dataclasses.replace(module.config, dropout_rate=0.4))
    clp = make_clp(noisy, dropout=True)
    twice = jax.tree.map(lambda x: jnp.concatenate([x[:2], x[:2]]), rollout)
    pair = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), ONE)
    log_probs, _ = jax.jit(train_step._log_probs_and_kl, static_argnums=0)(
        clp, state.params, reference, twice, pair, jax.random.key(0)
    )
    assert abs(float(log_probs[0] - log_probs[2])) > 1e-3


def test_optimizers_keep_their_statistics(module, reference, state, rollout):
    momentum = optax.sgd(1.0, momentum=0.9)
    clp = CLP(module, Decoding(5), policy_optimizer=momentum, value_optimizer=momentum)
    fresh = init_train_state(clp, reference, subset.attention(), M)
    before = fresh.replace(params=state.params, value_params=state.value_params)
    rest = (reference, rollout, REWARDS, ONE, jax.random.key(0))
    between, _ = update(clp, before, *rest)
    after, _ = update(clp, between, *rest)
    assert int(after.step) == 2
    first = gradients(clp, before, *rest)[:2]
    second = gradients(clp, between, *rest)[:2]
    expected = jax.tree.map(
        lambda x, g, h: x - (h + 0.9 * g), (between.params, between.value_params), first, second
    )
    close = functools.partial(np.testing.assert_allclose, atol=2e-5)
    jax.tree.map(close, (after.params, after.value_params), expected)
    assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(first[0])) > 1e-4


def test_the_state_shares_no_array_with_the_reference(module, reference):
    """A donated state must not take the reference with it."""
    made = init_train_state(make_clp(module), reference, subset.attention(), M)
    own = {id(leaf) for leaf in jax.tree.leaves(reference)}
    assert not own & {id(leaf) for leaf in jax.tree.leaves((made.params, made.value_params))}
