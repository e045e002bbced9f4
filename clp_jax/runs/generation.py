"""Completions of a trained policy, for text."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np

from clp_jax.algorithm import weighting as weighting_lib
from clp_jax.algorithm.weighting import Weighting
from clp_jax.data import tasks
from clp_jax.data.batches import decode
from clp_jax.policies.policy import SteerablePolicy
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


def weightings(
    run: Run, count: int, reward_weights: Any, kl_weight: Any
) -> list[tuple[float, tuple[float, ...]]]:
    """(α, w) of each of `count` documents, from what a caller gives.

    Args:
      run: the trained run.
      count: n.
      reward_weights: {reward: weight}, or m numbers in the order of the rewards, or n of these.
      kl_weight: α, or n of them; None for the run's α_min.

    Raises:
      ValueError: not on the simplex, or α outside [α_min, 1], or not one for each; names what is
        valid.
    """
    if not isinstance(reward_weights, Mapping | Set | str) and np.iterable(reward_weights):
        reward_weights = list(reward_weights)
        if not reward_weights and not count:
            return []
    of_each = isinstance(reward_weights, list) and any(
        isinstance(item, Mapping) or np.ndim(item) for item in reward_weights
    )
    names, lowest = run.model.rewards.names, run.model.kl_mix.kl_weight_min
    given = lowest if kl_weight is None else kl_weight
    points = _for_each(
        "reward_weights", reward_weights, of_each, count, functools.partial(_point, names)
    )
    alphas = _for_each(
        "kl_weight", given, np.ndim(given) > 0, count,
        lambda value, source: weighting_lib.check_kl_weight(value, lowest, source),
    )  # fmt: skip
    return list(zip(alphas, points, strict=True))


def _for_each(
    name: str, given: Any, of_each: bool, count: int, checked: Callable[[Any, str], Any]
) -> list[Any]:
    """What is `given`, checked: one value for all of `count` documents, or one of each."""
    if not of_each:
        return [checked(given, name)] * count
    if len(given) != count:
        raise ValueError(
            f"{name} has {len(given)} values for {count} documents; valid is one for all of them, "
            "or one for each"
        )
    return [checked(value, f"{name} of document {i}") for i, value in enumerate(given)]


def _point(names: Sequence[str], weights: Any, source: str) -> tuple[float, ...]:
    """w [m], in the order of the rewards."""
    valid = f"valid are {len(names)} weights in [0, 1] that sum to 1, of {', '.join(names)}"
    if isinstance(weights, Mapping):
        if set(weights) != set(names):
            given = ", ".join(map(str, weights)) or "nothing"
            raise ValueError(f"{source} has weights of {given}; {valid}")
        weights = [weights[name] for name in names]
    try:
        if isinstance(weights, str | Set):  # the latter has no order
            raise TypeError
        numbers = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        raise ValueError(f"{source}={weights!r} are not numbers; {valid}") from None
    try:
        return weighting_lib.check_reward_weights(numbers, len(names), source)
    except ValueError as error:
        raise ValueError(f"{error}; {valid}") from None


class Texts:
    """Text in and out of the policies of a run.

    Args:
      run: says the vocabulary, the prompts' prefix and the encoder's length.
    """

    def __init__(self, run: Run):
        self._vocabulary, self._length = run.model.vocabulary, run.max_prompt_length
        # Read now: a run that is configured later may have a Task of the same name.
        self._prefix = tasks.prompt_prefix(run.train_dataset_cfg.mixture_or_task_name)

    def tokens(self, documents: Sequence[str]) -> list[list[int]]:
        """The whole prompt of each document, prefix and EOS included."""
        encode, eos_id = self._vocabulary.encode, self._vocabulary.eos_id
        return [[*encode(self._prefix + document), eos_id] for document in documents]

    def too_long(self, tokens: Sequence[Sequence[int]]) -> str:
        """What to say of the prompts that will be truncated; "" where none will."""
        count = sum(len(row) > self._length for row in tokens)
        if not count:
            return ""
        return f"{count} of {len(tokens)} prompts are longer than {self._length} tokens: truncated"

    def completions(
        self,
        policy: SteerablePolicy,
        weighting: Weighting,
        tokens: Sequence[Sequence[int]],
        seed: int,
        batch_size: int,
        filled: bool = True,
    ) -> Iterator[str]:
        """One completion of each prompt, in order, batch by batch.

        Args:
          policy: of the run.
          weighting: (α, w).
          tokens: of the prompts; those beyond the encoder's length are not read.
          seed: of sampling.
          batch_size: at most; rounded up to a multiple of the devices that share it.
          filled: whether a batch that is not full is filled up to `batch_size`, so that one program
            is compiled; else to the next power of two.
        """
        shares = policy.placement.shares
        most = -(-batch_size // shares)
        for start in range(0, len(tokens), most * shares):
            rows = tokens[start : start + most * shares]
            needed = -(-len(rows) // shares)
            size = most if filled else min(most, 1 << (needed - 1).bit_length())
            prompts = np.zeros([size * shares, self._length], np.int32)
            for i, row in enumerate(rows):
                prompts[i, : min(len(row), self._length)] = row[: self._length]
            key = jax.random.fold_in(jax.random.key(seed), start)
            rollout = policy.generate(weighting, prompts, key)
            yield from decode(self._vocabulary, jax.device_get(rollout.completions)[: len(rows)])


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
        texts = Texts(self._run)
        tokens = texts.tokens(documents)
        if said := texts.too_long(tokens):
            say(said)
        yield from texts.completions(self._policy, self._weighting, tokens, self._seed, batch_size)
