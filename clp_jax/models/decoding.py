"""Which token comes next: greedy, ancestral, top-k and nucleus sampling from logits."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. Hashable, so that it may be a static argument of `jax.jit`.

    With both `top_k` and `top_p`, `top_p` is a share of what `top_k` left. Tokens as probable as
    the last one kept are kept too.

    Attributes:
      max_decode_length: tokens per completion at most, EOS included; >= 1.
      temperature: logits are divided by it; >= 0. 0 takes the most probable token (greedy).
      top_k: only the k most probable tokens are drawn; >= 0. 0 is off.
      top_p: only the fewest most probable tokens whose probabilities sum to p or more are drawn
        (nucleus sampling, Holtzman et al. 2020); in (0, 1]. 1 is off.
      eos_id: the token that ends a completion; >= 1, as 0 is padding.

    Raises:
      ValueError: a value is out of its range.
    """

    max_decode_length: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    eos_id: int = 1

    def __post_init__(self) -> None:
        for name, least in (("max_decode_length", 1), ("top_k", 0), ("eos_id", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"Decoding.{name} is {value!r}; valid is an integer >= {least}")
        # Written so that NaN fails too.
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(
                f"Decoding.temperature is {self.temperature!r}; valid is a finite number >= 0"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"Decoding.top_p is {self.top_p!r}; valid is a number in (0, 1]")


def choose(
    logits: jax.Array, uniforms: jax.Array, decoding: Decoding
) -> tuple[jax.Array, jax.Array]:
    """Chooses a token of each sequence.

    Args:
      logits: [B, V] float32.
      uniforms: [B, 2], independent draws from [0, 1).
      decoding: how.

    Returns:
      Tokens [B] int32, and log-probabilities [B] of the softmax of `logits`.
    """
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    # In [0, 1]. One exponential per logit serves both the draw and the normaliser.
    weights = jnp.exp(shifted)
    normaliser = jnp.sum(weights, axis=-1)
    if decoding.temperature == 0.0:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        if decoding.temperature != 1.0:
            weights = jnp.exp(shifted / decoding.temperature)
        if decoding.top_k > 0:
            weights = _keep_top(weights, jnp.ones_like(weights), float(decoding.top_k))
        if decoding.top_p < 1.0:
            total = jnp.sum(weights, axis=-1, keepdims=True)
            weights = _keep_top(weights, weights, decoding.top_p * total)
        token = _draw(weights, uniforms)
    chosen = jnp.take_along_axis(shifted, token[:, None], axis=1)[:, 0]
    return token, chosen - jnp.log(normaliser)


def _keep_top(weights: jax.Array, amounts: jax.Array, least: jax.Array | float) -> jax.Array:
    """Zeroes all but the fewest most probable tokens whose amounts sum to `least` or more.

    The threshold is found by bisection over the bits of `weights`, since non-negative floats are
    ordered as their bits are. That is exact and, over 32,000 tokens on a CPU, 30 times faster than
    a sort or `jax.lax.top_k`.

    Args:
      weights: [B, V] float32 in [0, 1].
      amounts: [B, V].
      least: broadcastable to [B, 1].

    Returns:
      [B, V]; all of `weights` where their amounts sum to less than `least`.
    """
    bits = jax.lax.bitcast_convert_type(weights, jnp.int32)
    above_one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32) + 1
    low = jnp.zeros((weights.shape[0], 1), jnp.int32)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        kept = jnp.sum(jnp.where(bits >= middle, amounts, 0.0), axis=-1, keepdims=True)
        return jnp.where(kept >= least, middle, low), jnp.where(kept >= least, high, middle)

    # 2^30 > above_one: after 30 halvings one value is left.
    threshold, _ = jax.lax.fori_loop(0, 30, halve, (low, jnp.full_like(low, above_one)))
    return jnp.where(bits >= threshold, weights, 0.0)


def _draw(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Draws i with a probability proportional to weights[:, i], in two stages.

    First a block of about sqrt(V) tokens, then a token of it. That takes two random numbers per
    draw, where `jax.random.categorical` takes V, and leaves less rounding than one sum over V.

    Args:
      weights: [B, V] float32 >= 0, with one > 0 in each row.
      uniforms: [B, 2], independent draws from [0, 1).

    Returns:
      [B] int32.
    """
    batch_size, vocab_size = weights.shape
    width = math.ceil(math.sqrt(vocab_size))
    blocks = jnp.pad(weights, ((0, 0), (0, -vocab_size % width))).reshape(batch_size, -1, width)
    block = _invert_cumulative(blocks.sum(axis=-1), uniforms[:, :1])
    within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * width + _invert_cumulative(within, uniforms[:, 1:])


def _invert_cumulative(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """The first index at which the cumulative sum of `weights` [B, N] is above u of its total."""
    cumulative = jnp.cumsum(weights, axis=-1)
    # By rounding the sum may grow over weights of 0; those must not be drawn.
    positive = weights > 0.0
    total = jnp.max(jnp.where(positive, cumulative, 0.0), axis=-1, keepdims=True)
    return jnp.argmax(positive & (cumulative > uniforms * total), axis=-1).astype(jnp.int32)
