"""The reward protocol and the stack of rewards that a run trains on.

A reward on the host is a plain function of text:

    def brevity(prompts, completions, **columns):
        return [-len(completion.split()) for completion in completions]

    brevity.range = (-40, 0)  # raw scores that are mapped to 0 and 1; default (0, 1)

`columns` holds the other fields of the data, one list per field. A function without `**columns`
gets only the fields that it names (`def f(prompts, completions, summary)`), and the fields that it
names without a default must be in the data.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import jax
import numpy as np

from clp_jax.models.partitioning import Placement
from clp_jax.reporting.errors import unknown_name
from clp_jax.rewards.device import CompiledReward, DeviceScores
from clp_jax.rewards.host import HostReward, HostScores, Scored, check_scores
from clp_jax.rewards.normalisation import Mixture, Range, check_range, normalise


class Reward(Protocol):
    """A reward on the host. Optional attributes: `range` and `columns` (names of fields needed)."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> Sequence[float] | Scored:
        """One raw score per completion."""


class RewardScores(NamedTuple):
    """Scores of one batch, columns in the stack's order."""

    raw: np.ndarray  # float32 [B, m], in each reward's own units
    normalised: np.ndarray  # float32 [B, m], approximately in [0, 1]


@dataclass(frozen=True)
class NamedReward:
    """A reward, the name it is logged and steered under, and the range that is mapped to (0, 1)."""

    name: str
    reward: Any  # a Reward, a DeviceReward or a Mixture
    range: Range

    @classmethod
    def of(cls, name: str, reward: Any, score_range: Any = None) -> "NamedReward":
        """With `score_range`, or else the reward's own range, or else (0, 1).

        Raises:
          ValueError: a range that is not two finite numbers, low < high.
        """
        if score_range is None:
            score_range = getattr(reward, "range", (0.0, 1.0))
        return cls(name, reward, check_range(name, score_range))

    @property
    def on_device(self) -> bool:
        """Whether this is a device reward."""
        return bool(getattr(self.reward, "on_device", False))


