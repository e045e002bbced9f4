"""Logical axes of φ and of optimizer states are those of the parameters they are made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec
from plan_runs import ROUGE, SHALLOW, TWO, over, planned_run

from clp_jax.algorithm import optimizers, subset
from clp_jax.algorithm.conditioning import init_clp_params
from clp_jax.models import partitioning
from clp_jax.runs import states


@pytest.fixture(scope="module")
def parameters(module):
    return partitioning.parameter_axes(module)


KERNEL = ("encoder", "layers_0", "attention", "query", "kernel")


def test_parameters_have_the_axes_of_t5x(parameters, reference):
    flat = traverse_util.flatten_dict(reference)
    assert {path: shape for path, (shape, _) in parameters.items()} == {
        path: leaf.shape for path, leaf in flat.items()
    }
    assert parameters[KERNEL][1] == PartitionSpec("embed", "joined_kv")
    assert parameters[("token_embedder", "embedding")][1] == PartitionSpec("vocab", "embed")


def test_replicas_have_an_axis_more(parameters, reference):
    params = init_clp_params(reference, subset.attention(), 3)
    axes = partitioning.logical_axes(params, parameters)
    conditioned = traverse_util.flatten_dict(axes.conditioned)
    assert conditioned[KERNEL] == PartitionSpec("objective", "embed", "joined_kv")
    shared = traverse_util.flatten_dict(axes.shared)
    assert shared == {path: parameters[path][1] for path in shared}


@pytest.mark.parametrize(
    "optimizer", [optax.adam(1e-3), optimizers.adafactor(1e-3)], ids=["adam", "adafactor"]
)
def test_statistics_of_a_parameters_shape_have_its_axes(parameters, reference, optimizer):
    params = init_clp_params(reference, subset.full(), 2)
    state = jax.eval_shape(optimizers.per_objective(optimizer).init, params)
    axes = partitioning.logical_axes(state, parameters)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    found = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, PartitionSpec))
    assert len(found) == len(leaves)
    named = 0
    for (path, leaf), spec in zip(leaves, found, strict=True):
        assert len(spec) == leaf.ndim
        if "'query'" in str(path) and leaf.ndim == 3:
            assert spec == PartitionSpec("objective", "embed", "joined_kv")
            named += 1
    assert named


def test_a_network_without_axis_names_is_refused():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, encoder, decoder, targets, enable_dropout):
            return nn.Dense(2)(jnp.ones([1, 2]))

    with pytest.raises(ValueError, match="Plain names no axes"):
        partitioning.parameter_axes(Plain())


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        (
            (8, 1),
            30,
            r"BATCH_SIZE=30 .* by 8 \(the 8 devices / NUM_PARTITIONS=1\); "
            "BATCH_SIZE may be 24 or 32, or NUM_PARTITIONS 4 or 8",
        ),
        (
            (4, 2),
            2,
            r"by 4 \(the 8 devices / NUM_PARTITIONS=2\); "
            "BATCH_SIZE may be 4, or NUM_PARTITIONS 4 or 8",
        ),
    ],
)
def test_a_batch_that_cannot_be_shared(shape, size, message):
    with pytest.raises(ValueError, match=message):
        over(*shape).check_batch("BATCH_SIZE", size)
    over(*shape).check_batch("BATCH_SIZE", 16)


def test_a_network_that_cannot_be_cut(module):
    over(4, 2).check_network(module, "the policy")
    message = (
        "the policy: axis 'heads' of num_heads has length 2, which NUM_PARTITIONS=4 does not "
        "divide; of 8 devices, NUM_PARTITIONS may be 1 or 2"
    )
    with pytest.raises(ValueError, match=message):
        over(2, 4).check_network(module, "the policy")
    message = "axis 'embed' of .* has length 16, which 3 devices cannot share .*FULLY_SHARDED=False"
    with pytest.raises(ValueError, match=message):
        over(3, 1, fully_sharded=True).check_network(module, "the policy")


@pytest.mark.parametrize("number", [0, 2])
def test_a_model_axis_that_does_not_divide_the_devices(number):
    message = f"NUM_PARTITIONS={number} must divide the number of devices, 1; it may be 1"
    with pytest.raises(ValueError, match=message):
        partitioning.mesh(number)


def test_what_suits_the_whole_run_is_named():
    """12 heads and batches of 32 over 64 chips: each allows what the other forbids."""
    run = planned_run(TWO, *SHALLOW, "BATCH_SIZE = 32", "EVAL_BATCH_SIZE = 32",
                      reward_models=["nli=tiny"])  # fmt: skip
    whole = "Of all NUM_PARTITIONS over 64 devices, NUM_PARTITIONS=2 or 4 divides the network and"
    for wrong, first in (((64, 1), "BATCH_SIZE=32 cannot be shared"), ((8, 8), "num_heads has")):
        with pytest.raises(ValueError, match=f"{first}.*{whole}"):
            states.check_placement(run, over(*wrong))
    for right in ((32, 2), (16, 4)):
        states.check_placement(run, over(*right))


def test_nothing_that_suits_is_said_too():
    run = planned_run(TWO, *SHALLOW, "BATCH_SIZE = 2", reward_models=["nli=tiny"])
    with pytest.raises(ValueError, match="Of all NUM_PARTITIONS over 64 devices, none divides"):
        states.check_placement(run, over(64, 1))


@pytest.mark.parametrize(
    ("devices", "num_partitions", "used"),
    [(16, 1, (8, 1)), (6, 1, (2, 1)), (6, 2, (1, 2)), (1, 4, (1, 1)), (12, 4, (1, 4))],
)
def test_a_trained_run_uses_the_devices_that_it_can(monkeypatch, devices, num_partitions, used):
    """With EVAL_BATCH_SIZE=8, on whatever machine."""
    made = {}
    monkeypatch.setattr(jax, "devices", lambda: list(range(devices)))
    monkeypatch.setattr(
        partitioning, "mesh", lambda n, d: made.update(shape=(len(d) // n, n), devices=d)
    )
    run = planned_run(ROUGE, *SHALLOW, f"NUM_PARTITIONS = {num_partitions}", "EVAL_BATCH_SIZE = 8")
    states.placement(run, training=False)
    assert made == {"shape": used, "devices": list(range(used[0] * used[1]))}
