"""Steering by mixing logits, token by token, where CLP mixes parameters once.

Decoding-time realignment (DeRa, Liu et al. 2024) mixes a policy finetuned at α_min with the
reference. Multi-objective decoding (Shi et al. 2024) mixes the experts of m rewards. Both are
exact for optimal policies (Sec. 6.1, App. E) and take a forward pass of every model per token.
"""

import jax
import numpy as np

from clp_jax.algorithm.conditioning import CLPParams, expert
from clp_jax.algorithm.train_step import CLP
from clp_jax.algorithm.weighting import Weighting
from clp_jax.models.partitioning import Placement
from clp_jax.policies.policy import MixingPolicy, Params


class LogitMixingPolicy(MixingPolicy):
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
        super().__init__(clp, params, reference, placement)
        self._over_experts = over_experts

    def _language_models(self, weighting: Weighting) -> tuple[list[Params], np.ndarray]:
        """The models whose logits are mixed, and their coefficients [n]."""
        weights = np.asarray(jax.device_get(weighting.reward_weights))
        beta = float(self._clp.kl_mix(weighting.kl_weight))
        if not self._over_experts:
            policy = self._mixed(Weighting.of(self._clp.kl_mix.kl_weight_min, weights))
            return [policy, self._reference], np.array([1 - beta, beta], np.float32)
        models = [expert(self.params, i) for i in range(len(weights))]
        coefficients = (1 - beta) * weights
        if beta > 0:
            models, coefficients = [*models, self._reference], np.append(coefficients, beta)
        return models, coefficients.astype(np.float32)
