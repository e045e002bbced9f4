"""The conditioning mechanism (Algorithm 2): CLP parameters in, plain LM parameters out."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from clp_jax.algorithm import subset as subset_lib
from clp_jax.algorithm.weighting import KLMix, Weighting

Params = Any  # a nested dict of arrays


@flax.struct.dataclass
class CLPParams:
    """φ = (θ_{S^C}, {θ_S^(i)}), the parameters of a conditional language policy.

    Attributes:
      conditioned: θ_S^(1..m), the leaves of S with a leading axis of size m.
      shared: θ_{S^C}, the other leaves, as they are in the LM.
    """

    conditioned: Params
    shared: Params


def init_clp_params(reference: Params, subset: subset_lib.Subset, num_objectives: int) -> CLPParams:
    """φ_0: every replica of S starts from the reference (Algorithm 1, line 1).

    Args:
      reference: θ_ref, a plain LM tree.
      subset: S.
      num_objectives: m >= 1.

    Raises:
      ValueError: S matches no parameter.
    """
    conditioned, shared = subset_lib.split(reference, subset)
    # Copies, because the trainer donates φ and keeps the reference.
    return CLPParams(
        conditioned=jax.tree.map(lambda x: jnp.stack([x] * num_objectives), conditioned),
        shared=jax.tree.map(jnp.copy, shared),
    )


def condition(params: CLPParams, reference: Params, weighting: Weighting, kl_mix: KLMix) -> Params:
    """θ^{α,w} = ((1 − β) Σ_i w_i θ_S^(i) + β θ_ref[S]) ⊕ θ_{S^C}, with β = f_mix(α) (Eq. 3).

    Mixes in float32 and returns each parameter in the dtype it is stored in.

    Args:
      params: φ.
      reference: θ_ref, the plain LM tree φ was made from; only its S leaves are read.
      weighting: one weighting: kl_weight [], reward_weights [m].
      kl_mix: f_mix.

    Returns:
      A plain LM tree: generation, scoring and export need to know nothing of CLP.
    """
    beta = kl_mix(weighting.kl_weight)
    reference_leaves = traverse_util.flatten_dict(reference)
    mixed = {
        path: _mix(replicas, reference_leaves[path], weighting.reward_weights, beta)
        for path, replicas in traverse_util.flatten_dict(params.conditioned).items()
    }
    return subset_lib.merge(traverse_util.unflatten_dict(mixed), params.shared)


def _mix(
    replicas: jax.Array, reference: jax.Array, reward_weights: jax.Array, beta: jax.Array
) -> jax.Array:
    """Eq. 3 of one parameter: replicas [m, ...], reference [...] -> [...]."""
    # A sum of m scaled arrays, not a contraction: a contraction would lose float32 bits on TPU.
    learned = sum(
        weight * replica.astype(jnp.float32)
        for weight, replica in zip(reward_weights, replicas, strict=True)
    )
    mixed = (1 - beta) * learned + beta * reference.astype(jnp.float32)
    return mixed.astype(replicas.dtype)


def expert(params: CLPParams, index: int) -> Params:
    """θ_S^(i) ⊕ θ_{S^C}: the LM of one objective alone, before any mixing with the reference."""
    return subset_lib.merge(jax.tree.map(lambda x: x[index], params.conditioned), params.shared)


def from_experts(experts: Sequence[Params], subset: subset_lib.Subset) -> CLPParams:
    """φ whose `expert(φ, i)` is experts[i]; concrete arrays only.

    Args:
      experts: m >= 1 plain LM trees.
      subset: S; outside of it the experts must be equal.

    Raises:
      ValueError: S matches no parameter, or two experts differ outside of it.
    """
    parts = [subset_lib.split(expert, subset) for expert in experts]
    conditioned, shared = zip(*parts, strict=True)
    first, *others = (traverse_util.flatten_dict(tree, sep="/") for tree in shared)
    for i, other in enumerate(others, start=1):
        for name, leaf in other.items():
            if not np.array_equal(leaf, first[name]):
                raise ValueError(
                    f"expert {i} differs from expert 0 in {name}, which SUBSET leaves out: it must "
                    "be the same for all"
                )
    return CLPParams(jax.tree.map(lambda *xs: jnp.stack(xs), *conditioned), shared[0])


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """What S costs: a policy of m objectives stores m|S| + |S^C| parameters (Sec. 3.1).

    Attributes:
      num_objectives: m.
      conditioned: |S|, in parameters, of one replica.
      shared: |S^C|, in parameters.
      bytes: memory of φ, in bytes.
    """

    num_objectives: int
    conditioned: int
    shared: int
    bytes: int

    @property
    def language_model(self) -> int:
        """|S| + |S^C|, the size of the plain LM."""
        return self.conditioned + self.shared

    @property
    def total(self) -> int:
        """m|S| + |S^C|."""
        return self.num_objectives * self.conditioned + self.shared

    @property
    def fraction(self) -> float:
        """|S| / (|S| + |S^C|); range [0, 1]."""
        return self.conditioned / self.language_model


def count_parameters(params: CLPParams, num_objectives: int) -> ParameterCount:
    """Counts φ; works on arrays and on the shapes that `jax.eval_shape` gives."""

    def size(tree: Params) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    return ParameterCount(
        num_objectives=num_objectives,
        conditioned=size(params.conditioned) // num_objectives,
        shared=size(params.shared),
        bytes=sum(
            math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize
            for leaf in jax.tree.leaves(params)
        ),
    )
