"""Where dropout is: at the places of t5x's network, on the whole length, and off on demand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clp_jax.models import attention
from clp_jax.models.attention import KeyValue, attend
from clp_jax.models.t5 import T5Config, Transformer

CONFIG = T5Config(
    vocab_size=11, emb_dim=6, num_heads=2, num_encoder_layers=1, num_decoder_layers=1,
    head_dim=3, mlp_dim=7, mlp_activations=("gelu", "linear"), dropout_rate=0.25,
)  # fmt: skip
B, E, L = 2, 4, 3
# t5x.examples.t5.network: of which array, and along which axes one draw serves all.
ENCODER = [
    ((B, E, 6), (-2,)),  # embedded tokens
    ((B, 2, E, E), (-2,)),  # attention weights
    ((B, E, 6), (-2,)),  # attention's output
    ((B, E, 7), (-2,)),  # hidden units
    ((B, E, 6), (-2,)),  # the feed-forward block's output
    ((B, E, 6), ()),  # the encoded prompt
]
DECODER = [
    ((B, L, 6), (-2,)),
    ((B, 2, L, L), (-2,)),
    ((B, L, 6), (-2,)),
    ((B, 2, L, E), (-2,)),  # attention to the prompt
    ((B, L, 6), (-2,)),
    ((B, L, 7), (-2,)),
    ((B, L, 6), (-2,)),
    ((B, L, 6), (-2,)),
]


@pytest.mark.parametrize("enable_dropout", [True, False])
def test_dropout_is_where_t5x_has_it(enable_dropout):
    module = Transformer(CONFIG)
    prompts, tokens = jnp.ones((B, E), jnp.int32), jnp.ones((B, L), jnp.int32)
    params = module.init(jax.random.key(0), prompts, tokens, tokens, enable_dropout=False)
    places = []

    def record(call, arguments, keywords, context):
        if isinstance(context.module, nn.Dropout) and not keywords["deterministic"]:
            assert context.module.rate == CONFIG.dropout_rate
            places.append((arguments[0].shape, tuple(context.module.broadcast_dims)))
        return call(*arguments, **keywords)

    with nn.intercept_methods(record):
        module.apply(
            params, prompts, tokens, tokens,
            enable_dropout=enable_dropout, rngs={"dropout": jax.random.key(1)},
        )  # fmt: skip
    assert places == (ENCODER + DECODER if enable_dropout else [])


@pytest.mark.parametrize("from_size", [0, 10**9])
def test_dropped_weights_are_those_of_the_softmax(monkeypatch, from_size):
    monkeypatch.setattr(attention, "_DIVIDED_LAST_FROM", from_size)
    rng = np.random.default_rng(0)
    query = rng.normal(size=(B, L, 2, 3)).astype(np.float32)
    key, value = rng.normal(size=(2, B, 2, E, 3)).astype(np.float32)
    kept = rng.integers(0, 2, (B, 2, L, E)) / 0.5
    got = attend(jnp.asarray(query), KeyValue(key, value), dropout=lambda weights: weights * kept)
    logits = np.einsum("bqhd,bhkd->bhqk", query, key)
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = np.einsum("bhqk,bhkd->bqhd", weights * kept, value).reshape(B, L, 6)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
