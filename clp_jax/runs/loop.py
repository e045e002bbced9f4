"""The loop around a training step: progress, metrics, checkpoints. All input and output is here."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax

from clp_jax.data.batches import Batch, Batches
from clp_jax.reporting.errors import Diverged, Preempted, RewardError
from clp_jax.reporting.metrics_log import Log, Progress, Window, say
from clp_jax.runs.run_checkpoints import RunCheckpoints

Metrics = Mapping[str, Any]
Watch = Callable[[int, Mapping[str, float]], None]
Stop = Callable[[], bool]


class Step(Protocol):
    """One training step as the loop sees it."""

    def __call__(self, state: Any, batch: Batch, step: int) -> tuple[Any, Metrics]:
        """Dispatches the update; the metrics may still be under way on the device.

        Raises:
          RewardError: a reward failed; `state` is as it was, not yet donated.
        """

    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Rows of the table of sample completions of the last step; may be empty."""


def train(
    step_fn: Step,
    state: Any,
    batches: Batches,
    *,
    what: str,
    first_step: int,
    total_steps: int,
    stats_period: int,
    save_period: int,
    log: Log,
    checkpoints: RunCheckpoints,
    evaluate: Callable[[Any, int], None] | None = None,
    eval_period: int = 0,
    watch: Watch | None = None,
    stop: Stop | None = None,
) -> Any:
    """Runs steps first_step .. total_steps − 1 and returns the last state.

    A report, of means since the last one, comes every `stats_period` steps, with every checkpoint
    and at the end, so that a resumed run reports what an unbroken one does.

    Args:
      step_fn: one step.
      state: what it changes.
      batches: standing where `first_step` reads on.
      what: named in the progress lines.
      first_step: steps done before; if there are any, their checkpoint exists.
      total_steps: steps done at the end.
      stats_period: steps between reports.
      save_period: steps between checkpoints; the last step is always saved.
      log: gets metrics and samples.
      checkpoints: gets state and data position.
      evaluate: called with (state, steps done); the caller makes up for one that failed.
      eval_period: steps between evaluations, besides that at the end; 0 for the end only.
      watch: called with (steps done, means) at every report.
      stop: asked after every step whether to end early.

    Raises:
      RewardError: a reward failed in a step or an evaluation; all steps before it are saved first.
      Diverged: a metric of a step is NaN or infinite; nothing of it, or after it, is saved.
      Preempted: `stop` said so, here or in an evaluation; all steps are saved first.
    """
    reports = Reports(step_fn, Progress(what, first_step, total_steps), log, watch)
    saved = _Saved(checkpoints, batches, first_step)
    for done in range(first_step + 1, total_steps + 1):
        try:
            state, metrics = step_fn(state, next(batches), done - 1)
        except RewardError as error:
            reports.write(done - 1)
            raise RewardError(f"{error}\n{saved.rescue(state, done - 1)}") from error.__cause__
        reports.add(done, metrics)
        last = done == total_steps
        stops = stop is not None and stop() and not last
        saves = last or stops or done % save_period == 0
        if stops or reports_after(done, stats_period, save_period, total_steps):
            reports.write(done)
        paused = time.monotonic()
        # Before the checkpoint, so that a run that is killed in between evaluates again.
        evaluates = last or (eval_period and done % eval_period == 0)
        if evaluate is not None and evaluates and not stops:
            saved.save_if_fails(evaluate, state, done)
        if saves:
            saved.save(state, done)
        if stops:
            checkpoints.wait()
            raise Preempted(f"step {done} is saved, and the same command goes on from it")
        reports.progress.pause(time.monotonic() - paused)
    return state


def reports_after(done: int, stats_period: int, save_period: int, total_steps: int) -> bool:
    """Whether there is a report when that many steps are done; arguments as of `train`."""
    return done % stats_period == 0 or done % save_period == 0 or done == total_steps


