"""Optimizers for policies with one replica per objective."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clp_jax.algorithm.conditioning import CLPParams

Params = Any


def adafactor(learning_rate: float) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018) with parameter scaling, no momentum: T5's optimizer.

    The paper's learning rates are 3e-5 for the policy and 1e-4 for the value network (App. B).

    Args:
      learning_rate: relative to each parameter's RMS; > 0.

    Raises:
      ValueError: learning_rate <= 0.
    """
    if not learning_rate > 0:
        raise ValueError(f"learning_rate={learning_rate} must be positive")
    return optax.adafactor(learning_rate)


def per_objective(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Lifts an optimizer of plain LM parameters to φ: every replica is optimised on its own.

    Adafactor scales updates by each parameter's RMS, clips by the update's RMS and factors its
    second moments over the two largest axes. On a stacked leaf [m, ...] all three would mix the
    replicas; here the optimizer is applied to each slice of the leading axis, so m replicas behave
    as m separate models do.

    Args:
      optimizer: acts leaf by leaf (Adafactor, Adam, ...; not global-norm clipping).
    """

    def init(params: CLPParams) -> CLPParams:
        return CLPParams(
            conditioned=_for_each_replica(optimizer.init, params.conditioned),
            shared=optimizer.init(params.shared),
        )

    def update(updates: CLPParams, state: CLPParams, params: CLPParams | None = None):
        assert params is not None, "Adafactor's parameter scaling needs the parameters"
        conditioned, conditioned_state = _for_each_replica(
            optimizer.update, updates.conditioned, state.conditioned, params.conditioned
        )
        shared, shared_state = optimizer.update(updates.shared, state.shared, params.shared)
        return CLPParams(conditioned, shared), CLPParams(conditioned_state, shared_state)

    return optax.GradientTransformation(init, update)


def _for_each_replica(function: Callable, *trees: Params) -> Any:
    """Applies a function to the i-th slices of the leaves' leading axis, for each i; stacks."""
    if not jax.tree.leaves(trees[0]):  # an empty S has no leading axis
        return function(*trees)
    num_objectives = jax.tree.leaves(trees[0])[0].shape[0]
    # One after the other, not `jax.vmap`: the temporary arrays of one replica are gone before the
    # next one's are made.
    results = [function(*jax.tree.map(lambda x, i=i: x[i], trees)) for i in range(num_objectives)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def adam_with_cosine_decay(
    learning_rate: float, total_steps: int, warmup_steps: int = 100
) -> optax.GradientTransformation:
    """Adam, its rate rising linearly for `warmup_steps` and then falling to 0 along a cosine.

    Args:
      learning_rate: the highest; > 0.
      total_steps: where it reaches 0.
      warmup_steps: steps before the highest.
    """
    if not learning_rate > 0:
        raise ValueError(f"learning_rate={learning_rate} must be positive")
    warmup_steps = min(warmup_steps, total_steps // 2)
    return optax.adam(
        optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, max(total_steps, 1))
    )
