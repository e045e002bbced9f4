"""The form of attention that suits a CPU is the other one, and is taken where it pays."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from clp_jax.models import attention, sampling
from clp_jax.models.attention import KeyValue, attend
from clp_jax.models.decoding import Decoding
from clp_jax.models.t5 import T5Config, Transformer

B, Q, K, H, D = 3, 5, 7, 2, 4


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    query = jax.random.normal(keys[0], (B, Q, H, D), dtype)
    key, value = (jax.random.normal(k, (B, H, K, D), dtype) for k in keys[1:3])
    return query, KeyValue(key, value), 0.5 * jax.random.normal(keys[3], (1, H, Q, K))


def by_hand(query, key_value, mask, bias):
    """Attention in numpy, one query of one head at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, *key_value))
    mask = np.broadcast_to(True if mask is None else mask, (B, H, Q, K))
    out = np.zeros((B, Q, H, D))
    for b, q, h in np.ndindex(B, Q, H):
        logits = key[b, h] @ query[b, q, h] + (0 if bias is None else np.asarray(bias)[0, h, q])
        weights = np.exp(logits - logits.max()) * mask[b, h, q]
        out[b, q, h] = weights @ value[b, h] / weights.sum()
    return out.reshape(B, Q, H * D)


MASKS = {
    "none": None,
    "padding": (np.arange(K) < np.array([7, 4, 1])[:, None])[:, None, None],
    "causal": np.tril(np.ones((Q, K), bool)),
    "both": np.tril(np.ones((Q, K), bool))
    & (np.arange(K) < np.array([7, 4, 1])[:, None])[:, None, None],
    "by head": np.arange(K) <= np.array([3, 5])[None, :, None, None],
}


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("from_size", [0, 10**9])
def test_both_forms_are_attention(monkeypatch, mask, with_bias, from_size):
    monkeypatch.setattr(attention, "_DIVIDED_LAST_FROM", from_size)
    query, key_value, bias = inputs()
    mask = None if mask is None else jnp.asarray(mask)
    arguments = (query, key_value, mask, bias if with_bias else None)
    np.testing.assert_allclose(
        jax.jit(attend)(*arguments), by_hand(*arguments), rtol=1e-5, atol=1e-6
    )


def gradients(mask):
    query, key_value, bias = inputs()
    target = jnp.sin(jnp.arange(B * Q * H * D, dtype=jnp.float32)).reshape(B, Q, H * D)

    def loss(query, key_value, bias):
        return jnp.sum(target * attend(query, key_value, mask, bias))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(query, key_value, bias)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_gradients_are_those_of_the_other_form(monkeypatch, mask):
    mask = None if mask is None else jnp.asarray(mask)
    expected = gradients(mask)
    monkeypatch.setattr(attention, "_DIVIDED_LAST_FROM", 0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradients(mask),
        expected,
    )


def test_low_precision_keeps_a_float32_softmax(monkeypatch):
    query, key_value, bias = inputs(jnp.bfloat16)
    expected = attend(query, key_value, None, bias)
    monkeypatch.setattr(attention, "_DIVIDED_LAST_FROM", 0)
    got = attend(query, key_value, None, bias)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        got.astype(np.float32), expected.astype(np.float32), rtol=0.02, atol=0.02
    )


def test_only_a_cpu_divides_last(monkeypatch):
    monkeypatch.setattr(attention, "_DIVIDED_LAST_FROM", 0)
    query, key_value, _ = inputs()

    def program(platform):
        exported = export.export(jax.jit(attend), platforms=[platform])(query, key_value)
        return exported.mlir_module()

    for platform, last in (("cpu", D), ("tpu", K), ("cuda", K)):
        text = program(platform)
        divided = re.findall(r"stablehlo.divide .* : tensor<(.*)xf32>", text)
        assert divided == [f"{B}x{H}x{Q}x{last}"]
        assert "while" not in text
        assert text.count("stablehlo.dot_general") == 2


@pytest.mark.parametrize("from_size", [0, 10**9])
def test_a_query_without_keys_gives_no_nan(monkeypatch, from_size):
    monkeypatch.setattr(attention, "_DIVIDED_LAST_FROM", from_size)
    query, key_value, bias = inputs()
    got = attend(query, key_value, jnp.zeros((B, 1, 1, K), bool), bias)
    # All keys are masked alike.
    mean = np.asarray(key_value.value).mean(axis=2).reshape(B, 1, H * D)
    np.testing.assert_allclose(got, np.broadcast_to(mean, got.shape), rtol=1e-5, atol=1e-6)


def test_the_backward_pass_on_a_cpu_keeps_no_weights():
    query, key_value, bias = inputs()
    _, backward = jax.vjp(
        lambda query: attention._divided_last(query, key_value, None, bias), query
    )
    kept = [leaf.shape for leaf in jax.tree.leaves(backward)]
    assert (B, H, K, D) in kept
    assert (B, H, Q, K) not in kept


@pytest.mark.parametrize("group_tokens", [1, 12, 18, 10**6])
def test_prompts_encoded_in_groups_are_completed_alike(monkeypatch, group_tokens):
    config = T5Config(vocab_size=31, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32,
                      num_encoder_layers=1, num_decoder_layers=2)  # fmt: skip
    module = Transformer(config)
    prompts = jax.random.randint(jax.random.key(1), (6, 6), 0, 31)
    init = jax.jit(functools.partial(module.init, enable_dropout=False))
    params = init(jax.random.key(0), prompts, prompts, prompts)
    keys = jax.random.split(jax.random.key(2), 6)

    def sampled():
        decoding = Decoding(5, eos_id=3)
        return jax.jit(lambda: sampling.sample(module, params["params"], prompts, keys, decoding))()

    expected = sampled()
    monkeypatch.setattr(sampling, "_GROUP_TOKENS", group_tokens)
    got = sampled()
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_allclose(got.log_probs, expected.log_probs, atol=1e-5)
