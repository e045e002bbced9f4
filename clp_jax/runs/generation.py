"""Completions of a trained policy at one weighting, for text."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from clp_jax.algorithm import weighting as weighting_lib
from clp_jax.algorithm.weighting import Weighting
from clp_jax.data import tasks
from clp_jax.data.batches import decode
from clp_jax.reporting.metrics_log import say
from clp_jax.runs import restoring
from clp_jax.settings.config import Run


def weighting(run: Run, reward_weights: str, kl_weight: float | None) -> Weighting:
    """The weighting that a command line asks for.

    Args:
      run: the trained run.
      reward_weights: "0.8,0.2", in the order of the rewards.
      kl_weight: α; None for the run's α_min.

    Raises:
      ValueError: not numbers, or not on the simplex, or α outside [α_min, 1].
    """
    try:
        numbers = [float(part) for part in reward_weights.split(",")]
    except ValueError:
        raise ValueError(f"--reward_weights={reward_weights} is not a list of numbers") from None
    weights = weighting_lib.check_reward_weights(
        numbers, run.model.num_objectives, "--reward_weights"
    )
    lowest = run.model.kl_mix.kl_weight_min
    alpha = lowest if kl_weight is None else kl_weight
    weighting_lib.check_kl_weight(alpha, lowest, "--kl_weight")
    return Weighting.of(alpha, weights)


class Generator:
    """A trained policy at one weighting.

    Args:
      run: the trained run.
      weighting: (α, w).
      temperature: 0 for greedy.
      seed: of sampling.
      step: which checkpoint; None for the latest.
      mixing: "parameters" or "logits"; None for what the run's evaluation says.
    """

    def __init__(
        self, run: Run, weighting: Weighting, temperature: float = 0.0, seed: int = 0,
        step: int | None = None, mixing: str | None = None,
    ):  # fmt: skip
        self._policy, _ = restoring.restore_policy(run, step, mixing, temperature)
        self._run, self._weighting, self._seed = run, weighting, seed

    @property
    def weights(self) -> dict[str, object]:
        """The weighting, for the output."""
        names = self._run.model.rewards.names
        weights = [round(float(w), 6) for w in self._weighting.reward_weights]
        return {
            "reward_weights": dict(zip(names, weights, strict=True)),
            "kl_weight": round(float(self._weighting.kl_weight), 6),
        }

    def __call__(self, documents: Sequence[str], batch_size: int = 32) -> Iterator[str]:
        """One completion of each document; says how many were too long for the encoder."""
        model, length = self._run.model, self._run.max_prompt_length
        shares = self._policy.placement.shares
        batch_size = -(-batch_size // shares) * shares
        prefix = tasks.prompt_prefix(self._run.train_dataset_cfg.mixture_or_task_name)
        tokens = [[*model.vocabulary.encode(prefix + d), model.eos_id] for d in documents]
        if too_long := sum(len(row) > length for row in tokens):
            say(f"{too_long} of {len(tokens)} prompts are longer than {length} tokens: truncated")
        for start in range(0, len(tokens), batch_size):
            rows = tokens[start : start + batch_size]
            prompts = np.zeros([batch_size, length], np.int32)
            for i, row in enumerate(rows):
                prompts[i, : min(len(row), length)] = row[:length]
            key = jax.random.fold_in(jax.random.key(self._seed), start)
            rollout = self._policy.generate(self._weighting, prompts, key)
            yield from decode(model.vocabulary, jax.device_get(rollout.completions)[: len(rows)])
