"""Steering by mixing logits, token by token, where CLP mixes parameters once.

Decoding-time realignment (DeRa, Liu et al. 2024) mixes a policy finetuned at α_min with the
reference. Multi-objective decoding (Shi et al. 2024) mixes the experts of m rewards. Both are
exact for optimal policies (Sec. 6.1, App. E) and take a forward pass of every model per token.
"""

import functools
from typing import Any

import jax
import numpy as np

from clp_jax.algorithm import train_step as clp_step
from clp_jax.algorithm.conditioning import CLPParams, condition, expert
from clp_jax.algorithm.rollout import Rollout
from clp_jax.algorithm.train_step import CLP
from clp_jax.algorithm.weighting import Weighting
from clp_jax.models import partitioning
from clp_jax.models.partitioning import Placement
from clp_jax.models.sampling import sample_mixture

Params = Any


class LogitMixingPolicy:
    """A steerable policy whose logits are (1 − β) Σ_i c_i ζ_i + β ζ_ref, with β = f_mix(α).

    With `over_experts`, ζ_i are the logits of the m experts of φ and c = w: multi-objective
    decoding; the reference is left out where β = 0. Otherwise there is one ζ, of θ^{α_min,w}: DeRa.

    Args:
      clp: network, decoding and f_mix.
      params: φ, of a soup or of any other run; the attribute may be set to another one of the same
        shape, without compiling anew.
      reference: θ_ref.
      over_experts: see above.
      placement: over which devices; None for the first one.
    """

    def __init__(
        self,
        clp: CLP,
        params: CLPParams,
        reference: Params,
        over_experts: bool,
        placement: Placement | None = None,
    ):
        self.params = params
        place = self.placement = placement or Placement.over(jax.local_devices()[:1])
        self._clp, self._reference, self._over_experts = clp, reference, over_experts
        self._mix = jax.jit(
            functools.partial(condition, kl_mix=clp.kl_mix),
            out_shardings=place.parameters(clp.module, reference),
        )
        self._generate = jax.jit(
            place.traced(functools.partial(_generate, clp)), out_shardings=place.batch
        )
        self._last: tuple[CLPParams, Weighting, list[Params], np.ndarray] | None = None

    def generate(self, weighting: Weighting, prompts: np.ndarray, key: jax.Array) -> Rollout:
        """See `clp_jax.policies.policy.SteerablePolicy.generate`."""
        last = self._last
        if last is None or last[0] is not self.params or last[1] is not weighting:
            last = self._last = (self.params, weighting, *self._language_models(weighting))
        *_, language_models, coefficients = last
        coefficients, key = partitioning.put((coefficients, key), self.placement.replicated)
        prompts = partitioning.put(prompts, self.placement.batch)
        return self._generate(language_models, self._reference, coefficients, prompts, key)

    def release(self) -> None:
        """Frees the memory of the last models that were mixed."""
        self._last = None

    def _language_models(self, weighting: Weighting) -> tuple[list[Params], np.ndarray]:
        """The models whose logits are mixed, and their coefficients [n]."""
        weights = np.asarray(jax.device_get(weighting.reward_weights))
        beta = float(self._clp.kl_mix(weighting.kl_weight))
        if not self._over_experts:
            least = partitioning.put(
                Weighting.of(self._clp.kl_mix.kl_weight_min, weights), self.placement.replicated
            )
            policy = self._mix(self.params, self._reference, least)
            return [policy, self._reference], np.array([1 - beta, beta], np.float32)
        models = [expert(self.params, i) for i in range(len(weights))]
        coefficients = (1 - beta) * weights
        if beta > 0:
            models, coefficients = [*models, self._reference], np.append(coefficients, beta)
        return models, coefficients.astype(np.float32)


def _generate(clp, language_models, reference, coefficients, prompts, key):
    keys = jax.random.split(key, prompts.shape[0])
    samples = sample_mixture(clp.module, language_models, coefficients, prompts, keys, clp.decoding)
    rollout = Rollout(prompts, samples.tokens, samples.mask, samples.log_probs, prompts)
    return clp_step.score(clp, reference, rollout)
