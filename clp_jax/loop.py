"""The loop around a training step: progress, metrics, checkpoints. All input and output is here."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax

from clp_jax.data.batches import Batch, Batches
from clp_jax.metrics_log import MetricsLog, Progress, Window, say
from clp_jax.run_checkpoints import RunCheckpoints

Metrics = Mapping[str, Any]


class Step(Protocol):
    """One training step as the loop sees it."""

    def __call__(self, state: Any, batch: Batch, step: int) -> tuple[Any, Metrics]:
        """Dispatches the update; the metrics may still be under way on the device."""

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
    log: MetricsLog,
    checkpoints: RunCheckpoints,
    evaluate: Callable[[Any, int], None] | None = None,
    eval_period: int = 0,
) -> Any:
    """Runs steps first_step .. total_steps − 1 and returns the last state.

    A report, of means since the last one, comes every `stats_period` steps, with every checkpoint
    and at the end, so that a resumed run reports what an unbroken one does.

    Args:
      step_fn: one step.
      state: what it changes.
      batches: standing where `first_step` reads on.
      what: named in the progress lines.
      first_step: steps done before.
      total_steps: steps done at the end.
      stats_period: steps between reports.
      save_period: steps between checkpoints; the last step is always saved.
      log: gets metrics and samples.
      checkpoints: gets state and data position.
      evaluate: called with (state, steps done) every `eval_period` steps and at the end.
      eval_period: 0 for the end only.
    """
    progress, window = Progress(what, first_step, total_steps), Window()
    pending: Metrics | None = None  # of the step before, fetched once the next one is dispatched
    for done in range(first_step + 1, total_steps + 1):
        state, metrics = step_fn(state, next(batches), done - 1)
        if pending is not None:
            window.add(jax.device_get(pending))
        pending = metrics
        if done == first_step + 1:
            jax.block_until_ready(metrics)
            progress.started(done)
        last = done == total_steps
        saves = last or done % save_period == 0
        if saves or done % stats_period == 0:
            window.add(jax.device_get(pending))
            pending = None
            means = window.means()
            log.scalars(done, means | progress.report(done, means))
            _show_samples(log, done, step_fn.samples())
        paused = time.monotonic()
        # Before the checkpoint, so that a run that is killed in between evaluates again.
        if evaluate is not None and (last or (eval_period and done % eval_period == 0)):
            evaluate(state, done)
        if saves:
            checkpoints.save(done, state, batches)
        progress.pause(time.monotonic() - paused)
    return state


def _show_samples(log: MetricsLog, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    log.samples(step, rows)
    for row in rows[:2]:
        weights = ", ".join(f"{w:.2f}" for w in row["reward_weights"].values())
        rewards = ", ".join(f"{name} {r:.2f}" for name, r in row["rewards"].items())
        say(f"  w ({weights}) α {row['kl_weight']:.2g} | {rewards} | {row['completion']!r}")
