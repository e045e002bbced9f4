"""Weightings (α, w): what a conditional language policy is steered by.

A weighting is a KL weight α in [α_min, 1] and reward weights w on the simplex Δ_m. This module
holds the weighting itself, the distributions Q that training draws it from (Algorithm 1, line 3;
App. A.4), and the KL-mixing functions f_mix (Eq. 4).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

_SUM_TOLERANCE = 1e-3  # what "sums to 1" means for numbers a person types, e.g. 0.333,0.333,0.334


@flax.struct.dataclass
class Weighting:
    """One weighting, or a batch of them along a leading axis.

    Attributes:
      kl_weight: α, [...]; range [α_min, 1].
      reward_weights: w, [..., m]; non-negative, summing to 1 over the last axis.
    """

    kl_weight: jax.Array
    reward_weights: jax.Array

    @classmethod
    def of(
        cls, kl_weight: float | Sequence[float] | np.ndarray, reward_weights: Sequence | np.ndarray
    ) -> "Weighting":
        """Weightings from numbers on the host, as float32 on the device.

        Args:
          kl_weight: α, one number or [k].
          reward_weights: w, [m], or [k, m] for a batch of them.

        Raises:
          ValueError: a w off the simplex, an α outside of [0, 1], or other shapes than these.
        """
        alphas, weights = np.asarray(kl_weight, np.float32), np.asarray(reward_weights, np.float32)
        if weights.ndim not in (1, 2) or alphas.shape not in ((), weights.shape[:-1]):
            raise ValueError(
                f"kl_weight of shape {alphas.shape} and reward_weights of shape {weights.shape}; "
                "valid are () and (m,), or () or (k,) and (k, m)"
            )
        for w in np.atleast_2d(weights).tolist():
            check_reward_weights(w, len(w))
        for alpha in alphas.ravel().tolist():
            check_kl_weight(alpha)
        return cls(*jax.device_put((np.broadcast_to(alphas, weights.shape[:-1]), weights)))

    def __getitem__(self, index) -> "Weighting":
        return Weighting(self.kl_weight[index], self.reward_weights[index])


def check_reward_weights(
    reward_weights: Sequence[float], num_objectives: int, source: str = "reward_weights"
) -> tuple[float, ...]:
    """Returns `reward_weights` as a point of the simplex Δ_m, or says what is wrong with it.

    Args:
      reward_weights: [m] numbers; non-negative, summing to 1 (to 1e-3, then renormalised).
      num_objectives: m.
      source: where the value came from, for the error message.

    Raises:
      ValueError: wrong length, not finite, negative, or a sum other than 1.
    """
    weights = tuple(float(w) for w in reward_weights)
    said = f"{source}={','.join(f'{w:g}' for w in weights)}"
    if len(weights) != num_objectives:
        raise ValueError(
            f"{said} has {len(weights)} weights, but there are {num_objectives} rewards; "
            f"give {num_objectives} non-negative numbers that sum to 1"
        )
    if not all(math.isfinite(w) for w in weights):
        raise ValueError(f"{said} has a weight that is not finite; weights lie in [0, 1]")
    if min(weights) < 0:
        raise ValueError(f"{said} has a negative weight; weights lie in [0, 1]")
    total = sum(weights)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise ValueError(f"{said} sums to {total:g}; reward weights must sum to 1")
    return tuple(w / total for w in weights)


def check_kl_weight(
    kl_weight: float, kl_weight_min: float = 0.0, source: str = "kl_weight"
) -> float:
    """Returns `kl_weight` if it lies in [kl_weight_min, 1].

    Raises:
      ValueError: otherwise (NaN included).
    """
    value = float(kl_weight)
    if not kl_weight_min * (1 - 1e-6) <= value <= 1:  # which float32 may round down
        raise ValueError(f"{source}={value:g} is outside [{kl_weight_min:g}, 1]")
    return value


# ------------------------------------------------------------------------------------------------
# f_mix: the KL weight α as a mixing coefficient β of the reference's parameters
# ------------------------------------------------------------------------------------------------


class KLMix(Protocol):
    """f_mix: α in [kl_weight_min, 1] -> β in [0, 1], with its inverse."""

    @property
    def kl_weight_min(self) -> float:
        """α_min, the smallest KL weight this mixing is meant for; range [0, 1]."""

    def __call__(self, kl_weight: jax.Array) -> jax.Array:
        """β = f_mix(α)."""

    def inverse(self, beta: jax.Array) -> jax.Array:
        """α = f_mix⁻¹(β)."""


@dataclasses.dataclass(frozen=True)
class SoftmaxKLMix:
    """f_mix(α) = (α − α_min) / (α (1 − α_min)), the exact mixing of optimal logits (Eq. 4).

    Its inverse is α_min / (α_min u + 1 − u). App. A.4 prints α_min u / (α_min u + 1 − u), which
    is 0 at u = 0 instead of α_min; the form here has the median 2 α_min / (α_min + 1) that the
    paper states.

    Attributes:
      kl_weight_min: α_min; range (0, 1).
    """

    kl_weight_min: float = 0.01

    def __post_init__(self):
        if not 0 < self.kl_weight_min < 1:
            raise ValueError(f"SoftmaxKLMix.kl_weight_min={self.kl_weight_min} is outside (0, 1)")

    def __call__(self, kl_weight: jax.Array) -> jax.Array:
        """β of the same shape as `kl_weight`; 0 at α_min and 1 at 1."""
        return (kl_weight - self.kl_weight_min) / (kl_weight * (1 - self.kl_weight_min))

    def inverse(self, beta: jax.Array) -> jax.Array:
        """α of the same shape as `beta`; range [α_min, 1]."""
        return self.kl_weight_min / (self.kl_weight_min * beta + 1 - beta)


@dataclasses.dataclass(frozen=True)
class LinearKLMix:
    """f_mix(α) = α, the ablation of App. C.1.

    Note that f_mix(α_min) = α_min: a little of the reference is mixed in even at α_min.

    Attributes:
      kl_weight_min: α_min; range [0, 1). Only samplers and validation read it.
    """

    kl_weight_min: float = 0.01

    def __post_init__(self):
        if not 0 <= self.kl_weight_min < 1:
            raise ValueError(f"LinearKLMix.kl_weight_min={self.kl_weight_min} is outside [0, 1)")

    def __call__(self, kl_weight: jax.Array) -> jax.Array:
        """β = α."""
        return kl_weight

    def inverse(self, beta: jax.Array) -> jax.Array:
        """α = β."""
        return beta


# ------------------------------------------------------------------------------------------------
# Q: the distributions that training draws weightings from
# ------------------------------------------------------------------------------------------------


class Sampler(Protocol):
    """A distribution over α or over w: a PRNG key in, one draw out."""

    def __call__(self, key: jax.Array) -> jax.Array:
        """One draw: [] for a KL weight, [m] for reward weights."""


@dataclasses.dataclass(frozen=True)
class DirichletRewardWeights:
    """w ~ Dirichlet(β) (App. A.4); β = (1, ..., 1) is uniform on the simplex.

    Attributes:
      concentration: β; one number for the symmetric distribution or [m] numbers; each > 0. Small
        values favour the corners (Dirichlet(0.3) in Sec. 4.4), large ones the centre.
      num_objectives: m; filled in from the rewards where a config leaves it None.
    """

    concentration: float | tuple[float, ...] = 1.0
    num_objectives: int | None = None

    def __post_init__(self):
        values = np.atleast_1d(np.asarray(self.concentration, float))
        if not np.all(np.isfinite(values) & (values > 0)):
            raise ValueError(f"Dirichlet concentration={self.concentration} must be positive")
        if self.num_objectives is not None and values.size not in (1, self.num_objectives):
            raise ValueError(
                f"Dirichlet concentration={self.concentration} has {values.size} entries, but "
                f"there are {self.num_objectives} rewards; give one number or one for each"
            )

    def __call__(self, key: jax.Array) -> jax.Array:
        """w, [m]."""
        if self.num_objectives is None:
            raise ValueError("DirichletRewardWeights.num_objectives is not set")
        if self.num_objectives == 1:
            return jnp.ones([1])
        concentration = jnp.broadcast_to(jnp.asarray(self.concentration), (self.num_objectives,))
        return jax.random.dirichlet(key, concentration)


@dataclasses.dataclass(frozen=True)
class FixedRewardWeights:
    """Always the same w, [m]: single-objective finetuning, or multi-KL with one reward."""

    reward_weights: tuple[float, ...]

    def __call__(self, key: jax.Array) -> jax.Array:
        """w, [m]; the key is not used."""
        del key
        return jnp.asarray(self.reward_weights, jnp.float32)


@dataclasses.dataclass(frozen=True)
class FixedKLWeight:
    """Always the same α; range [0, 1]. The paper's multi-reward runs use 0.01."""

    kl_weight: float = 0.01

    def __call__(self, key: jax.Array) -> jax.Array:
        """α, []; the key is not used."""
        del key
        return jnp.float32(self.kl_weight)


