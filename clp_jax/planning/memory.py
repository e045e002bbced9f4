"""Bytes of a run's arrays on one chip, by what they are for, from their shapes and shardings."""

import math
from typing import Any

import jax

from clp_jax.models.partitioning import Placement
from clp_jax.rewards.base import RewardStack
from clp_jax.rewards.learned import LearnedReward
from clp_jax.runs import states
from clp_jax.settings.config import Run

Tree = Any  # of jax.ShapeDtypeStruct with shardings, or of arrays

# What stays in memory over the whole of training.
PARTS = ("parameters", "optimizer", "reference", "value", "rewards")


def chip_bytes(tree: Tree) -> int:
    """Bytes that each chip holds of a tree, without the padding of TPU layouts."""
    return sum(_chip_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _chip_bytes(leaf: Any) -> int:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 8  # two words
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def resident(run: Run, place: Placement) -> dict[str, int]:
    """Bytes per chip of what stays in memory over the whole of training.

    Args:
      run: one policy's.
      place: its devices, or those of an abstract mesh.

    Returns:
      {part: bytes}, the parts being `PARTS`: φ, the optimizers of policy and value network, the
      reference, the value network, and the parameters of reward models, those that are given text
      included, which compute on the device all the same.

    Raises:
      ValueError: a reward model cannot be cut over the devices.
    """
    state = states.state_shapes(run, place)
    run.model.rewards.place(place)
    return {
        "parameters": chip_bytes(state.params),
        "optimizer": chip_bytes((state.policy_optimizer_state, state.value_optimizer_state)),
        "reference": chip_bytes(states.reference_shapes(run, place)),
        "value": chip_bytes(state.value_params),
        "rewards": sum(chip_bytes(shapes) for shapes in _reward_shapes(run.model.rewards)),
    }


def _reward_shapes(rewards: RewardStack) -> list[Tree]:
    """Of the parameters of each reward model."""
    given_text = [each.reward for each in rewards.rewards if not each.on_device]
    return [
        *(each.shapes() for each in rewards.on_device),
        *(reward.shapes() for reward in given_text if isinstance(reward, LearnedReward)),
    ]
