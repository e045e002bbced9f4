"""A run's state as t5x handles it."""

import dataclasses
from typing import Any

import flax.serialization
import flax.struct
import jax
from flax.core import FrozenDict, freeze

from clp_jax.algorithm.train_step import TrainState
from clp_jax.models import partitioning
from clp_jax.runs import states

Params = Any
REFERENCE = "reference"  # θ_ref, among t5x's "flax mutables": collections that are not optimised


@flax.struct.dataclass
class T5XTrainState:
    """Our state and θ_ref, by the protocol of t5x's `TrainState`.

    Attributes:
      state: φ, the value network and their optimizers; for inference only `step` and `params`.
      reference: θ_ref. Not in the checkpoints, as it never changes: MODEL_DIR/reference has it.
      model: the `T5XModel` that this is the state of.
    """

    state: TrainState
    reference: Params
    model: Any = flax.struct.field(pytree_node=False)

    @property
    def step(self) -> jax.Array:
        """Updates made."""
        return self.state.step

    @property
    def params(self):
        """φ."""
        return self.state.params

    @property
    def flax_mutables(self) -> FrozenDict:
        """{"reference": θ_ref}, which t5x hands to the model beside `params`."""
        return freeze({REFERENCE: self.reference})

    def state_dict(self) -> dict[str, Any]:
        """Nested dictionaries, for t5x's log of shapes and axes."""
        fields = flax.serialization.to_state_dict(self.state)
        return {
            "target": {"policy": fields.pop("params"), "value": fields.pop("value_params")},
            "state": fields,
            "flax_mutables": {REFERENCE: flax.serialization.to_state_dict(self.reference)},
        }

    def restore_state(self, state_dict: Any) -> "T5XTrainState":
        """The inverse of `state_dict`."""
        target = state_dict["target"]
        fields = {
            **state_dict["state"],
            "params": target["policy"],
            "value_params": target["value"],
        }
        from_state_dict = flax.serialization.from_state_dict
        reference = from_state_dict(self.reference, state_dict["flax_mutables"][REFERENCE])
        return dataclasses.replace(
            self, state=from_state_dict(self.state, fields), reference=reference
        )

    def as_logical_axes(self) -> "T5XTrainState":
        """Axis names in place of arrays."""
        parameters = partitioning.parameter_axes(self.model.module)
        return dataclasses.replace(
            self,
            state=partitioning.logical_axes(self.state, parameters),
            reference=partitioning.logical_axes(self.reference, parameters),
        )


def for_inference(state: TrainState) -> TrainState:
    """Without what only training needs."""
    return dataclasses.replace(
        state, policy_optimizer_state=None, value_params=None, value_optimizer_state=None
    )


class TrainStateInitializer:
    """Shapes and placement of a run's state, as t5x's class of this name has them.

    Attributes:
      global_train_state_shape: a `T5XTrainState` of shapes.
      train_state_axes: a `T5XTrainState` of mesh axes.
    """

    def __init__(self, model, partitioner):
        run = model.run
        state = states.state_shapes(run)
        if not model.trains:
            state = for_inference(state)
        self.global_train_state_shape = T5XTrainState(state, states.reference_shapes(run), model)
        self.train_state_axes = partitioner.get_mesh_axes(self.global_train_state_shape)

    def from_scratch(self, init_rng: jax.Array):
        """Not called: our checkpoint manager makes the first state too (`under_t5x.checkpoints`).

        Raises:
          NotImplementedError: always.
        """
        raise NotImplementedError("a run's first state comes from its checkpoint manager")
