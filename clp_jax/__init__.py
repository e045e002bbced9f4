"""clp-jax: steerable multi-objective finetuning with Conditional Language Policy.

    policy = clp_jax.load("runs/briefs")
    policy.generate(documents, {"entailment": 0.8, "rouge": 0.2})

and what a training loop of one's own is made of: docs/own_loop.md. Each name is imported when it is
first used, so that `import clp_jax` costs nothing.
"""

import importlib
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

from clp_jax.settings import old_names

if TYPE_CHECKING:
    from clp_jax.algorithm.conditioning import CLPParams, condition
    from clp_jax.algorithm.optimizers import adafactor
    from clp_jax.algorithm.rollout import Rollout
    from clp_jax.algorithm.subset import attention, full, logits, matching
    from clp_jax.algorithm.train_step import CLP, TrainState, init_train_state, train_step
    from clp_jax.algorithm.weighting import (
        DirichletRewardWeights,
        FixedKLWeight,
        FixedRewardWeights,
        InverseCDFKLWeight,
        LinearKLMix,
        MixtureSampler,
        SoftmaxKLMix,
        Weighting,
        sample_weightings,
    )
    from clp_jax.models.config import T5Config
    from clp_jax.models.decoding import Decoding
    from clp_jax.models.t5 import Transformer
    from clp_jax.policies.policy import CLPPolicy
    from clp_jax.reporting.errors import RewardError
    from clp_jax.runs.trained_policy import Front, Scores, TrainedPolicy, load

__all__ = [
    "CLP",
    "CLPParams",
    "CLPPolicy",
    "Decoding",
    "DirichletRewardWeights",
    "FixedKLWeight",
    "FixedRewardWeights",
    "Front",
    "InverseCDFKLWeight",
    "LinearKLMix",
    "MixtureSampler",
    "RewardError",
    "Rollout",
    "Scores",
    "SoftmaxKLMix",
    "T5Config",
    "TrainState",
    "TrainedPolicy",
    "Transformer",
    "Weighting",
    "adafactor",
    "attention",
    "condition",
    "full",
    "init_train_state",
    "load",
    "logits",
    "matching",
    "sample_weightings",
    "train_step",
]

# Where each name stands.
_HOMES = {
    "CLP": "algorithm.train_step",
    "CLPParams": "algorithm.conditioning",
    "CLPPolicy": "policies.policy",
    "Decoding": "models.decoding",
    "DirichletRewardWeights": "algorithm.weighting",
    "FixedKLWeight": "algorithm.weighting",
    "FixedRewardWeights": "algorithm.weighting",
    "Front": "runs.trained_policy",
    "InverseCDFKLWeight": "algorithm.weighting",
    "LinearKLMix": "algorithm.weighting",
    "MixtureSampler": "algorithm.weighting",
    "RewardError": "reporting.errors",
    "Rollout": "algorithm.rollout",
    "Scores": "runs.trained_policy",
    "SoftmaxKLMix": "algorithm.weighting",
    "T5Config": "models.config",
    "TrainState": "algorithm.train_step",
    "TrainedPolicy": "runs.trained_policy",
    "Transformer": "models.t5",
    "Weighting": "algorithm.weighting",
    "adafactor": "algorithm.optimizers",
    "attention": "algorithm.subset",
    "condition": "algorithm.conditioning",
    "full": "algorithm.subset",
    "init_train_state": "algorithm.train_step",
    "load": "runs.trained_policy",
    "logits": "algorithm.subset",
    "matching": "algorithm.subset",
    "sample_weightings": "algorithm.weighting",
    "train_step": "algorithm.train_step",
}

old_names.install()


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for (PEP 562)."""
    if name == "__version__":
        return metadata.version("clp-jax")
    if name not in _HOMES:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__]
        )
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What there is, whether it has been imported or not."""
    return sorted({*globals(), *__all__})
