"""Sampling of completions, token by token, from an encoder-decoder with a key-value cache."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from clp_jax.models.decoding import Decoding, choose

PyTree = Any
Step = Callable[[jax.Array, PyTree], tuple[jax.Array, PyTree]]

# On a CPU, prompts are encoded in groups of about this many tokens, whose activations stay in its
# cache.
_GROUP_TOKENS = 1024


@struct.dataclass
class Samples:
    """Sampled completions.

    Attributes:
      tokens: [B, L] int32; 0 after the first EOS.
      mask: [B, L] float32; 1 up to and including the first EOS, 0 after it.
      log_probs: [B, L] float32; the model's own log-probability of each token, that is of the
        softmax of its logits before temperature, top_k and top_p; 0 where the mask is 0.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array


def sample(
    module: nn.Module,
    params: PyTree,
    encoder_input_tokens: jax.Array,
    keys: jax.Array,
    decoding: Decoding,
    axis_name: str | None = None,
) -> Samples:
    """Samples one completion for each prompt.

    The prompts are encoded once; then one `while_loop` draws a token of each sequence per step and
    ends when all have ended. The token at position t of a sequence depends on its prompt, its key
    and t alone, not on the rest of the batch.

    Args:
      module: has the interface of t5x's `network.Transformer` (`t5.Transformer` has). If it has a
        method `project_encoded` too, what that returns for the encoded prompts goes to `decode` in
        their place.
      params: its 'params' collection.
      encoder_input_tokens: [B, K] int; the prompts, 0 is padding.
      keys: [B] PRNG keys, one for each prompt.
      decoding: how tokens are chosen.
      axis_name: under `jax.vmap(sample, axis_name=...)`, that name. The loop then ends when all
        sequences along the axis have ended, in place of copying the whole cache at each step to
        hold those that ended earlier.

    Returns:
      The completions.

    Raises:
      ValueError: there are not as many keys as prompts.
    """
    return sample_mixture(
        module, [params], None, encoder_input_tokens, keys, decoding, axis_name=axis_name
    )


def sample_mixture(
    module: nn.Module,
    language_models: Sequence[PyTree],
    coefficients: jax.Array | None,
    encoder_input_tokens: jax.Array,
    keys: jax.Array,
    decoding: Decoding,
    axis_name: str | None = None,
) -> Samples:
    """Samples from a mixture of the logits of several models, in one loop.

    Each token takes one pass through every model, and each model keeps a cache of its own.

    Args:
      module: the network of all of them; see `sample`.
      language_models: n >= 1 'params' collections.
      coefficients: [n] float32, of each model's logits; None for a single model as it is.
      encoder_input_tokens: see `sample`.
      keys: see `sample`.
      decoding: how tokens are chosen, from the mixture.
      axis_name: see `sample`.

    Returns:
      The completions, with their log-probabilities under the mixture.

    Raises:
      ValueError: there are not as many keys as prompts.
    """
    batch_size, length = encoder_input_tokens.shape[0], decoding.max_decode_length
    if keys.shape[:1] != (batch_size,):
        raise ValueError(
            f"keys has shape {keys.shape} for {batch_size} prompts; valid is one key for each"
        )
    decoders = [
        _decoder(module, params, encoder_input_tokens, length) for params in language_models
    ]

    def next_logits(last: jax.Array, caches: PyTree) -> tuple[jax.Array, PyTree]:
        steps = [step(last, cache) for (_, step), cache in zip(decoders, caches, strict=True)]
        logits: Any = [logits for logits, _ in steps]
        if coefficients is None:
            (mixed,) = logits
        else:
            mixed = sum(c * each for c, each in zip(coefficients, logits, strict=True))
        return mixed, [cache for _, cache in steps]

    caches = [cache for cache, _ in decoders]
    uniforms = _uniforms(keys, length)
    tokens, log_probs = _run_loop(next_logits, caches, uniforms, decoding, axis_name)
    return _up_to_eos(tokens, log_probs, decoding.eos_id)


