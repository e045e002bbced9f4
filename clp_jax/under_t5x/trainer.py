"""The trainer that t5x's loop calls: the steps of `python -m clp_jax.train`, and its reports."""

import dataclasses
import pathlib
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import clu.values
from jax.sharding import NamedSharding, PartitionSpec
from t5x import trainer as t5x_trainer

from clp_jax import loop, training
from clp_jax.metrics_log import MetricsLog, Progress, say
from clp_jax.rewards.host import RewardError
from clp_jax.trainer import Trainer
from clp_jax.under_t5x.data import PROMPTS
from clp_jax.under_t5x.train_state import T5XTrainState, shardings
from clp_jax.watch import KLWatch


class T5XTrainer(t5x_trainer.BaseTrainer):
    """Algorithm 1 under t5x.

    A step is `clp_jax.trainer.Trainer`'s, over the partitioner's devices; all randomness is that of
    RANDOM_SEED and the step, as there, and none of t5x's. So are the reports and evaluations.

    Args: see t5x's `BaseTrainer`.
    """

    def __init__(
        self, model, train_state, partitioner, eval_names, summary_dir, train_state_axes, rng
    ):
        super().__init__(
            model, train_state, partitioner, eval_names, summary_dir, train_state_axes, rng
        )
        run, first_step = model.run, int(train_state.step)
        for rewards in filter(None, (run.model.rewards, run.evaluation.rewards)):
            rewards.place(NamedSharding(partitioner.mesh, PartitionSpec()))
        self._step = Trainer(
            run,
            train_state.reference,
            state_shardings=shardings(partitioner, train_state_axes.state),
        )
        self._log = MetricsLog(pathlib.Path(run.model_dir), first_step)
        self._reports = loop.Reports(
            self._step,
            Progress("clp", first_step, run.total_steps),
            self._log,
            None if run.model.kl_warning is None else KLWatch(run.model.kl_warning),
        )
        self._last_report = Done({})
        self._terminated = False
        self._default_sigterm = signal.signal(signal.SIGTERM, self._finish_step)
        self._evaluation = training.Evaluation(run, train_state.reference, self._log)
        if first_step and self._evaluation.is_missing(first_step):
            self._evaluation(train_state.state, first_step)  # a reward failed in it

    def train(self, batch_iter, num_steps: int, start_step: int | None = None) -> "Done":
        """Takes `num_steps` steps; reports and evaluates where `python -m clp_jax.train` does.

        Returns:
          The last report, for t5x's actions.

        Raises:
          PreemptionError: SIGTERM came, or a reward failed; t5x then saves the steps before.
        """
        state: T5XTrainState = self.train_state  # type: ignore[has-type]
        first = int(state.step) if start_step is None else start_step
        for step in range(first, first + num_steps):
            state, done = self._one_step(state, batch_iter, step), step + 1
            self.train_state = state
            if self._terminated or self._reports_after(done):
                self._last_report = Done(self._reports.write(done))
            if self._terminated:
                raise t5x_trainer.PreemptionError(
                    f"SIGTERM; step {done} is saved, and the same command goes on from it"
                )
            if self._evaluation.is_missing(done):
                self._evaluate(state, done)
        return self._last_report

    def _reports_after(self, done: int) -> bool:
        run = self._model.run
        periods = (run.stats_period, run.checkpoint_cfg.save.period, run.total_steps)
        return any(done % period == 0 for period in periods)

    def _one_step(self, state: T5XTrainState, batch_iter: Iterator, step: int) -> T5XTrainState:
        prompts = next(batch_iter)[PROMPTS]
        batch = dataclasses.replace(self._model.batches.take(), prompts=prompts)
        try:
            after, metrics = self._step(state.state, batch, step)
        except RewardError as error:
            self._model.batches.untake()
            self._reports.write(step)
            raise t5x_trainer.PreemptionError(
                f"{error}\nstep {step + 1} failed; the steps before it are saved, and the same "
                "command goes on from there"
            ) from error
        self._reports.add(step + 1, metrics)
        return dataclasses.replace(state, state=after)

    def _evaluate(self, state: T5XTrainState, step: int) -> None:
        try:
            self._evaluation(state.state, step)
        except RewardError as error:
            raise t5x_trainer.PreemptionError(
                f"{error}\nthe evaluation of step {step} failed; the step is saved, and the same "
                "command evaluates it again and goes on"
            ) from error

    def compile_train(self, batch: Mapping[str, Any]) -> None:
        """Nothing: the step is compiled in halves, by its first call."""

    def _finish_step(self, number: int, frame: Any) -> None:
        """Handles SIGTERM; a second one ends the process at once."""
        say("SIGTERM: the step under way is the last one")
        self._terminated = True
        signal.signal(number, self._default_sigterm)

    def close(self) -> None:
        """Ends the logs."""
        super().close()
        self._log.close()
        signal.signal(signal.SIGTERM, self._default_sigterm)

    @property
    def _partitioned_train_step(self):
        raise NotImplementedError("`train` takes the steps")

    @property
    def _partitioned_eval_step(self):
        raise NotImplementedError("train_eval_dataset_cfg must be None: use infer_eval")


class Done:
    """A report, as t5x awaits it."""

    def __init__(self, means: Mapping[str, float]):
        self._means = means

    def result(self) -> dict[str, clu.values.Scalar]:
        """The means."""
        return {name: clu.values.Scalar(value) for name, value in self._means.items()}