class Reports:
    """Metrics on their way from the steps to the log.

    Args:
      step_fn: whose samples are shown.
      progress: of this run.
      log: gets metrics and samples.
      watch: called with (steps done, means) at every report.

    Attributes:
      progress: of this run; its first step is the first that is added.
    """

    def __init__(self, step_fn: Step, progress: Progress, log: Log, watch: Watch | None):
        self.progress = progress
        self._step_fn, self._log, self._watch = step_fn, log, watch
        self._window, self._started = Window(), False
        # Of the step before, fetched once the next one is dispatched.
        self._pending: tuple[int, Metrics] | None = None

    def add(self, done: int, metrics: Metrics) -> None:
        """Takes the metrics of a step that was just dispatched, and fetches those before it.

        Raises:
          Diverged: one of those before it is not finite; so does `write`, of any.
        """
        self._fetch()
        self._pending = done, metrics
        if not self._started:
            jax.block_until_ready(metrics)
            self.progress.started(done)
            self._started = True

    def write(self, done: int) -> dict[str, float]:
        """Reports the means of the steps since the last report, and returns them."""
        self._fetch()
        means = self._window.means()
        if not means:
            return means
        self._log.scalars(done, means | self.progress.report(done, means))
        rows = self._step_fn.samples()
        if rows:
            self._log.samples(done, rows)
        for row in rows[:2]:
            weights = ", ".join(f"{w:.2f}" for w in row["reward_weights"].values())
            rewards = ", ".join(f"{name} {r:.2f}" for name, r in row["rewards"].items())
            say(f"  w ({weights}) α {row['kl_weight']:.2g} | {rewards} | {row['completion']!r}")
        if self._watch is not None:
            self._watch(done, means)
        return means

    def _fetch(self) -> None:
        if self._pending is None:
            return
        done, metrics = self._pending[0], jax.device_get(self._pending[1])
        self._pending = None
        # A reward may say of itself what it wants.
        ours = {name: v for name, v in metrics.items() if not name.startswith("rewards_own/")}
        if wrong := [f"{name} is {v}" for name, v in ours.items() if not math.isfinite(v)]:
            raise Diverged(
                f"step {done}: {', '.join(wrong)}. The checkpoints before it stay. What may help "
                "is a lower learning rate, in another MODEL_DIR"
            )
        self._window.add(metrics)


class _Saved:
    """The last checkpoint, and where the data stood then."""

    def __init__(self, checkpoints: RunCheckpoints, batches: Batches, step: int):
        self._checkpoints, self._batches = checkpoints, batches
        self._step, self._position = step, batches.position()

    def save(self, state: Any, done: int) -> None:
        self._checkpoints.save(done, state, self._batches)
        self._step, self._position = done, self._batches.position()

    def save_if_fails(self, evaluate: Callable[[Any, int], None], state: Any, done: int) -> None:
        """Evaluates; saves the state first where a reward fails, or where it is stopped.

        Raises:
          RewardError: that of the reward.
          Preempted: that of the evaluation.
        """
        try:
            evaluate(state, done)
        except Preempted as stopped:
            self.save(state, done)
            self._checkpoints.wait()
            raise Preempted(f"step {done} is saved; {stopped}") from None
        except RewardError as error:
            self.save(state, done)
            raise RewardError(
                f"{error}\nthe evaluation of step {done} failed; the checkpoint of that step was "
                "saved, and the same command evaluates it again and goes on"
            ) from error.__cause__

    def rescue(self, state: Any, done: int) -> str:
        """Saves `state` of `done` steps when the next one failed, having drawn its batch.

        Returns:
          What the person who starts the run again should know.
        """
        if done == 0:
            return f"step {done + 1} failed, so nothing was saved: the same command starts again"
        if done > self._step:
            # A resumed run has to draw the failed step's batch again: back to the last checkpoint,
            # and forward to that batch.
            self._batches.restore(self._position)
            for _ in range(done - self._step):
                next(self._batches)
            self.save(state, done)
        return (
            f"step {done + 1} failed; the checkpoint of step {done} was saved, and the same "
            "command goes on from there"
        )
