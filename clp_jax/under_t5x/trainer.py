"""The trainer that t5x's loop calls: the steps of `python -m clp_jax.train`, and its reports."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import clu.values
from t5x import trainer as t5x_trainer

from clp_jax.algorithm.train_step import TrainState
from clp_jax.machine.preemption import Preemption
from clp_jax.reporting import metrics_log
from clp_jax.reporting.errors import Preempted, RewardError
from clp_jax.reporting.metrics_log import Progress
from clp_jax.runs import loop, training, watch
from clp_jax.runs.trainer import Trainer
from clp_jax.under_t5x.data import PROMPTS
from clp_jax.under_t5x.train_state import T5XTrainState


class T5XTrainer(t5x_trainer.BaseTrainer):
    """Algorithm 1 under t5x.

    A step is `runs.trainer.Trainer`'s, over the partitioner's devices; all randomness is that of
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
        placement = partitioner.placement
        self._step = Trainer(run, train_state.reference, placement)
        self._log = metrics_log.opened(pathlib.Path(run.model_dir), first_step)
        self._reports = loop.Reports(
            self._step,
            Progress("clp", first_step, run.total_steps),
            self._log,
            watch.of(run.model.kl_warning),
        )
        self._last_report = Done({})
        self._preemption = Preemption()
        self._evaluation = training.Evaluation(
            run, train_state.reference, self._log, placement, self._preemption
        )
        if first_step and self._evaluation.is_missing(first_step):
            self._evaluate(train_state.state, first_step)  # a reward failed in it, or SIGTERM came

    def train(self, batch_iter, num_steps: int, start_step: int | None = None) -> "Done":
        """Takes `num_steps` steps; reports and evaluates where `python -m clp_jax.train` does.

        Returns:
          The last report, for t5x's actions.

        Raises:
          PreemptionError: SIGTERM came, or a reward failed; t5x then saves the steps before.
        """
        state: T5XTrainState = self.train_state  # type: ignore[has-type]
        run = self._model.run
        first = int(state.step) if start_step is None else start_step
        for step in range(first, first + num_steps):
            state, done = self._one_step(state, batch_iter, step), step + 1
            self.train_state = state
            stops = self._preemption() and done != run.total_steps
            periods = (run.stats_period, run.checkpoint_cfg.save.period, run.total_steps)
            if stops or loop.reports_after(done, *periods):
                self._last_report = Done(self._reports.write(done))
            if stops:
                raise t5x_trainer.PreemptionError(
                    f"SIGTERM; step {done} is saved, and the same command goes on from it"
                )
            if self._evaluation.is_missing(done):
                self._evaluate(state.state, done)
        return self._last_report

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

    def _evaluate(self, state: TrainState, step: int) -> None:
        try:
            self._evaluation(state, step)
        except Preempted as stopped:
            raise t5x_trainer.PreemptionError(f"step {step} is saved; {stopped}") from None
        except RewardError as error:
            raise t5x_trainer.PreemptionError(
                f"{error}\nthe evaluation of step {step} failed; the step is saved, and the same "
                "command evaluates it again and goes on"
            ) from error

    def compile_train(self, batch: Mapping[str, Any]) -> None:
        """Nothing: the step is compiled in halves, by its first call."""

    def close(self) -> None:
        """Ends the logs."""
        super().close()
        self._log.close()
        self._preemption.close()
        self._model.run.model.rewards.close()

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