def _decoder(
    module: nn.Module, params: PyTree, encoder_input_tokens: jax.Array, length: int
) -> tuple[PyTree, Step]:
    """One model's empty cache, and its step from the last tokens to logits [B, V] float32."""
    variables = {"params": params}
    encoded = _encode(module, variables, encoder_input_tokens)

    def decode(tokens: jax.Array, cache: PyTree) -> tuple[jax.Array, PyTree]:
        logits, updated = module.apply(
            {**variables, **cache},
            encoded,
            encoder_input_tokens,
            tokens,
            tokens,
            enable_dropout=False,
            decode=True,
            max_decode_length=length,
            mutable=["cache"],
            method=module.decode,
        )
        return logits[:, 0].astype(jnp.float32), updated

    # A first call makes the cache. Under `jit` the rest of that call is dropped as unused.
    _, cache = decode(jnp.zeros((encoder_input_tokens.shape[0], length), jnp.int32), {})
    return cache, lambda last, cache: decode(last[:, None], cache)


def _up_to_eos(tokens: jax.Array, log_probs: jax.Array, eos_id: int) -> Samples:
    """Drops what was drawn after the first EOS, while others ran on."""
    # Padding that was drawn before EOS is a token as any other.
    is_eos = (tokens == eos_id).astype(jnp.int32)
    mask = jnp.cumsum(is_eos, axis=1) == is_eos
    return Samples(
        tokens=jnp.where(mask, tokens, 0),
        mask=mask.astype(jnp.float32),
        log_probs=jnp.where(mask, log_probs, 0.0),
    )


def _run_loop(
    next_logits: Step,
    cache: PyTree,
    uniforms: jax.Array,
    decoding: Decoding,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array]:
    """Draws tokens until each sequence has drawn EOS, or up to the limit.

    Args:
      next_logits: the last tokens [B] and a cache to float32 logits [B, V] and a cache.
      cache: the empty cache.
      uniforms: [L, B, 2], independent draws from [0, 1).
      decoding: how tokens are chosen.
      axis_name: the mapped axis over which all sequences have to end, if any.

    Returns:
      Tokens [B, L] int32 and their log-probabilities [B, L]. What follows EOS is arbitrary.
    """
    length, batch_size, _ = uniforms.shape

    def cond(state: tuple) -> jax.Array:
        step, running, *_ = state
        return running & (step < length)

    def body(state: tuple) -> tuple:
        step, _, ended, last, tokens, log_probs, cache = state
        logits, cache = next_logits(last, cache)
        token, log_prob = choose(logits, uniforms[step], decoding)
        ended |= token == decoding.eos_id
        running = jnp.any(~ended)
        if axis_name is not None:
            running = jax.lax.psum(running.astype(jnp.int32), axis_name) > 0
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], step, axis=1)
        log_probs = jax.lax.dynamic_update_slice_in_dim(log_probs, log_prob[:, None], step, axis=1)
        return step + 1, running, ended, token, tokens, log_probs, cache

    state = (
        jnp.int32(0),
        jnp.bool_(True),
        jnp.zeros(batch_size, jnp.bool_),
        jnp.zeros(batch_size, jnp.int32),  # T5 starts its decoder with padding
        jnp.zeros((batch_size, length), jnp.int32),
        jnp.zeros((batch_size, length), jnp.float32),
        cache,
    )
    *_, tokens, log_probs, _ = jax.lax.while_loop(cond, body, state)
    return tokens, log_probs


def _encode(module: nn.Module, variables: PyTree, tokens: jax.Array) -> PyTree:
    """What `decode` reads of the prompts [B, K]; leaves have the leading axis B."""

    def encode(tokens: jax.Array) -> PyTree:
        encoded = module.apply(variables, tokens, enable_dropout=False, method=module.encode)
        if hasattr(module, "project_encoded"):
            encoded = module.apply(variables, encoded, method=module.project_encoded)
        return encoded

    def encode_in_groups(tokens: jax.Array) -> PyTree:
        groups = jax.lax.map(encode, tokens.reshape(-1, size, length))
        return jax.tree.map(lambda x: x.reshape(batch_size, *x.shape[2:]), groups)

    batch_size, length = tokens.shape
    size = math.gcd(batch_size, max(1, _GROUP_TOKENS // length))
    if size == batch_size:
        return encode(tokens)
    return jax.lax.platform_dependent(tokens, cpu=encode_in_groups, default=encode)


def _uniforms(keys: jax.Array, length: int) -> jax.Array:
    """Two draws from [0, 1) for each position of each sequence: [L, B, 2]."""

    def draw(key: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, position), (2,), jnp.float32)

    return jax.vmap(jax.vmap(draw, (0, None)), (None, 0))(keys, jnp.arange(length))
