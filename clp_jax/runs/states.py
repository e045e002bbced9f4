"""A run's reference and its training state: their shapes, the devices they are on, the first ones.

Shapes are had without computing or allocating anything.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from clp_jax.algorithm import train_step as clp_step
from clp_jax.algorithm.train_step import TrainState
from clp_jax.models.partitioning import Placement
from clp_jax.reporting.errors import divisors, listed
from clp_jax.settings.config import Run

Params = Any


def placement(run: Run, *, training: bool = True) -> Placement:
    """Over all devices there are, as the run says.

    Args:
      run: the configuration.
      training: False for what is done with a trained run, maybe elsewhere: over as many of the
        devices as its NUM_PARTITIONS and EVAL_BATCH_SIZE can use.

    Raises:
      ValueError: devices, network and batches do not divide; names what would.
    """
    if not training:
        devices = jax.devices()
        count = math.gcd(run.num_partitions, len(devices))
        shares = math.gcd(len(devices) // count, run.infer_eval_dataset_cfg.batch_size)
        # What EVAL_BATCH_SIZE was made for had a number of devices that this machine may not have.
        return Placement.over(devices[: shares * count], count, run.fully_sharded)
    place = Placement.over(num_partitions=run.num_partitions, fully_sharded=run.fully_sharded)
    check_placement(run, place)
    return place


def check_placement(run: Run, place: Placement) -> None:
    """Raises ValueError unless a run's network and batches can be cut so; names what could."""
    if problem := _problem(run, place):
        size = place.mesh.size
        fits = [n for n in divisors(size) if not _problem(run, place.recut(n))]
        whole = f"NUM_PARTITIONS={listed(fits, 'or')} divides" if fits else "none divides"
        raise ValueError(
            f"{problem}. Of all NUM_PARTITIONS over {size} devices, {whole} the network and all "
            "batches of this run"
        )


def _problem(run: Run, place: Placement) -> str:
    """Why a run's network and batches cannot be cut so; empty if they can."""
    try:
        place.check_network(run.model.module, "the policy")
        place.check_batch("BATCH_SIZE", run.train_dataset_cfg.batch_size)
        place.check_batch("EVAL_BATCH_SIZE", run.infer_eval_dataset_cfg.batch_size)
        if run.sft.steps:
            place.check_batch("SFT_BATCH_SIZE", run.sft.batch_size)
    except ValueError as error:
        return str(error)
    return ""


def reference_shapes(run: Run, place: Placement | None = None) -> Params:
    """Shapes of θ_ref; with a placement, their shardings too."""
    module = run.model.module
    shapes = jax.eval_shape(lambda: _init_params(run))
    return shapes if place is None else place.shapes(module, shapes)


def state_shapes(run: Run, place: Placement | None = None) -> TrainState:
    """Shapes of the training state; with a placement, their shardings too."""
    shapes = jax.eval_shape(lambda reference: _init_state(run, reference), reference_shapes(run))
    return shapes if place is None else place.shapes(run.model.module, shapes)


def init_params(run: Run, place: Placement | None = None) -> Params:
    """Random parameters of the run's network; on the first device where no other is given."""
    place = place or Placement.over(jax.local_devices()[:1])
    shardings = place.parameters(run.model.module, reference_shapes(run))
    return jax.jit(lambda: _init_params(run), out_shardings=shardings)()


def init_state(run: Run, reference: Params, place: Placement | None = None) -> TrainState:
    """The state before the first step (`train_step.init_train_state`), placed likewise."""
    place = place or Placement.over(jax.local_devices()[:1])
    shardings = place.parameters(run.model.module, state_shapes(run))
    return jax.jit(lambda r: _init_state(run, r), out_shardings=shardings)(reference)


def _init_params(run: Run) -> Params:
    prompts = jnp.ones([1, run.max_prompt_length], jnp.int32)
    completions = jnp.ones([1, run.max_decode_length], jnp.int32)
    key = jax.random.key(run.random_seed)
    made = run.model.module.init(key, prompts, completions, completions, enable_dropout=False)
    return made["params"]


def _init_state(run: Run, reference: Params) -> TrainState:
    model = run.model
    return clp_step.init_train_state(run.clp, reference, model.subset, model.num_objectives)
