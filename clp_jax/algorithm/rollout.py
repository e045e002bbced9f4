"""A rollout: sampled completions, with what the update needs of them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from clp_jax.algorithm import losses
from clp_jax.algorithm.weighting import Weighting
from clp_jax.models.decoding import Decoding
from clp_jax.models.sampling import sample
from clp_jax.models.value import completion_logits

Params = Any

# Elements, over all of the batch: 64 MB.
_LOGITS_AT_ONCE = 2**24


@flax.struct.dataclass
class Rollout:
    """B prompts and one sampled completion of each.

    Attributes:
      prompts: what the policy read, encoder tokens, [B, E] int32, padded with 0.
      completions: sampled tokens, [B, L] int32, 0 behind the first EOS.
      mask: [B, L] float32, 1 up to and including the first EOS.
      log_probs: log π(y_t | x, y_<t) under the policy that sampled them, [B, L] float32.
      plain_prompts: the prompts x without reward weights in front, which reference, value network
        and rewards read; other than `prompts` only with CONDITION_PROMPT.
      reference_log_probs: log π_ref(y_t | x, y_<t), [B, L] float32; None until it was scored.
    """

    prompts: jax.Array
    completions: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    plain_prompts: jax.Array
    reference_log_probs: jax.Array | None = None


def over_weightings(function: Callable, weighting: Weighting, *batch: Any) -> Any:
    """Calls `function(weighting_i, *batch_i)` for each of k weightings and its share of the batch.

    The batch's leading axis B is cut into k equal, consecutive groups. With k = 1, the default of
    the paper, nothing is mapped; with k > 1 the shared parameters are still read once, not k times.

    Args:
      function: takes one weighting and arrays with leading axis B / k; returns the same.
      weighting: leading axis k.
      *batch: pytrees with leading axis B.

    Returns:
      What `function` returns, with leading axis B.
    """
    groups = weighting.kl_weight.shape[0]
    if groups == 1:
        return function(weighting[0], *batch)
    grouped = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), batch)
    results = jax.vmap(function, axis_name="weightings")(weighting, *grouped)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)


def generate(
    module: nn.Module,
    conditioned: Callable[[Weighting], Params],
    prompts: jax.Array,
    weighting: Weighting,
    key: jax.Array,
    decoding: Decoding,
) -> Rollout:
    """Samples y ~ π(· | x; α, w) (Algorithm 1, line 5).

    Args:
      module: the policy's network.
      conditioned: a weighting -> plain LM parameters (Algorithm 2).
      prompts: [B, E] int32.
      weighting: leading axis k; B must be a multiple of k.
      key: PRNG key; each example gets its own.
      decoding: how to sample.
    """
    axis_name = "weightings" if weighting.kl_weight.shape[0] > 1 else None
    samples = over_weightings(
        lambda weighting, prompts, keys: sample(
            module, conditioned(weighting), prompts, keys, decoding, axis_name=axis_name
        ),
        weighting,
        prompts,
        jax.random.split(key, prompts.shape[0]),
    )
    return Rollout(prompts, samples.tokens, samples.mask, samples.log_probs, prompts)


def repetition_rate(completions: jax.Array, mask: jax.Array, ngram: int = 3) -> jax.Array:
    """How much a completion repeats itself: the share of its n-grams that it had said before.

    rep-n = 1 − |unique n-grams| / |n-grams| of Welleck et al. (2020, "Neural Text Generation with
    Unlikelihood Training", Sec. 5). It rises where a policy found that a reward likes a phrase.

    Args:
      completions: tokens, [B, L] int32.
      mask: [B, L], 1 on each completion's first tokens, 0 behind them.
      ngram: n, at least 1.

    Returns:
      [B] float32, range [0, 1); 0 for a completion of fewer than n tokens.
    """
    places = max(completions.shape[1] - ngram + 1, 0)
    same: Any = True  # whether the n-grams that begin at two places are equal, [B, places, places]
    for offset in range(ngram):
        tokens = completions[:, offset : offset + places]
        same &= tokens[:, :, None] == tokens[:, None, :]
    # The mask has no holes: an n-gram is there if its last token is, and so are those before it.
    exists = mask[:, ngram - 1 :] > 0
    repeated = exists & jnp.any(same & jnp.tri(places, k=-1, dtype=bool), axis=2)
    return jnp.sum(repeated, axis=1) / jnp.maximum(jnp.sum(exists, axis=1), 1)


def over_completion_logits(
    function: Callable[[jax.Array, jax.Array], Any],
    module: nn.Module,
    params: Params,
    prompts: jax.Array,
    completions: jax.Array,
    mask: jax.Array,
    dropout_key: jax.Array | None = None,
) -> Any:
    """Applies a function to the teacher-forced logits of the completions, some positions at a time.

    Logits are what takes most memory: for 32 completions of 64 tokens of the T5 vocabulary, 263 MB.
    Of a module with a method `logits` (`t5.Transformer` has), only those of about `_LOGITS_AT_ONCE`
    elements exist at once; the backward pass computes them anew.

    Args:
      function: (logits [B, l, V] float32, tokens [B, l]) -> a tree of arrays [B, l].
      module: a T5-like network.
      params: plain LM parameters.
      prompts: [B, E] int32.
      completions: [B, L] int32.
      mask: [B, L]; says which completion tokens exist.
      dropout_key: PRNG key for dropout; None turns dropout off.

    Returns:
      The function's results, each [B, L].
    """
    inputs = (module, params, prompts, completions, mask, dropout_key)
    if not hasattr(module, "logits"):
        return function(completion_logits(*inputs), completions)
    states = completion_logits(*inputs, return_states=True)

    def of_chunk(chunk: tuple[jax.Array, jax.Array]) -> Any:
        states, tokens = chunk
        logits: Any = module.apply({"params": params}, states, method=module.logits)
        return function(logits, tokens)

    batch_size, length = completions.shape
    num_chunks = min(length, -(-completions.size * module.config.vocab_size // _LOGITS_AT_ONCE))
    if num_chunks == 1:
        return of_chunk((states, completions))
    size = -(-length // num_chunks)
    num_chunks = -(-length // size)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, num_chunks * size - length), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(batch_size, num_chunks, size, *x.shape[2:]).swapaxes(0, 1)

    results = jax.lax.map(jax.checkpoint(of_chunk), (split(states), split(completions)))
    return jax.tree.map(
        lambda x: x.swapaxes(0, 1).reshape(batch_size, num_chunks * size)[:, :length], results
    )


def completion_log_probs(
    module: nn.Module,
    params: Params,
    prompts: jax.Array,
    completions: jax.Array,
    mask: jax.Array,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Teacher-forced log-probabilities, [B, L] float32, 0 where the mask is; arguments as above."""
    log_probs = over_completion_logits(
        losses.token_log_probs, module, params, prompts, completions, mask, dropout_key
    )
    return log_probs * mask
