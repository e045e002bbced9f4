"""Rewarded Soups (Ramé et al. 2023): one policy for each reward, mixed in parameters at inference.

The experts share the reference and the budget: T iterations are divided evenly over the m of them
(Sec. 4, "same number of training iterations").
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clp_jax.algorithm.conditioning import CLPParams, from_experts
from clp_jax.algorithm.subset import full, none
from clp_jax.algorithm.weighting import FixedRewardWeights

if TYPE_CHECKING:
    from clp_jax.settings.config import Run


Params = Any


def expert_runs(run: "Run") -> list["Run"]:
    """The m single-objective runs that a soup is made of.

    Each trains a plain language model on w = e_i for T/m steps (where m does not divide T, the
    first ones make one step more), in MODEL_DIR/experts/NAME.

    Raises:
      ValueError: fewer steps than objectives.
    """
    names = run.model.rewards.names
    if run.total_steps < len(names):
        raise ValueError(
            f"TRAIN_STEPS={run.total_steps} cannot be divided over {len(names)} experts"
        )
    whole, rest = divmod(run.total_steps, len(names))
    return [
        dataclasses.replace(
            run,
            model=dataclasses.replace(
                run.model,
                rewarded_soup=False,
                subset=none(),
                reward_weights_sampler=FixedRewardWeights(tuple(np.eye(len(names))[i].tolist())),
            ),
            model_dir=f"{run.model_dir}/experts/{name}",
            total_steps=whole + (i < rest),
        )
        for i, name in enumerate(names)
    ]


def soup(experts: Sequence[Params]) -> CLPParams:
    """m plain LM trees as the φ of a full-CLP, which `conditioning.condition` mixes (Eq. 3)."""
    return from_experts(experts, full())
