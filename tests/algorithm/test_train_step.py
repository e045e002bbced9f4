import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clp_jax.algorithm import subset, train_step
from clp_jax.algorithm.conditioning import condition
from clp_jax.algorithm.rollout import completion_log_probs, over_weightings
from clp_jax.algorithm.train_step import CLP, init_train_state
from clp_jax.algorithm.weighting import Weighting
from clp_jax.models.decoding import Decoding
from clp_jax.models.sampling import sample
from clp_jax.models.value import predict_values

M = 2

generate = jax.jit(train_step.generate, static_argnums=0)
score = jax.jit(train_step.score, static_argnums=0)
update = jax.jit(train_step.update, static_argnums=0)
values_of = jax.jit(predict_values, static_argnums=(0, 3))
log_probs_of = jax.jit(completion_log_probs, static_argnums=0)
conditioned = jax.jit(condition, static_argnums=3)


@pytest.fixture(scope="module")
def clp(module):
    return CLP(
        module=module,
        decoding=Decoding(max_decode_length=5),
        policy_optimizer=optax.sgd(1.0),
        value_optimizer=optax.sgd(1.0),
    )


def weightings(alphas, ws):
    return Weighting(np.asarray(alphas, np.float32), np.asarray(ws, np.float32))


def moved_state(clp, reference):
    """A state whose replicas and shared parameters differ from the reference."""
    state = jax.jit(lambda reference: init_train_state(clp, reference, subset.attention(), M))(
        reference
    )
    rng = np.random.default_rng(5)

    def move(x):
        return jnp.asarray(x + 0.1 * rng.normal(size=x.shape).astype(np.float32))

    return state.replace(params=jax.tree.map(move, jax.device_get(state.params)))


@pytest.fixture(scope="module")
def state(clp, reference):
    return moved_state(clp, reference)


def count_token(rollout, token):
    return jnp.sum((rollout.completions == token) * rollout.mask, axis=1)


def token_rewards(rollout):
    """Rewards that pull apart: how often tokens 7 and 9 occur."""
    return jnp.stack([count_token(rollout, 7), count_token(rollout, 9)], axis=1) / 5


ONE = weightings([0.2], [[0.3, 0.7]])


def test_rollout_is_scored_under_policy_and_reference(clp, state, reference, prompts):
    rollout = generate(clp, state.params, reference, prompts, ONE, jax.random.key(1))
    rollout = score(clp, reference, rollout)
    for tokens, mask in zip(rollout.completions.tolist(), rollout.mask.tolist(), strict=True):
        length = tokens.index(1) + 1 if 1 in tokens else len(tokens)  # EOS included
        assert mask == [1.0] * length + [0.0] * (len(tokens) - length)
    policy = conditioned(state.params, reference, ONE[0], clp.kl_mix)
    for params, log_probs in (
        (policy, rollout.log_probs),
        (reference, rollout.reference_log_probs),
    ):
        scored = log_probs_of(clp.module, params, prompts, rollout.completions, rollout.mask)
        np.testing.assert_allclose(log_probs, scored, atol=1e-5)
    assert not np.allclose(rollout.log_probs, rollout.reference_log_probs, atol=0.1)


def surrogate(clp, state, reference, rollout, rewards, weighting):
    """Algorithm 1 lines 6-7 and App. B.1 again, one example at a time, in numpy where it can be."""
    alpha, w = float(weighting.kl_weight[0]), np.asarray(weighting.reward_weights[0])
    values = np.asarray(values_of(clp.module, state.value_params, rollout.prompts, M))
    advantages = []
    for b in range(len(rewards)):
        length = int(rollout.mask[b].sum())
        kl = sum(
            float(rollout.log_probs[b, t]) - float(rollout.reference_log_probs[b, t])
            for t in range(length)
        )
        r = (1 - alpha) * float(w @ np.asarray(rewards[b])) - alpha * kl
        advantages.append(r - float(w @ values[b]))
    advantages = (np.asarray(advantages) - np.mean(advantages)) / (np.std(advantages) + 1e-5)

    def loss(params):
        policy = condition(params, reference, weighting[0], clp.kl_mix)
        log_probs = completion_log_probs(
            clp.module, policy, rollout.prompts, rollout.completions, rollout.mask
        )
        return -sum(a * jnp.sum(log_probs[b]) for b, a in enumerate(advantages)) / len(advantages)

    return loss


@functools.partial(jax.jit, static_argnums=0)
def descended(loss, params):
    """The loss, and the parameters one gradient step of length 1 further."""
    value, grads = jax.value_and_grad(loss)(params)
    return value, jax.tree.map(lambda p, g: p - g, params, grads)


