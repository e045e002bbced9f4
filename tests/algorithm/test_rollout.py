"""Scoring of completions, some positions at a time or rematerialised, and their repetition."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clp_jax.algorithm import losses, subset, train_step
from clp_jax.algorithm import rollout as rollout_lib
from clp_jax.algorithm.weighting import Weighting
from clp_jax.models.decoding import Decoding
from clp_jax.models.t5 import Transformer

COMPLETIONS = jnp.array(
    [[3, 4, 5, 6, 1], [7, 8, 1, 0, 0], [9, 1, 0, 0, 0], [10, 11, 12, 13, 14]], jnp.int32
)
MASK = (COMPLETIONS > 0).astype(jnp.float32)


def log_probs_and_grads(module, params, prompts, dropout_key=None):
    """Σ_bt c_bt log π(y_bt), with a different factor for each token, and its gradient."""
    factors = jnp.arange(1.0, 21.0).reshape(4, 5)

    def total(params):
        log_probs = rollout_lib.completion_log_probs(
            module, params, prompts, COMPLETIONS, MASK, dropout_key
        )
        return jnp.sum(factors * log_probs), log_probs

    (_, log_probs), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return log_probs, grads


def assert_close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


@pytest.mark.parametrize("at_once", [1, 4 * 24 * 2, 4 * 24 * 3])
@pytest.mark.parametrize("tied", [False, True])
def test_chunks_are_the_whole(module, reference, prompts, monkeypatch, at_once, tied):
    module = Transformer(dataclasses.replace(module.config, logits_via_embedding=tied))
    monkeypatch.setattr(rollout_lib, "_LOGITS_AT_ONCE", 10**9)
    whole = log_probs_and_grads(module, reference, prompts)
    logits = jax.jit(rollout_lib.completion_logits, static_argnums=0)(
        module, reference, prompts, COMPLETIONS, MASK
    )
    expected = losses.token_log_probs(logits, COMPLETIONS) * MASK
    np.testing.assert_allclose(whole[0], expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(rollout_lib, "_LOGITS_AT_ONCE", at_once)
    assert_close(log_probs_and_grads(module, reference, prompts), whole)


def test_logits_of_all_positions_never_exist(module, reference, prompts, monkeypatch):
    def program():
        return jax.jit(lambda p: log_probs_and_grads(module, p, prompts)).lower(reference).as_text()

    monkeypatch.setattr(rollout_lib, "_LOGITS_AT_ONCE", 10**9)
    assert "tensor<4x5x24xf32>" in program()
    monkeypatch.setattr(rollout_lib, "_LOGITS_AT_ONCE", 4 * 24 * 2)
    assert "tensor<4x2x24xf32>" in program()
    assert "tensor<4x5x24xf32>" not in program()


def test_a_module_that_gives_logits_alone(module, reference, prompts, monkeypatch):
    """As t5x's network does."""
    monkeypatch.setattr(rollout_lib, "_LOGITS_AT_ONCE", 1)
    expected = log_probs_and_grads(module, reference, prompts)
    plain = types.SimpleNamespace(
        config=module.config, apply=module.apply, encode=module.encode, decode=module.decode
    )
    assert_close(log_probs_and_grads(plain, reference, prompts), expected)


@pytest.mark.parametrize("policy", ["minimal", "full"])
def test_rematerialised_layers_change_nothing_but_memory(module, reference, prompts, policy):
    config = dataclasses.replace(module.config, dropout_rate=0.3)
    expected = log_probs_and_grads(Transformer(config), reference, prompts, jax.random.key(3))
    again = Transformer(dataclasses.replace(config, remat_policy=policy))
    assert_close(log_probs_and_grads(again, reference, prompts, jax.random.key(3)), expected)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_rematerialisation_saves_memory(module, stack):
    def kept(policy):
        """Bytes that the backward pass needs of the forward pass."""
        layers = {"num_encoder_layers": 1, "num_decoder_layers": 1, f"num_{stack}_layers": 4}
        module_ = Transformer(dataclasses.replace(module.config, remat_policy=policy, **layers))
        tokens = jnp.ones((8, 64), jnp.int32)
        params = jax.eval_shape(
            lambda: module_.init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False)
        )["params"]

        def backward(params):
            def forward(params):
                apply = functools.partial(module_.apply, {"params": params}, enable_dropout=False)
                if stack == "encoder":
                    return apply(tokens, method=module_.encode)
                encoded = jnp.ones((8, 64, module.config.emb_dim))
                return apply(encoded, tokens, tokens, tokens, method=module_.decode)

            return jax.vjp(forward, params)[1]

        return sum(x.size * 4 for x in jax.tree.leaves(jax.eval_shape(backward, params)))

    assert kept("none") > 1.5 * kept("minimal") > 1.5 * 1.5 * kept("full")


def test_unknown_policy(module):
    with pytest.raises(ValueError, match="unknown remat_policy 'fulll'"):
        dataclasses.replace(module.config, remat_policy="fulll")


def repeated_share(tokens, n):
    """Welleck et al.'s rep-n, from its definition."""
    ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def padded(rows, length, filler):
    """Rows as [B, length], with `filler` behind them, and their mask."""
    tokens = np.full((len(rows), length), filler, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    lengths = np.array([[len(row)] for row in rows])
    return tokens, (np.arange(length) < lengths).astype(np.float32)


repetition_rate = jax.jit(rollout_lib.repetition_rate, static_argnames="ngram")


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(st.lists(st.integers(1, 3), max_size=12), min_size=4, max_size=4),
    ngram=st.integers(1, 4),
    filler=st.integers(0, 3),
)
def test_repetition_is_the_share_of_ngrams_said_before(rows, ngram, filler):
    tokens, mask = padded(rows, 12, filler)
    expected = [repeated_share(row, ngram) for row in rows]
    np.testing.assert_allclose(repetition_rate(tokens, mask, ngram=ngram), expected, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2])
def test_repetition_of_completions_shorter_than_an_ngram(length):
    rate = repetition_rate(np.ones([2, length], np.int32), np.ones([2, length]))
    assert rate.tolist() == [0.0, 0.0]
    assert rate.dtype == np.float32


def test_a_step_reports_the_mean_repetition(module, reference, prompts):
    clp = train_step.CLP(module, Decoding(5), policy_optimizer=optax.sgd(1.0),
                         value_optimizer=optax.sgd(1.0))  # fmt: skip
    completions = jnp.array([[7] * 5, [7, 8, 7, 8, 7], [7, 8, 9, 10, 11], [7] * 5], jnp.int32)
    mask = jnp.ones([4, 5]).at[3, 4].set(0)
    rollout = rollout_lib.Rollout(prompts, completions, mask, mask, prompts, mask)
    weighting = Weighting(jnp.array([0.1]), jnp.array([[0.5, 0.5]]))
    state = jax.jit(lambda r: train_step.init_train_state(clp, r, subset.logits(), 2))(reference)
    update = jax.jit(functools.partial(train_step.update, clp))
    _, metrics = update(state, reference, rollout, jnp.eye(4, 2), weighting, jax.random.key(0))
    expected = (2 / 3 + 1 / 3 + 0 + 1 / 2) / 4
    assert metrics["rollout/repetition"] == pytest.approx(expected)
