"""t5x saves and restores the checkpoints of `python -m clp_jax.train`: either driver goes on."""

import contextlib
import pathlib
from typing import Any

from t5x import utils

from clp_jax.runs import restoring, states, training
from clp_jax.runs.run_checkpoints import RunCheckpoints
from clp_jax.settings.config import CheckpointConfig, SaveCheckpointConfig
from clp_jax.under_t5x.train_state import T5XTrainState, for_inference


def for_training(model_dir: str, config: CheckpointConfig) -> utils.CheckpointConfig:
    """t5x's settings for a run of ours.

    What is restored, be it a checkpoint or the reference, is for `CheckpointManager` to see.
    """
    return utils.CheckpointConfig(
        save=utils.SaveCheckpointConfig(
            period=config.save.period,
            keep=config.save.keep,
            checkpoint_manager_cls=CheckpointManager,
        ),
        restore=_restore_config(model_dir, 0),
    )


def for_inference_at(model_dir: str, step: int | None) -> utils.RestoreCheckpointConfig:
    """t5x's settings for a checkpoint of a run: the latest where `step` is None.

    Raises:
      ValueError: there is no such checkpoint.
    """
    with contextlib.closing(RunCheckpoints(restoring.checkpoint_folder(model_dir))) as saved:
        return _restore_config(model_dir, saved.existing_step(step))


def _restore_config(model_dir: str, step: int) -> utils.RestoreCheckpointConfig:
    return utils.RestoreCheckpointConfig(
        path=str(pathlib.Path(model_dir, f"checkpoint_{step}")),  # t5x reads the step off it
        mode="specific",
        checkpoint_manager_cls=CheckpointManager,
    )


class CheckpointManager:
    """`RunCheckpoints` by the interface of t5x's checkpoint managers.

    Args:
      directory: unused; the model knows its MODEL_DIR.
      train_state: shapes.
      partitioner: places what is restored.
      keep: how many of the latest stay; None for all.
      period: steps between two of them; None to read only.
      **unused: what else t5x gives.
    """

    def __init__(
        self, directory: str, train_state: T5XTrainState, partitioner: Any,
        keep: int | None = None, period: int | None = None, **unused: Any,
    ):  # fmt: skip
        self._model, self._partitioner = train_state.model, partitioner
        config = None if period is None else SaveCheckpointConfig(period, keep)
        self._saved = RunCheckpoints(restoring.checkpoint_folder(self._model.run.model_dir), config)

    def all_steps(self) -> list[int]:
        """Steps that need no saving any more; that of step 0 is the reference itself."""
        return [0, *self._saved.all_steps()]

    def save(self, train_state: T5XTrainState, state_transformation_fns: Any = ()) -> None:
        """Starts to save, with the position in the data."""
        step = int(train_state.step)
        if step not in self.all_steps():
            self._saved.save(step, train_state.state, self._model.batches)

    def restore(self, path: str, **unused: Any) -> T5XTrainState:
        """The state of a step, or for training that to go on from, on the devices."""
        run, step = self._model.run, int(path.rpartition("_")[2])
        place = self._partitioner.placement
        if self._model.trains:
            reference = training.load_reference(run, place)
            state = training.start(run, reference, self._saved, self._model.batches, place)
        else:
            reference = restoring.restore_reference(run, place)
            shapes = states.state_shapes(run, place)
            state = for_inference(self._saved.restore(shapes, step))
        return T5XTrainState(state, reference, self._model)

    def wait_until_finished(self) -> None:
        """Waits until everything is on disk."""
        self._saved.wait()

    def close(self) -> None:
        """Likewise, and ends."""
        self._saved.close()