def test_update_is_one_gradient_step_on_policy_and_value(clp, state, reference, prompts):
    rollout = generate(clp, state.params, reference, prompts, ONE, jax.random.key(3))
    rollout = jax.device_get(score(clp, reference, rollout))
    rewards = np.random.default_rng(0).uniform(size=(4, M)).astype(np.float32)
    after, metrics = update(clp, state, reference, rollout, rewards, ONE, jax.random.key(0))
    loss = surrogate(clp, state, reference, rollout, rewards, ONE)
    value, expected = descended(loss, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), after.params, expected)
    assert metrics["loss/policy"] == pytest.approx(float(value), abs=1e-5)

    def value_error(value_params):
        return jnp.mean((predict_values(clp.module, value_params, prompts, M) - rewards) ** 2)

    _, expected = descended(value_error, state.value_params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), after.value_params, expected
    )
    assert after.step == 1


def test_update_of_groups_weighs_each_example_by_its_own_weighting(clp, state, reference, prompts):
    pair = weightings([0.02, 0.6], [[0.9, 0.1], [0.2, 0.8]])
    rollout = generate(clp, state.params, reference, prompts, pair, jax.random.key(4))
    rollout = jax.device_get(score(clp, reference, rollout))
    rewards = np.random.default_rng(1).uniform(size=(4, M)).astype(np.float32)
    _, metrics = update(clp, state, reference, rollout, rewards, pair, jax.random.key(0))
    values = np.asarray(values_of(clp.module, state.value_params, prompts, M))
    objectives, advantages = [], []
    for b in range(4):
        alpha, w = float(pair.kl_weight[b // 2]), np.asarray(pair.reward_weights[b // 2])
        ratio = (rollout.log_probs[b] - rollout.reference_log_probs[b]) * rollout.mask[b]
        objectives.append((1 - alpha) * float(w @ rewards[b]) - alpha * float(ratio.sum()))
        advantages.append(objectives[-1] - float(w @ values[b]))
    assert metrics["objective/regularized"] == pytest.approx(np.mean(objectives), abs=1e-4)
    advantages = (np.asarray(advantages) - np.mean(advantages)) / (np.std(advantages) + 1e-5)
    log_probs = [float((rollout.log_probs[b] * rollout.mask[b]).sum()) for b in range(4)]
    expected = -np.mean(advantages * log_probs)
    assert metrics["loss/policy"] == pytest.approx(expected, abs=1e-3)


def test_an_objective_with_no_weight_does_not_move(clp, state, reference, prompts):
    corner = weightings([0.01], [[1.0, 0.0]])
    step = jax.jit(functools.partial(train_step.train_step, clp, rewards=token_rewards))
    after, _ = step(state, reference, prompts, corner, jax.random.key(0))
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).reshape(M, -1).max(axis=1),
        *jax.device_get((after.params.conditioned, state.params.conditioned)),
    )
    assert all(move[1] == 0 for move in jax.tree.leaves(moved))
    assert any(move[0] > 0 for move in jax.tree.leaves(moved))


def test_groups_of_a_batch_equal_separate_batches(clp, state, reference, prompts):
    pair = weightings([0.02, 0.5], [[0.9, 0.1], [0.2, 0.8]])
    together = generate(clp, state.params, reference, prompts, pair, jax.random.key(4))
    keys = jax.random.split(jax.random.key(4), 4)
    for group in (0, 1):
        half = slice(2 * group, 2 * group + 2)
        policy = conditioned(state.params, reference, pair[group], clp.kl_mix)
        alone = jax.jit(sample, static_argnums=(0, 4))(
            clp.module, policy, prompts[half], keys[half], clp.decoding
        )
        np.testing.assert_array_equal(together.completions[half], alone.tokens)
        np.testing.assert_allclose(together.log_probs[half], alone.log_probs, atol=1e-5)


def test_gradient_of_groups_is_the_sum_over_groups(clp, state, reference, prompts):
    pair = weightings([0.02, 0.5], [[0.9, 0.1], [0.2, 0.8]])
    rollout = generate(clp, state.params, reference, prompts, pair, jax.random.key(4))

    def of_group(weighting, prompts, completions, mask, params):
        policy = condition(params, reference, weighting, clp.kl_mix)
        return completion_log_probs(clp.module, policy, prompts, completions, mask).sum(axis=1)

    def together(params):
        batch = (rollout.prompts, rollout.completions, rollout.mask)
        return over_weightings(functools.partial(of_group, params=params), pair, *batch).sum()

    def apart(params):
        return sum(
            of_group(
                pair[g], *(x[2 * g : 2 * g + 2] for x in
                (rollout.prompts, rollout.completions, rollout.mask)), params
            ).sum()
            for g in (0, 1)
        )  # fmt: skip

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        jax.jit(jax.grad(together))(state.params),
        jax.jit(jax.grad(apart))(state.params),
    )


