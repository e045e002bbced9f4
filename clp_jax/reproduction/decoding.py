"""What decoding costs when logits are mixed in place of parameters (Sec. 4.1.1, Fig. 2b)."""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from clp_jax.algorithm.conditioning import CLPParams, condition
from clp_jax.algorithm.train_step import CLP
from clp_jax.algorithm.weighting import Weighting
from clp_jax.models.sampling import sample, sample_mixture


def logit_mixing_cost(
    clp: CLP, params: CLPParams, reference, prompts: np.ndarray, rounds: int = 15
) -> np.ndarray:
    """Seconds of DeRa's decoding as a multiple of CLP's, in rounds that alternate between them.

    Both generate at (α, w) = (0.1, uniform): CLP mixes its parameters and decodes one model, DeRa
    decodes the policy and the reference together. End-of-sequence is switched off, so that both
    make as many tokens.

    Args:
      clp: network and f_mix.
      params: φ of m objectives.
      reference: θ_ref.
      prompts: [B, E] int32.
      rounds: how many times each is timed.

    Returns:
      Ratios, [rounds].
    """
    m = jax.tree.leaves(params.conditioned)[0].shape[0]
    weighting = Weighting.of(0.1, np.full(m, 1 / m))
    # No token has this id: both loops run to their end.
    decoding = dataclasses.replace(clp.decoding, eos_id=clp.module.config.vocab_size + 1)
    mix = functools.partial(condition, kl_mix=clp.kl_mix)

    def mixed_parameters(params, reference, prompts, keys):
        language_model = mix(params, reference, weighting)
        return sample(clp.module, language_model, prompts, keys, decoding).tokens

    def mixed_logits(params, reference, prompts, keys):
        models = [mix(params, reference, weighting), reference]
        beta = clp.kl_mix(weighting.kl_weight)
        coefficients = jnp.stack([1 - beta, beta])
        return sample_mixture(clp.module, models, coefficients, prompts, keys, decoding).tokens

    keys = jax.random.split(jax.random.key(0), len(prompts))
    arguments = (params, reference, jax.device_put(prompts), keys)
    compiled = [jax.jit(function) for function in (mixed_logits, mixed_parameters)]
    for function in compiled:
        _seconds(function, *arguments)
    return np.array(
        [_seconds(compiled[0], *arguments) / _seconds(compiled[1], *arguments)
         for _ in range(rounds)]
    )  # fmt: skip


def _seconds(function: Callable, *arguments) -> float:
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started
