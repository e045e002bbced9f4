"""Steerable policies: a weighting in, a generator out.

Everything that is steered at inference (CLP, soups, logit mixing and prompting) has this one
interface, which evaluation, generation and export use.
"""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from clp_jax.algorithm import train_step as clp_step
from clp_jax.algorithm.conditioning import CLPParams, condition
from clp_jax.algorithm.rollout import Rollout
from clp_jax.algorithm.train_step import CLP
from clp_jax.algorithm.weighting import Weighting, check_kl_weight
from clp_jax.models import partitioning
from clp_jax.models.partitioning import Placement
from clp_jax.models.sampling import sample_mixture
from clp_jax.policies import prompting

Params = Any

Mixture = tuple[list[Params], np.ndarray | None]


class SteerablePolicy(Protocol):
    """Generates for any weighting, compiled once for all of them.

    Attributes:
      placement: the devices that share a batch; its size B must be a multiple of their number.
    """

    placement: Placement

    def generate(self, weighting: Weighting, prompts: np.ndarray, key: jax.Array) -> Rollout:
        """Completions of `prompts`, scored under the policy and the reference.

        Args:
          weighting: one weighting: kl_weight [], reward_weights [m].
          prompts: encoder tokens, [B, E] int32, padded with 0; all of them on every process.
          key: PRNG key; each example gets its own.
        """


class MixingPolicy:
    """What policies share that mix φ with its reference at each weighting; see `CLPPolicy`."""

    _prompter: "Prompter | None" = None

    def __init__(self, clp: CLP, params: CLPParams, reference: Params, placement: Placement | None):
        self.params = params
        self._clp, self._reference = clp, reference
        place = self.placement = placement or Placement.over(jax.local_devices()[:1])
        self._mix = jax.jit(
            functools.partial(condition, kl_mix=clp.kl_mix),
            out_shardings=place.parameters(clp.module, reference),
        )
        self._generate = jax.jit(
            place.traced(functools.partial(_generate, clp)), out_shardings=place.batch
        )
        self._last: tuple[CLPParams, Weighting, Mixture] | None = None

    def generate(self, weighting: Weighting, prompts: np.ndarray, key: jax.Array) -> Rollout:
        """See `SteerablePolicy.generate`; mixes once for calls in a row with the same object."""
        conditioned = prompts
        if self._prompter is not None:
            conditioned, _ = self._prompter(prompts, jax.device_get(weighting.reward_weights))
        arrays = partitioning.put((conditioned, prompts), self.placement.batch)
        models, coefficients = self._mixture(weighting)
        coefficients, key = partitioning.put((coefficients, key), self.placement.replicated)
        return self._generate(models, coefficients, self._reference, *arrays, key)

    def release(self) -> None:
        """Frees the memory of the last mixture."""
        self._last = None

    def _mixture(self, weighting: Weighting) -> Mixture:
        """`_language_models`, kept until the weighting or the parameters are another object."""
        if self._last is None or self._last[0] is not self.params or self._last[1] is not weighting:
            self._last = (self.params, weighting, self._language_models(weighting))
        return self._last[2]

    def _language_models(self, weighting: Weighting) -> Mixture:
        """The models whose logits are mixed, and their coefficients [n]; None for one model."""
        raise NotImplementedError

    def _mixed(self, weighting: Weighting) -> Params:
        """θ^{α,w}."""
        lowest = self._clp.kl_mix.kl_weight_min
        check_kl_weight(jax.device_get(weighting.kl_weight), lowest)
        placed = partitioning.put(weighting, self.placement.replicated)
        return self._mix(self.params, self._reference, placed)


class CLPPolicy(MixingPolicy):
    """A conditional language policy φ with its reference.

    Args:
      clp: network, decoding and f_mix.
      params: φ; the attribute may be set to another one of the same shape, without compiling anew.
      reference: θ_ref.
      prompter: writes w into the prompts, for policies trained with CONDITION_PROMPT.
      placement: over which devices; None for the first one.
    """

    def __init__(
        self,
        clp: CLP,
        params: CLPParams,
        reference: Params,
        prompter: "Prompter | None" = None,
        placement: Placement | None = None,
    ):
        super().__init__(clp, params, reference, placement)
        self._prompter = prompter

    def language_model(self, weighting: Weighting) -> Params:
        """θ^{α,w}, the plain LM parameters at one weighting."""
        return self._mixture(weighting)[0][0]

    def _language_models(self, weighting: Weighting) -> Mixture:
        return [self._mixed(weighting)], None


def _generate(clp, language_models, coefficients, reference, prompts, plain_prompts, key):
    keys = jax.random.split(key, prompts.shape[0])
    samples = sample_mixture(clp.module, language_models, coefficients, prompts, keys, clp.decoding)
    rollout = Rollout(prompts, samples.tokens, samples.mask, samples.log_probs, plain_prompts)
    return clp_step.score(clp, reference, rollout)


class Prompter:
    """Writes reward weights in front of token prompts (App. A.2).

    Args:
      vocabulary: SeqIO vocabulary.
      names: what the objectives are called in the prompt.
      repetitions: how often each weight is written.
    """

    def __init__(self, vocabulary: Any, names: Sequence[str], repetitions: int):
        self._vocabulary, self._names, self._repetitions = vocabulary, names, repetitions
        # Room for the longest prefix, so that a prompt loses nothing to it.
        grid = np.linspace(0, 1, 101)[:, None] * np.ones(len(names))
        self.length = max(len(self.prefix(weights)) for weights in grid)

    def __call__(
        self, prompts: np.ndarray, reward_weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Prompts [B, E] with the weights [m] or [k, m] of each of k groups in front.

        Returns:
          ([B, E + P], P being `self.length`, the tokens of the longest prefix; which prompts lost
          their end [B] bool, which takes a vocabulary that joins words).
        """
        groups = np.atleast_2d(reward_weights)
        parts = np.split(np.pad(prompts, ((0, 0), (0, self.length))), len(groups))
        done = [
            prompting.prepend(self.prefix(weights), part, self._vocabulary.eos_id)
            for part, weights in zip(parts, groups, strict=True)
        ]
        return np.concatenate([p for p, _ in done]), np.concatenate([lost for _, lost in done])

    def text(self, reward_weights: np.ndarray) -> str:
        """The prefix itself."""
        return prompting.weight_prefix(self._names, reward_weights, self._repetitions)

    def prefix(self, reward_weights: np.ndarray) -> list[int]:
        """Its tokens."""
        return self._vocabulary.encode(self.text(reward_weights))
