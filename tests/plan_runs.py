"""Runs and plans that the tests of planning share."""

import dataclasses

from jax.sharding import AbstractMesh

from clp_jax.models import partitioning
from clp_jax.models.partitioning import Placement
from clp_jax.planning import planner, stand_ins
from clp_jax.settings import gin_config

TINY = ["--gin.ACTIVATION_DTYPE='bfloat16'", "--gin.EVAL_BATCH_SIZE=16", "--gin.BATCH_SIZE=16"]


def planned_run(*bindings, reward_models=()):
    """A run of the paper's, none of whose files are here."""
    lengths = "TASK_FEATURE_LENGTHS = {'inputs': 16, 'targets': 8}"
    gin_config.load(["gin/clp_attn.gin"], [lengths, *bindings])
    stand_ins.bind(reward_models)
    return gin_config.configured_run()


def over(data, model, fully_sharded=False):
    """A placement without devices."""
    mesh = AbstractMesh((data, model), ("data", "model"))
    rules = partitioning._FULLY_SHARDED if fully_sharded else partitioning._RULES
    return Placement(mesh, rules)


ROUGE = "REWARDS = ('rouge',)"
TWO = "REWARDS = ('nli', 'rouge')"
SHALLOW = ("t5.T5Config.num_encoder_layers = 3", "t5.T5Config.num_decoder_layers = 2")


def made_plan(**changes):
    """A plan with round numbers."""
    resident = {"parameters": 3, "optimizer": 0, "reference": 2, "value": 2, "rewards": 1}
    program = planner.ProgramPlan(
        name="generate",
        arguments={"parameters": 3 * 2**30, "reference": 2 * 2**30},
        working_bytes=4 * 2**30,
        code_bytes=2**29,
        flops=197e12 / 10,
        compute_seconds=0.3,
        communication_seconds=0.1,
        loops=((64, 0.004),),
        compile_seconds=1,
    )
    plan = planner.Plan(
        topology="v5e:4x4",
        chips=16,
        num_partitions=1,
        fully_sharded=False,
        resident={part: size * 2**30 for part, size in resident.items()},
        programs=(program,),
        total_steps=9000,
    )
    return dataclasses.replace(plan, **changes)
