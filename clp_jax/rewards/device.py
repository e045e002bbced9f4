"""Calling device rewards: one compiled program for each, dispatched together and timed."""

import functools
import inspect
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from clp_jax.models.partitioning import Placement, local_rows, put
from clp_jax.reporting.errors import RewardError
from clp_jax.rewards.host import Scored

_TOKENS = ("prompt_tokens", "completion_tokens", "completion_mask")


@runtime_checkable
class DeviceReward(Protocol):
    """A reward computed where the policy runs.

    Optional attributes: `range`; `params`, a pytree of arrays that the compiled program takes as
    its argument (they would be copied into it as constants otherwise); `place(placement)`, which
    says over which devices `params` shall be cut before they are first asked for. Without `place`
    every device gets them whole.
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

    Raises:
      ValueError: the reward has no `score_tokens`.
    """

    def __init__(self, name: str, reward: Any):
        if not isinstance(reward, DeviceReward):
            raise ValueError(f"reward {name!r} is on_device but has no score_tokens")
        self.name = name
        self._reward: Any = reward
        self.program = jax.jit(self._scored)
        self._placement: Placement | None = None

    def place(self, placement: Placement) -> None:
        """Says which devices share the work; before the first call.

        Raises:
          ValueError: its parameters cannot be cut over them; names the reward and the numbers.
        """
        if placement == self._placement:
            return
        if hasattr(self._reward, "place"):
            try:
                self._reward.place(placement)
            except ValueError as error:
                raise ValueError(f"reward {self.name!r}: {error}") from None
        self._placement = placement
        self.program = jax.jit(
            placement.traced(self._scored),
            out_shardings=(placement.batch, placement.replicated),
        )

    def shapes(self) -> Any:
        """Shapes of the program's first argument, the reward's parameters, and their shardings."""
        assert self._placement is not None
        if hasattr(self._reward, "shapes"):
            return self._reward.shapes()
        where = self._placement.replicated
        shapes = jax.eval_shape(lambda: getattr(self._reward, "params", None))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes
        )

    def _scored(self, params: Any, *tokens: jax.Array) -> tuple[jax.Array, Mapping[str, Any]]:
        score = self._reward.score_tokens
        if set(_TOKENS) <= inspect.signature(score).parameters.keys():  # in whatever order
            scored = score(params, **dict(zip(_TOKENS, tokens, strict=True)))
        else:
            scored = score(params, *tokens)
        scores, metrics = scored if isinstance(scored, Scored) else (scored, {})
        scores = jnp.asarray(scores, jnp.float32)
        count = tokens[1].shape[0]
        if scores.shape != (count,):
            raise RewardError(
                f"reward {self.name!r} returned shape {scores.shape}; expected ({count},)"
            )
        return scores, metrics

    @property
    def _params(self) -> Any:
        given = getattr(self._reward, "params", None)
        if self._placement is None or hasattr(self._reward, "place"):
            return given
        return self._whole

    @functools.cached_property
    def _whole(self) -> Any:
        assert self._placement is not None
        return put(getattr(self._reward, "params", None), self._placement.replicated)

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
            return Scored(*self.program(self._params, *tokens))
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
        """Waits: {name: raw scores, float32 [B]; of several processes, each gets its rows}.

        Args:
          started: when the device came to the first of them, by `time.perf_counter`; default: now.
        """
        before = time.perf_counter() if started is None else started
        scores = {}
        for name, pending in self._pending.items():
            scores[name] = local_rows(pending.scores)
            metrics = jax.device_get(pending.metrics)
            now = time.perf_counter()
            self.seconds[name], before = now - before, now
            self.metrics |= {f"{name}/{key}": float(v) for key, v in metrics.items()}
        return scores