@dataclasses.dataclass(frozen=True)
class InverseCDFKLWeight:
    """α = f_mix⁻¹(U) with U uniform, so that β = f_mix(α) is uniform (App. A.4).

    U covers [f_mix(α_min), 1], which is [0, 1] for the softmax mixing.
    """

    kl_mix: KLMix = SoftmaxKLMix()

    def __call__(self, key: jax.Array) -> jax.Array:
        """α, []; range [α_min, 1]."""
        lowest = self.kl_mix(jnp.float32(self.kl_mix.kl_weight_min))
        return self.kl_mix.inverse(jax.random.uniform(key, minval=lowest, maxval=1.0))


@dataclasses.dataclass(frozen=True)
class MixtureSampler:
    """Draws from one of several samplers, e.g. corners half of the time.

    Attributes:
      samplers: samplers of the same quantity.
      probabilities: one for each sampler; they sum to 1.
    """

    samplers: tuple[Sampler, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self):
        check_reward_weights(self.probabilities, len(self.samplers), "MixtureSampler.probabilities")

    def __call__(self, key: jax.Array) -> jax.Array:
        """One draw of whatever the samplers draw."""
        which_key, draw_key = jax.random.split(key)
        which = jax.random.choice(which_key, len(self.samplers), p=jnp.asarray(self.probabilities))
        return jax.lax.switch(which, list(self.samplers), draw_key)


