"""Calling device rewards: one compiled program for each, dispatched together and timed."""

import functools
import time
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from clp_jax.rewards.host import RewardError, Scored


@runtime_checkable
class DeviceReward(Protocol):
    """A reward computed where the policy runs.

    Optional attributes: `range`; `params`, a pytree of arrays that the compiled program takes as
    its argument (they would be copied into it as constants otherwise).
    """

    on_device: bool  # True

    def score_tokens(
        self,
        params: Any,
        prompt_tokens: jax.Array,
        completion_tokens: jax.Array,
        completion_mask: jax.Array,
    ) -> jax.Array | Scored:
        """Raw scores [B] of int32 tokens [B, E] and [B, L], mask [B, L]; traced under jit."""


class CompiledReward:
    """A device reward with its name and its program.

    Args:
      name: display name.
      reward: see `DeviceReward`.

    Attributes:
      sharding: where its parameters are to be; None for where they are. To be set before a call.

    Raises:
      ValueError: the reward has no `score_tokens`.
    """

    sharding: jax.sharding.Sharding | None = None

    def __init__(self, name: str, reward: Any):
        if not isinstance(reward, DeviceReward):
            raise ValueError(f"reward {name!r} is on_device but has no score_tokens")
        self.name = name
        self._reward: Any = reward
        self._program = jax.jit(self._scored)

    def _scored(self, params: Any, *tokens: jax.Array) -> Scored:
        scored = self._reward.score_tokens(params, *tokens)
        scores, metrics = scored if isinstance(scored, Scored) else (scored, {})
        scores = jnp.asarray(scores, jnp.float32)
        count = tokens[1].shape[0]
        if scores.shape != (count,):
            raise RewardError(
                f"reward {self.name!r} returned shape {scores.shape}; expected ({count},)"
            )
        return Scored(scores, metrics)

    @property
    def _params(self) -> Any:
        return self._given if self.sharding is None else self._placed

    @property
    def _given(self) -> Any:
        return getattr(self._reward, "params", None)

    @functools.cached_property
    def _placed(self) -> Any:
        return jax.device_put(self._given, self.sharding)

    def __call__(self, *tokens: jax.Array) -> Scored:
        """Dispatches the program; returns at once, but for its compilation.

        Args:
          *tokens: prompts [B, E], completions [B, L] and their mask [B, L].

        Returns:
          Scores, float32 [B], and metrics, under way on the device.

        Raises:
          RewardError: the reward raised while it was traced (chained), or its shape is not [B].
        """
        try:
            return self._program(self._params, *tokens)
        except RewardError:
            raise
        except Exception as error:
            raise RewardError(
                f"reward {self.name!r} raised {type(error).__name__}: {error}"
            ) from error


class DeviceScores:
    """Device scoring under way.

    Attributes:
      seconds: {name: seconds from when the device was free for it until its scores were there};
        filled by `result`.
      metrics: {"name/metric": value} that the rewards gave beside their scores; likewise.
    """

    def __init__(self, rewards: Iterable[CompiledReward], tokens: tuple[jax.Array, ...]):
        self._pending = {reward.name: reward(*tokens) for reward in rewards}
        self.seconds: dict[str, float] = {}
        self.metrics: dict[str, float] = {}

    def result(self, started: float | None = None) -> dict[str, np.ndarray]:
        """Waits: {name: raw scores, float32 [B]}.

        Args:
          started: when the device came to the first of them, by `time.perf_counter`; default: now.
        """
        before = time.perf_counter() if started is None else started
        scores = {}
        for name, pending in self._pending.items():
            scored = jax.device_get(pending)
            now = time.perf_counter()
            self.seconds[name], before = now - before, now
            scores[name] = scored.scores
            self.metrics |= {f"{name}/{key}": float(v) for key, v in scored.metrics.items()}
        return scores
