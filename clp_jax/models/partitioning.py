"""Logical axis names for every array of a run.

The names of a plain T5's parameters are those of t5x ("embed", "joined_kv", "mlp", "vocab", ...),
which a partitioner's rules map to the axes of a mesh of devices.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.linen import partitioning as flax_partitioning
from jax.sharding import PartitionSpec

Tree = Any
Path = tuple[str, ...]


def parameter_axes(module: nn.Module) -> dict[Path, tuple[tuple[int, ...], PartitionSpec]]:
    """Shape and logical axes of each parameter of a plain LM, by its path.

    Args:
      module: a network that names its axes, as t5x's does and `clp_jax.models.t5` too.

    Raises:
      ValueError: it does not.
    """
    tokens = jnp.ones([1, 1], jnp.int32)

    def init(key):
        return module.init(key, tokens, tokens, tokens, enable_dropout=False)

    variables = jax.eval_shape(init, jax.random.key(0))
    if "params_axes" not in variables:
        raise ValueError(f"{type(module).__name__} names no axes of its parameters")
    names = flax_partitioning.get_axis_names(variables["params_axes"])
    axes = traverse_util.flatten_dict(names)
    params = traverse_util.flatten_dict(variables["params"])
    return {path: (leaf.shape, axes[path]) for path, leaf in params.items()}


def logical_axes(tree: Tree, parameters: dict[Path, tuple[tuple[int, ...], PartitionSpec]]) -> Tree:
    """Logical axes of each array of a tree that is made of parameters: φ, optimizer states.

    An array belongs to the parameter whose path its own ends in. If it has the parameter's shape it
    has its axes; with one axis more in front, that of the objectives, which stays whole; of any
    other shape (Adafactor's factored statistics, counters), it stays whole altogether.

    Args:
      tree: of arrays or shapes.
      parameters: see `parameter_axes`.
    """

    def of(path, leaf) -> PartitionSpec:
        names = tuple(_name(key) for key in path)
        for start in range(len(names)):
            if names[start:] in parameters:
                shape, axes = parameters[names[start:]]
                if leaf.shape == shape:
                    return axes
                if leaf.shape[1:] == shape:
                    return PartitionSpec(None, *axes)
        return PartitionSpec(*[None] * leaf.ndim)

    return jax.tree_util.tree_map_with_path(of, tree)


def _name(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)
