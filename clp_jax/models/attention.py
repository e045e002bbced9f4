"""The maths of T5's attention, and the form of it that suits a CPU.

Shape letters: B batch, Q and K query and key positions, H heads, D head_dim.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# A masked logit. It is finite, so that a query with no key to attend to gives no NaN.
MASKED = -1e10

# From this many multiplications per head and example on, `_divided_last` is used on a CPU.
_DIVIDED_LAST_FROM = 2**19


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
    if dropout is not None or num_queries * key_value.key.shape[2] * head_dim < _DIVIDED_LAST_FROM:
        return _at_once(query, key_value, mask, bias, dropout)
    return jax.lax.platform_dependent(
        query, key_value, mask, bias, cpu=_divided_last, default=_at_once
    )


def _at_once(
    query: jax.Array,
    key_value: KeyValue,
    mask: jax.Array | None,
    bias: jax.Array | None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """`attend` as two batched products."""
    weights = jax.nn.softmax(_logits(query, key_value.key, mask, bias)).astype(query.dtype)
    if dropout is not None:
        weights = dropout(weights)
    mixed = jnp.einsum("bhqk,bhkd->bqhd", weights, key_value.value)
    return mixed.reshape(*mixed.shape[:2], -1)


@jax.checkpoint
def _divided_last(
    query: jax.Array, key_value: KeyValue, mask: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """`attend` with the softmax's division after the values are mixed: of [Q, D], not [Q, K].

    XLA on a CPU takes up to half of the time (benchmarks/NOTES.md). Logits are computed anew in the
    backward pass, which takes no longer than to keep them.
    """
    logits = _logits(query, key_value.key, mask, bias)
    # The maximum cancels, in the gradient too.
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(query.dtype), key_value.value)
    mixed = (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(query.dtype)
    return mixed.swapaxes(1, 2).reshape(*query.shape[:2], -1)


def _logits(
    query: jax.Array, key: jax.Array, mask: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """The float32 logits [B, H, Q, K] of attention, biased and masked."""
    logits = jnp.einsum("bqhd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, MASKED)
    return logits


def padding_mask(key_tokens: jax.Array) -> jax.Array:
    """The mask [B, 1, 1, K] that hides those keys of `key_tokens` [B, K] that are padding (0)."""
    return (key_tokens > 0)[:, None, None, :]


def segment_mask(query_ids: jax.Array, key_ids: jax.Array) -> jax.Array:
    """The mask [B, 1, Q, K] that lets queries [B, Q] see keys [B, K] of their own segment."""
    return query_ids[:, None, :, None] == key_ids[:, None, None, :]
