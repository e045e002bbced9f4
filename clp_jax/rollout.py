"""A rollout: sampled completions, with what the update needs of them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from clp_jax import losses
from clp_jax.models.sampling import Decoding, sample
from clp_jax.weighting import Weighting

Params = Any


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


def completion_logits(
    module: nn.Module,
    params: Params,
    prompts: jax.Array,
    completions: jax.Array,
    mask: jax.Array,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Teacher-forced logits of the completions.

    Args:
      module: a T5-like network.
      params: plain LM parameters.
      prompts: [B, E] int32.
      completions: [B, L] int32.
      mask: [B, L]; says which completion tokens exist.
      dropout_key: PRNG key for dropout; None turns dropout off.

    Returns:
      [B, L, V] float32.
    """
    decoder_inputs = jnp.pad(completions, ((0, 0), (1, 0)))[:, :-1]
    logits: Any = module.apply(
        {"params": params},
        prompts,
        decoder_inputs,
        mask.astype(jnp.int32),  # read as "which positions are not padding"
        enable_dropout=dropout_key is not None,
        rngs={} if dropout_key is None else {"dropout": dropout_key},
    )
    return logits


def completion_log_probs(
    module: nn.Module,
    params: Params,
    prompts: jax.Array,
    completions: jax.Array,
    mask: jax.Array,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Teacher-forced log-probabilities, [B, L] float32, 0 where the mask is; arguments as above."""
    logits = completion_logits(module, params, prompts, completions, mask, dropout_key)
    return losses.token_log_probs(logits, completions) * mask
