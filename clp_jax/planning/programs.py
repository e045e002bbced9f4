"""The programs of one training step, with the shapes that training calls them with."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from clp_jax.algorithm.weighting import Weighting
from clp_jax.models.partitioning import Placement
from clp_jax.planning import flops
from clp_jax.runs import states
from clp_jax.runs.trainer import Trainer, prompter
from clp_jax.settings.config import Run

# Figures of programs that do not fit are wanted too.
_COMPILER_OPTIONS = {"xla_tpu_no_crash_on_oom": True}


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile.

    Attributes:
      name: "generate", "score", "update", or "reward NAME".
      function: what `jax.jit` returned.
      arguments: shapes, with their shardings.
      reads: which of `memory.PARTS` are among the arguments.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    reads: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of a program; all per chip.

    Attributes:
      text: the optimised HLO.
      working_bytes: memory beyond the arguments while it runs: temporaries, and results that do not
        take the place of an argument.
      code_bytes: memory of the program itself.
      flops: see `flops.of_program`, an equal share of it.
      seconds: how long compiling took.
    """

    text: str
    working_bytes: int
    code_bytes: int
    flops: float
    seconds: float


def of_step(run: Run, place: Placement) -> list[Program]:
    """The programs of one step in the order in which the devices run them; allocates nothing.

    Args:
      run: one policy's; not that of a soup.
      place: over which devices.

    Raises:
      ValueError: networks or batch cannot be cut over the devices; names what could.
    """
    states.check_placement(run, place)
    reference, state = states.reference_shapes(run, place), states.state_shapes(run, place)
    trainer = Trainer(run, reference, place)
    size, model = run.train_dataset_cfg.batch_size, run.model

    def shaped(shape: Sequence[int], dtype: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding)

    def batch(shape: Any) -> Any:
        return jax.tree.map(lambda x: shaped(x.shape, x.dtype, place.batch), shape)

    given = prompter(model)
    plain = shaped((size, run.max_prompt_length), jnp.int32, place.batch)
    length = run.max_prompt_length + (given.length if given else 0)
    prompts = shaped((size, length), jnp.int32, place.batch)
    key = shaped((), jax.eval_shape(lambda: jax.random.key(0)).dtype, place.replicated)
    groups, objectives = model.weightings_per_batch, model.num_objectives
    weighting = Weighting(
        kl_weight=shaped((groups,), jnp.float32, place.replicated),
        reward_weights=shaped((groups, objectives), jnp.float32, place.replicated),
    )
    sampling = (state.params, reference, prompts, weighting, key)
    rollout = batch(jax.eval_shape(trainer.generate, *sampling))
    rollout = dataclasses.replace(rollout, plain_prompts=plain)
    scored = batch(jax.eval_shape(trainer.score, reference, rollout))
    normalised = shaped((size, objectives), jnp.float32, place.batch)
    tokens = (rollout.plain_prompts, rollout.completions, rollout.mask)
    return [
        Program("generate", trainer.generate, sampling, ("parameters", "reference")),
        *(
            Program(f"reward {each.name}", each.program, (each.shapes(), *tokens), ("rewards",))
            for each in model.rewards.on_device
        ),
        Program("score", trainer.score, (reference, rollout), ("reference",)),
        Program(
            "update",
            trainer.update,
            (state, reference, scored, normalised, weighting, key),
            ("parameters", "optimizer", "reference", "value"),
        ),
    ]


def compiled(program: Program, chips: int) -> Compiled:
    """Compiles a program for the devices that its arguments are on; takes seconds to minutes.

    Args:
      program: see `of_step`.
      chips: how many devices share its work.
    """
    began = time.perf_counter()
    traced = program.function.trace(*program.arguments)
    made = traced.lower().compile(compiler_options=_COMPILER_OPTIONS)
    used = made.memory_analysis()
    results = used.output_size_in_bytes - used.alias_size_in_bytes
    return Compiled(
        text=made.as_text(),
        working_bytes=used.temp_size_in_bytes + results,
        code_bytes=used.generated_code_size_in_bytes,
        flops=flops.of_program(traced.jaxpr) / chips,
        seconds=time.perf_counter() - began,
    )