def test_compiles_once_for_twenty_weightings_and_moves_nothing_implicitly(clp, reference, prompts):
    generate = jax.jit(functools.partial(train_step.generate, clp))
    score = jax.jit(functools.partial(train_step.score, clp))
    update = jax.jit(functools.partial(train_step.update, clp), donate_argnums=0)
    state = jax.block_until_ready(moved_state(clp, reference))
    key = jax.random.key(0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        w = rng.dirichlet([1.0, 1.0]).astype(np.float32)
        weighting = jax.device_put(Weighting(rng.uniform(0.01, 1, 1).astype(np.float32), w[None]))
        with jax.transfer_guard("disallow"):
            rollout = score(reference, generate(state.params, reference, prompts, weighting, key))
            completions = jax.device_get(rollout.completions)
            rewards = jax.device_put((completions == 7).astype(np.float32)[:, :M])
            state, metrics = update(state, reference, rollout, rewards, weighting, key)
            jax.device_get(metrics)
    assert generate._cache_size() == score._cache_size() == update._cache_size() == 1
    assert int(state.step) == 20


@pytest.mark.parametrize("exact_kl", [False, True])
def test_training_steers(module, reference, prompts, exact_kl):
    clp = CLP(
        module=module,
        decoding=Decoding(max_decode_length=5),
        policy_optimizer=optax.adam(5e-3),
        value_optimizer=optax.adam(5e-3),
        exact_kl=exact_kl,
    )
    prompts = jnp.tile(prompts, (8, 1))
    init = functools.partial(init_train_state, clp, subset=subset.attention(), num_objectives=M)
    state = jax.jit(init)(reference)

    def rewards_at(w):
        rollout = generate(
            clp, state.params, reference, prompts, weightings([0.01], [w]), jax.random.key(1000)
        )
        return np.mean(token_rewards(rollout), axis=0)

    before = rewards_at((0.5, 0.5))
    step = jax.jit(functools.partial(train_step.train_step, clp, rewards=token_rewards))
    rng = np.random.default_rng(0)
    for i in range(150):
        w = rng.dirichlet([1.0, 1.0])
        state, metrics = step(state, reference, prompts, weightings([0.01], [w]), jax.random.key(i))
        assert np.isfinite(metrics["loss/policy"])

    first, second = rewards_at((1, 0)), rewards_at((0, 1))
    assert first[0] > second[0] + 0.3
    assert second[1] > first[1] + 0.3
    assert first[0] > before[0] + 0.3
    assert second[1] > before[1] + 0.3


BLOCKED = """
import functools, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "seqio", "gin", "clu", "orbax", "matplotlib"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import jax, jax.numpy as jnp
from clp_jax.algorithm import subset, train_step
from clp_jax.models.decoding import Decoding
from clp_jax.models.sampling import sample
from clp_jax.models.t5 import T5Config, Transformer
from clp_jax.algorithm.weighting import Weighting

module = Transformer(T5Config(vocab_size=8, emb_dim=8, num_heads=1, num_encoder_layers=1,
                              num_decoder_layers=1, head_dim=8, mlp_dim=8))
tokens = jnp.ones([2, 3], jnp.int32)
init = jax.jit(functools.partial(module.init, enable_dropout=False))
reference = init(jax.random.key(0), tokens, tokens, tokens)["params"]
clp = train_step.CLP(module, Decoding(max_decode_length=3))
state = jax.jit(lambda r: train_step.init_train_state(clp, r, subset.full(), 2))(reference)
weighting = Weighting(jnp.array([0.1]), jnp.array([[0.5, 0.5]]))
step = functools.partial(train_step.train_step, clp, rewards=lambda r: jnp.ones([2, 2]))
state, metrics = jax.jit(step)(state, reference, tokens, weighting, jax.random.key(0))
print(int(state.step), sorted(metrics))
"""


def test_core_runs_without_tensorflow_seqio_and_gin():
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 [")


@pytest.mark.parametrize(
    ("weighting", "count", "columns", "message"),
    [
        (([0.1], [[0.5, 0.5]]), 4, 1, r"rewards \(4, 1\); valid is \(B, m\) = \(4, 2\)"),
        (([0.1], [[1.0]]), 4, 1, r"reward_weights \(1, 1\), but φ has 2 replicas"),
        (([0.1], [[0.5, 0.5]]), 1, 2, "a batch of 1 and k = 1 weightings; B is 2 or more"),
        (([0.1] * 3, [[0.5, 0.5]] * 3), 4, 2, "a batch of 4 and k = 3 .* a multiple of k"),
        ((0.1, [0.5, 0.5]), 4, 2, r"kl_weight \(\) and reward_weights \(2,\); valid are \(k,\)"),
        (([0.1] * 2, [[0.5, 0.5]]), 4, 2, r"kl_weight \(2,\) and reward_weights \(1, 2\)"),
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_shapes_that_do_not_go_together(
    clp, state, reference, prompts, weighting, count, columns, message, traced
):
    weighting = Weighting(*map(jnp.array, weighting))
    step = functools.partial(
        train_step.train_step, clp, rewards=lambda rollout: jnp.ones([count, columns])
    )
    arguments = (state, reference, prompts[:count], weighting, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step, *arguments) if traced else step(*arguments)