def for_objectives(sampler: Sampler, num_objectives: int) -> Sampler:
    """`sampler` as a sampler of m reward weights: fills in m where it is open, and checks it.

    Raises:
      ValueError: a fixed w or a concentration of another length.
    """
    match sampler:
        case DirichletRewardWeights(num_objectives=None):
            return dataclasses.replace(sampler, num_objectives=num_objectives)
        case FixedRewardWeights():
            weights = check_reward_weights(
                sampler.reward_weights, num_objectives, "FixedRewardWeights.reward_weights"
            )
            return FixedRewardWeights(weights)
        case MixtureSampler():
            samplers = tuple(for_objectives(s, num_objectives) for s in sampler.samplers)
            return dataclasses.replace(sampler, samplers=samplers)
    return sampler


def check_kl_sampler(sampler: Sampler, kl_mix: KLMix) -> None:
    """Raises ValueError if a sampler draws KL weights outside the range of f_mix."""
    match sampler:
        case FixedKLWeight():
            check_kl_weight(sampler.kl_weight, kl_mix.kl_weight_min, "FixedKLWeight.kl_weight")
        case InverseCDFKLWeight() if sampler.kl_mix != kl_mix:
            raise ValueError(
                f"InverseCDFKLWeight.kl_mix={sampler.kl_mix} differs from KL_MIX={kl_mix}"
            )
        case MixtureSampler():
            for part in sampler.samplers:
                check_kl_sampler(part, kl_mix)


def check_draws(
    kl_weight: Sampler, reward_weights: Sampler, kl_mix: KLMix, num_objectives: int
) -> None:
    """Raises ValueError unless 256 draws of samplers are weightings; of those of one's own.

    Args:
      kl_weight: draws α.
      reward_weights: draws w.
      kl_mix: says α_min.
      num_objectives: m.
    """
    of_ours = {type(sampler).__module__ for sampler in (kl_weight, reward_weights)} == {__name__}
    if of_ours and MixtureSampler not in (type(kl_weight), type(reward_weights)):
        return
    drawn = jax.device_get(sample_weightings(jax.random.key(0), kl_weight, reward_weights, 256))
    alphas, weights = np.asarray(drawn.kl_weight), np.asarray(drawn.reward_weights)
    for name, shape, valid in (
        ("KL_WEIGHT_SAMPLER", alphas.shape[1:], ()),
        ("REWARD_WEIGHTS_SAMPLER", weights.shape[1:], (num_objectives,)),
    ):
        if shape != valid:
            raise ValueError(f"{name} draws arrays of shape {shape}; valid is {valid}")
    for alpha, w in zip(alphas, weights, strict=True):
        check_kl_weight(alpha, kl_mix.kl_weight_min, "a draw of KL_WEIGHT_SAMPLER")
        check_reward_weights(w, num_objectives, "a draw of REWARD_WEIGHTS_SAMPLER")


def sample_weightings(
    key: jax.Array, kl_weight: Sampler, reward_weights: Sampler, count: int = 1
) -> Weighting:
    """(α, w) ~ Q, `count` independent draws (Algorithm 1, line 3).

    Args:
      key: PRNG key.
      kl_weight: draws α.
      reward_weights: draws w.
      count: k, the number of weightings, one for each group of the batch.

    Returns:
      A Weighting with leading axis k.
    """
    kl_key, reward_key = jax.random.split(key)
    return Weighting(
        jax.vmap(kl_weight)(jax.random.split(kl_key, count)),
        jax.vmap(reward_weights)(jax.random.split(reward_key, count)),
    )