class RewardStack:
    """Ordered rewards R_1 … R_m of a run; component i of reward_weights belongs to the i-th.

    Attributes:
      rewards: the m rewards, in order.
      components: further rewards, for mixtures.
      columns: names of all the data fields that some reward needs.
    """

    def __init__(self, rewards: Sequence[NamedReward], components: Sequence[NamedReward] = ()):
        """Components are rewards that only the mixtures use; a reward may serve both.

        Raises:
          ValueError: no rewards, a name twice, a mixture of unknown rewards or of mixtures, a
            function with the wrong signature.
        """
        if not rewards:
            raise ValueError("no rewards: name at least one")
        self.rewards, self.components = tuple(rewards), tuple(components)
        entries = [*rewards, *components]
        names = [entry.name for entry in entries]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two rewards are called {name!r}; names must differ")
        plain = {entry.name: entry for entry in entries if not isinstance(entry.reward, Mixture)}
        needed = {entry.name for entry in rewards}
        for entry in entries:
            if isinstance(entry.reward, Mixture):
                for component in entry.reward.weights:
                    if component not in plain:
                        source = f"mixture {entry.name!r}"
                        raise ValueError(
                            unknown_name("mixture component", component, plain, source)
                        )
                needed.update(entry.reward.weights)
        # Each plain reward is scored once, however many mixtures use it.
        self._plain = {name: entry for name, entry in plain.items() if name in needed}
        self._device = [
            CompiledReward(entry.name, entry.reward)
            for entry in self._plain.values()
            if entry.on_device
        ]
        self._host = [
            HostReward(entry.name, entry.reward)
            for entry in self._plain.values()
            if not entry.on_device
        ]
        self.columns = tuple(dict.fromkeys(c for reward in self._host for c in reward.columns))

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards' names, in order."""
        return tuple(entry.name for entry in self.rewards)

    @property
    def ranges(self) -> dict[str, Range]:
        """{name: (low, high)} of the m rewards."""
        return {entry.name: entry.range for entry in self.rewards}

    @property
    def num_objectives(self) -> int:
        """The number m of rewards."""
        return len(self.rewards)

    @property
    def on_device(self) -> tuple[CompiledReward, ...]:
        """Those that are computed where the policy runs."""
        return tuple(self._device)

    def describe(self) -> str:
        """One line per reward: where it runs, its range, and what a mixture is made of."""
        own = [entry for name, entry in self._plain.items() if name not in self.names]
        return "\n".join(
            [_described(entry) for entry in self.rewards]
            + [f"{_described(entry)} (in mixtures only)" for entry in own]
        )

    def check_columns(self, available: Iterable[str], source: str) -> None:
        """Checks that the data hold every column the rewards need.

        Args:
          available: names of the data's columns.
          source: where the data come from, for the message.

        Raises:
          ValueError: names the reward, the column and the nearest ones.
        """
        available = sorted(available)
        for reward in self._host:
            for column in reward.columns:
                if column not in available:
                    raise ValueError(
                        f"reward {reward.name!r} needs a column that the data lack: "
                        + unknown_name("column", column, available, source)
                    )

    def check_policy(self, prompt_prefix: str, completion_length: int) -> None:
        """Checks that the rewards that read tokens can read a policy's.

        Args:
          prompt_prefix: what stands in front of each document in the prompts.
          completion_length: L, tokens of a completion at most.

        Raises:
          ValueError: names the reward and what does not fit.
        """
        for entry in self._plain.values():
            if hasattr(entry.reward, "check_policy"):
                try:
                    entry.reward.check_policy(prompt_prefix, completion_length)
                except ValueError as error:
                    raise ValueError(f"reward {entry.name!r}: {error}") from None

    def place(self, placement: Placement) -> None:
        """Says over which devices the device rewards are computed; before anything is scored.

        Raises:
          ValueError: a reward model that cannot be cut over them; names the numbers.
        """
        for reward in self._device:
            reward.place(placement)

    def dispatch(
        self, prompt_tokens: jax.Array, completion_tokens: jax.Array, completion_mask: jax.Array
    ) -> DeviceScores:
        """Starts the device rewards and returns at once; nothing happens if there are none.

        Args:
          prompt_tokens: int32 [B, E].
          completion_tokens: int32 [B, L].
          completion_mask: [B, L], 1 on the completion's tokens.

        Returns:
          A handle: `.result()` waits and gives {name: raw scores, float32 [B]}.

        Raises:
          RewardError: a reward raised while it was traced (chained), or its shape is not [B].
        """
        return DeviceScores(self._device, (prompt_tokens, completion_tokens, completion_mask))

    def submit(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> HostScores:
        """Starts the host rewards and returns at once.

        Args:
          prompts: B strings.
          completions: B strings.
          columns: {field: B values}.

        Returns:
          A handle: `.result()` waits and gives {name: raw scores, float32 [B]} or raises
          RewardError; `.seconds` is then {name: wall-clock seconds}.

        Raises:
          ValueError: lists of different lengths, or a column that a reward needs is missing.
        """
        columns = columns or {}
        count = len(completions)
        for name, values in {"the prompts": prompts, **columns}.items():
            if len(values) != count:
                what = name if values is prompts else f"column {name!r}"
                raise ValueError(f"{what}: {len(values)} values for {count} completions")
        self.check_columns(columns, "the batch")
        return HostScores(self._host, prompts, completions, columns)

    def combine(
        self, device_scores: Mapping[str, np.ndarray], host_scores: Mapping[str, np.ndarray]
    ) -> RewardScores:
        """Normalises and mixes the raw scores.

        Args:
          device_scores: what `dispatch(...).result()` returned.
          host_scores: what `submit(...).result()` returned.

        Returns:
          raw and normalised scores, float32 [B, m]. A mixture's raw score is its weighted sum.

        Raises:
          RewardError: a wrong count, NaN or an infinite value.
          ValueError: the scores of a reward are missing.
        """
        given = {**host_scores, **device_scores}
        if missing := sorted(set(self._plain) - set(given)):
            raise ValueError(f"no scores for the rewards {missing}; given: {sorted(given)}")
        first = next(iter(given.values()))
        count = len(first) if np.ndim(first) else 1
        raw = {name: check_scores(name, given[name], count) for name in self._plain}
        normalised = {
            name: normalise(raw[name].astype(np.float64), entry.range)
            for name, entry in self._plain.items()
        }
        values = [
            entry.reward.combine(normalised)
            if isinstance(entry.reward, Mixture)
            else raw[entry.name].astype(np.float64)
            for entry in self.rewards
        ]
        scaled = [
            normalise(value, entry.range) for value, entry in zip(values, self.rewards, strict=True)
        ]
        return RewardScores(*(np.stack(v, axis=1).astype(np.float32) for v in (values, scaled)))

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        prompt_tokens: jax.Array | None = None,
        completion_tokens: jax.Array | None = None,
        completion_mask: jax.Array | None = None,
    ) -> RewardScores:
        """Scores one batch: `dispatch` and `submit`, then `combine`.

        The tokens may be left out where no reward is on the device.

        Raises:
          RewardError, ValueError: as the three; also tokens missing for a device reward.
        """
        tokens = (prompt_tokens, completion_tokens, completion_mask)
        if self._device and any(t is None for t in tokens):
            names = [reward.name for reward in self._device]
            raise ValueError(f"rewards {names} run on the device: give tokens and mask as well")
        on_device = self.dispatch(*cast(Any, tokens))
        on_host = self.submit(prompts, completions, columns)
        return self.combine(on_device.result(), on_host.result())

    def close(self) -> None:
        """Closes every reward that has a `close` method (ROUGE's process pool)."""
        for entry in self._plain.values():
            if hasattr(entry.reward, "close"):
                entry.reward.close()


def _described(entry: NamedReward) -> str:
    if isinstance(entry.reward, Mixture):
        what = " + ".join(f"{weight:g} {name}" for name, weight in entry.reward.weights.items())
    else:
        what = "device" if entry.on_device else "host"
    low, high = entry.range
    return f"{entry.name}: {what}, ({low:g}, {high:g}) -> (0, 1)"
