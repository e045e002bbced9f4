"""Checkpoints of a training run: its state and the position in its data, written as one."""

import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import orbax.checkpoint as ocp

from clp_jax.machine import hosts
from clp_jax.models.checkpoints import check_structure, restore_template, saved_structure
from clp_jax.reporting.errors import naming
from clp_jax.settings.config import SaveCheckpointConfig

_HINT = "; the number of rewards (m), SUBSET and the model must be those of the checkpoint"


class Position(Protocol):
    """What stands somewhere in its data, such as `clp_jax.data.batches.Batches`."""

    def position(self) -> Mapping[str, Any]:
        """Where it stands, as arrays."""

    def restore(self, position: Mapping[str, Any]) -> None:
        """Goes there."""


class RunCheckpoints:
    """The checkpoints under one directory; a step's checkpoint is there whole or not at all.

    Args:
      directory: made if it is missing.
      config: how many to keep; None to read only.
    """

    def __init__(self, directory: pathlib.Path, config: SaveCheckpointConfig | None = None):
        self._directory = directory.resolve()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.keep if config else None,
                create=config is not None,
                read_only=config is None,
            ),
            # Named here, so that a manager that has saved nothing can read what is there.
            item_handlers={name: ocp.StandardCheckpointHandler() for name in ("state", "position")},
        )

    def latest_step(self) -> int | None:
        """The newest step with a whole checkpoint."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Every step with a whole checkpoint, or one under way."""
        return list(self._manager.all_steps())

    def save(self, step: int, state: Any, batches: Position) -> None:
        """Starts to write `state` and every process's data position; returns before it is on disk.

        Raises:
          ValueError: there is a checkpoint of that step.
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                position=ocp.args.StandardSave(hosts.merged(batches.position())),
            ),
        )

    def restore(
        self, template: Any, step: int | None = None, batches: Position | None = None
    ) -> Any:
        """Reads a state, and moves `batches` to where it stood then.

        Args:
          template: a state, or the shapes of one, which may have shardings.
          step: which checkpoint; None for the latest.
          batches: moved if given.

        Raises:
          ValueError: no checkpoint, one that cannot be read, or one of another m, S or model size.
        """
        step = self.check(template, step)
        items = {"state": ocp.args.StandardRestore(restore_template(template))}
        if batches is not None:
            items["position"] = ocp.args.StandardRestore()
        with naming(str(self._directory / str(step)), self._way_out(step)):
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        if batches is not None:
            batches.restore(restored["position"])
        return restored["state"]

    def check(self, template: Any, step: int | None = None) -> int:
        """Returns the step to restore; raises as `restore` does, but reads no arrays."""
        step = self.existing_step(step)
        found = self._structure(step, "state")
        check_structure(found, template, f"{self._directory}/{step}", _HINT)
        return step

    def position_names(self) -> list[str]:
        """The names in the latest data position; there has to be one."""
        return list(self._structure(self.existing_step(), "position"))

    def existing_step(self, step: int | None = None) -> int:
        """`step`, or None for the latest.

        Raises:
          ValueError: there is no such checkpoint.
        """
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            known = ", ".join(map(str, self._manager.all_steps())) or "none"
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise ValueError(f"{wanted} in {self._directory}; steps there: {known}")
        return step

    def _structure(self, step: int, item: str) -> Any:
        try:
            return saved_structure(self._directory / str(step) / item)
        except ValueError as error:
            raise ValueError(f"{error}{self._way_out(step)}") from error

    def _way_out(self, step: int) -> str:
        """What to do if the checkpoint of a step cannot be read."""
        others = [other for other in self.all_steps() if other != step]
        if not others:
            return "; there is no other checkpoint of this run"
        return f"; without {self._directory}/{step} the run continues from step {max(others)}"

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk, and ends."""
        self.wait()
        self._manager.close()
