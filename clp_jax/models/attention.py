"""The maths of T5's attention, and the form of it that suits a CPU.

Shape letters: B batch, Q and K query and key positions, H heads, D head_dim.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# A masked logit. It is finite, so that a query with no key to attend to gives no NaN.
MASKED = -1e10

# From this many multiplications per head and example on, `_by_head` is faster than `_at_once`.
_BY_HEAD_FROM = 2**19


class KeyValue(NamedTuple):
    """Keys and values of one attention, each [B, H, K, D].

    Of the layouts that were timed, the one that a decoding step reads and writes fastest on a CPU:
    one position of one head is contiguous, and neither product of attention moves the cache.
    """

    key: jax.Array
    value: jax.Array


def attend(
    query: jax.Array,
    key_value: KeyValue,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Attends from queries to keys and values; logits and softmax are float32.

    Logits are not divided by sqrt(D): as in T5, the initialisation of the projection holds that
    factor.

    Args:
      query: [B, Q, H, D].
      key_value: keys and values, each [B, H, K, D].
      mask: bool, broadcastable to [B, H, Q, K]; True where a query may see a key.
      bias: float32, [1, H, Q, K]; added to the logits.
      dropout: applied to the attention weights [B, H, Q, K]; None for none.

    Returns:
      [B, Q, H * D], the heads side by side.
    """
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    _, num_queries, _, head_dim = query.shape
    if dropout is not None or num_queries * key_value.key.shape[2] * head_dim < _BY_HEAD_FROM:
        return _at_once(query, key_value, mask, bias, dropout)
    return jax.lax.platform_dependent(query, key_value, mask, bias, cpu=_by_head, default=_at_once)


def _at_once(
    query: jax.Array,
    key_value: KeyValue,
    mask: jax.Array | None,
    bias: jax.Array | None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """`attend` as two batched products."""
    logits = jnp.einsum("bqhd,bhkd->bhqk", query, key_value.key, preferred_element_type=jnp.float32)
    weights = _softmax(logits, mask, bias).astype(query.dtype)
    if dropout is not None:
        weights = dropout(weights)
    mixed = jnp.einsum("bhqk,bhkd->bqhd", weights, key_value.value)
    return mixed.reshape(*mixed.shape[:2], -1)


def _by_head(
    query: jax.Array, key_value: KeyValue, mask: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """`attend` as products of single matrices, one example after the other.

    XLA on a CPU runs a batched product at a third of the speed of a plain one, and the logits of
    one example stay in its cache. They are computed anew in the backward pass, as that takes less
    time than to keep those of all examples.
    """
    batch_size, num_heads = query.shape[0], query.shape[2]

    @jax.checkpoint
    def of_example(query: jax.Array, key_value: KeyValue, mask: jax.Array | None) -> jax.Array:
        mixed = []
        for head in range(num_heads):
            key, value = key_value.key[head], key_value.value[head]
            logits = jnp.dot(query[:, head], key.T, preferred_element_type=jnp.float32)
            head_mask = None if mask is None else mask[head % mask.shape[0]]
            weights = _softmax(logits, head_mask, None if bias is None else bias[0, head])
            mixed.append(jnp.dot(weights.astype(query.dtype), value))
        return jnp.concatenate(mixed, axis=-1)

    if mask is None or mask.shape[0] == 1:
        shared = None if mask is None else mask[0]
        return jax.lax.map(lambda xs: of_example(*xs, shared), (query, key_value))
    mask = jnp.broadcast_to(mask, (batch_size, *mask.shape[1:]))
    return jax.lax.map(lambda xs: of_example(*xs), (query, key_value, mask))


def _softmax(logits: jax.Array, mask: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """The attention weights of float32 logits; arguments broadcast."""
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, MASKED)
    return jax.nn.softmax(logits)


def padding_mask(key_tokens: jax.Array) -> jax.Array:
    """The mask [B, 1, 1, K] that hides those keys of `key_tokens` [B, K] that are padding (0)."""
    return (key_tokens > 0)[:, None, None, :]


def segment_mask(query_ids: jax.Array, key_ids: jax.Array) -> jax.Array:
    """The mask [B, 1, Q, K] that lets queries [B, Q] see keys [B, K] of their own segment."""
    return query_ids[:, None, :, None] == key_ids[:, None, None, :]
