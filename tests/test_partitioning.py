"""Logical axes of φ and of optimizer states are those of the parameters they are made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec

from clp_jax import optimizers, subset
from clp_jax.conditioning import init_clp_params
from clp_jax.models import partitioning


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
