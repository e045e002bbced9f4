"""Where the arrays of a run are: logical axes of all of them, and the devices these are cut over.

Every axis of every parameter has a name, those of t5x ("embed", "joined_kv", "mlp", "vocab", ...)
and "objective" for the leading m of conditioned parameters. Rules map names to the two axes of a
mesh of devices: "data", whose devices share the batch, and "model", whose devices share one copy of
the parameters.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen import partitioning as flax_partitioning
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding

from clp_jax.reporting.errors import divisors, listed

Tree = Any
Path = tuple[str, ...]
Rules = tuple[tuple[str, str | None], ...]

DATA, MODEL = "data", "model"

# Names that are not here are replicated. Of two axes of one array that want the same devices, that
# of the first rule gets them. The same as t5x's standard rules.
_RULES: Rules = (
    ("batch", DATA),
    ("vocab", MODEL),
    ("mlp", MODEL),
    ("heads", MODEL),
    ("joined_kv", MODEL),
    ("objective", None),
)
_FULLY_SHARDED: Rules = (*_RULES, ("embed", DATA))


@functools.lru_cache(maxsize=32)
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
    has its axes; with one axis more in front, that is "objective"; of any other shape (Adafactor's
    factored statistics, counters), it is replicated.

    Args:
      tree: of arrays or shapes.
      parameters: see `parameter_axes`.
    """

    def of(path, leaf) -> PartitionSpec:
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        for start in range(len(names)):
            if names[start:] in parameters:
                shape, axes = parameters[names[start:]]
                if leaf.shape == shape:
                    return axes
                if leaf.shape[1:] == shape:
                    return PartitionSpec("objective", *axes)
        return PartitionSpec(*[None] * leaf.ndim)

    return jax.tree_util.tree_map_with_path(of, tree)


def mesh(num_partitions: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Devices as [data, model].

    Args:
      num_partitions: the length of the model axis.
      devices: all of them; None for those of all processes.

    Raises:
      ValueError: the one does not divide the number of the other.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if num_partitions < 1 or count % num_partitions:
        raise ValueError(
            f"NUM_PARTITIONS={num_partitions} must divide the number of devices, {count}; it may "
            f"be {listed(divisors(count))}"
        )
    shape = (count // num_partitions, num_partitions)
    # An axis need not be one of a slice's own: 2 x 16 on 4 x 8 chips.
    made = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(made, (DATA, MODEL))


@dataclasses.dataclass(frozen=True)
class Placement:
    """Which device holds what.

    Attributes:
      mesh: devices as [data, model].
      rules: (logical axis, axis of the mesh), the first that fits an array's axis counts.
    """

    mesh: Mesh
    rules: Rules = _RULES

    @classmethod
    def over(
        cls,
        devices: Sequence[jax.Device] | None = None,
        num_partitions: int = 1,
        fully_sharded: bool = False,
    ) -> "Placement":
        """Over some devices, or those of all processes.

        Args:
          devices: see `mesh`.
          num_partitions: see `mesh`.
          fully_sharded: whether parameters and optimizer states are cut over the devices that share
            the batch too, and gathered where they are used.

        Raises:
          ValueError: see `mesh`.
        """
        return cls(mesh(num_partitions, devices), _FULLY_SHARDED if fully_sharded else _RULES)

    def recut(self, num_partitions: int) -> "Placement":
        """As many devices in another shape, without the devices: what it checks can be asked.

        Args:
          num_partitions: divides the number of devices.
        """
        shape = (self.mesh.size // num_partitions, num_partitions)
        abstract: Any = AbstractMesh(shape, (DATA, MODEL))
        return Placement(abstract, self.rules)

    @property
    def replicated(self) -> NamedSharding:
        """Of what every device holds."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Of arrays whose leading axis is that of the batch."""
        return NamedSharding(self.mesh, PartitionSpec(DATA))

    @property
    def shares(self) -> int:
        """How many parts the batch is cut into."""
        return self.mesh.shape[DATA]

    def parameters(self, module: nn.Module, tree: Tree) -> Tree:
        """Shardings of a tree that is made of a network's parameters (`logical_axes`).

        Args:
          module: the network.
          tree: of arrays or shapes.

        Raises:
          ValueError: it names no axes, and there are several devices.
        """
        if self.mesh.size == 1:
            return jax.tree.map(lambda _: self.replicated, tree)
        axes = logical_axes(tree, parameter_axes(module))

        def of(names: Any) -> NamedSharding:
            cut: Any = flax_partitioning.logical_to_mesh_axes(names, self.rules)
            return NamedSharding(self.mesh, cut)

        return jax.tree.map(of, axes, is_leaf=lambda x: isinstance(x, PartitionSpec))

    def shapes(self, module: nn.Module, tree: Tree) -> Tree:
        """Shapes and dtypes of such a tree, with its shardings."""
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            tree,
            self.parameters(module, tree),
        )

    def traced(self, function: Callable) -> Callable:
        """`function`, whose networks' activations are placed by the rules when it is traced."""
        if self.mesh.size == 1:
            return function

        @functools.wraps(function)
        def inside(*args, **kwargs):
            here = jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)
            with here, flax_partitioning.axis_rules(self.rules):
                return function(*args, **kwargs)

        return inside

    def check_batch(self, name: str, size: int) -> None:
        """Raises ValueError unless a batch can be shared by the devices.

        Args:
          name: of the setting, e.g. "BATCH_SIZE".
          size: its value.
        """
        if size % self.shares == 0:
            return
        devices, cut = self.mesh.size, self.mesh.shape[MODEL]
        sizes = [size // self.shares * self.shares, -(-size // self.shares) * self.shares]
        cuts = [n for n in divisors(devices) if size % (devices // n) == 0]
        raise ValueError(
            f"{name}={size} cannot be shared equally by {self.shares} (the {devices} devices / "
            f"NUM_PARTITIONS={cut}); {name} may be {listed([n for n in sizes if n], 'or')}, "
            f"or NUM_PARTITIONS {listed(cuts, 'or')}"
        )

    def check_network(self, module: nn.Module, what: str) -> None:
        """Raises ValueError unless a network's parameters and heads can be cut by the rules.

        Args:
          module: names its axes.
          what: names it in the message, e.g. "the policy".
        """
        if self.mesh.size == 1:
            return
        sizes = {
            (name, size): path
            for path, (shape, axes) in parameter_axes(module).items()
            for name, size in zip(axes, shape, strict=True)
        }
        sizes["heads", module.config.num_heads] = ("num_heads",)
        rules = dict(self.rules)
        for (name, size), path in sizes.items():
            over = rules.get(name)
            if over is None or size % self.mesh.shape[over] == 0:
                continue
            where = f"{what}: axis {name!r} of {'/'.join(path)} has length {size}, which"
            if over == DATA:
                raise ValueError(
                    f"{where} {self.shares} devices cannot share equally, as FULLY_SHARDED=True "
                    "wants; FULLY_SHARDED=False does not cut it"
                )
            lengths = [length for axis, length in sizes if rules.get(axis) == MODEL]
            cuts = [n for n in divisors(self.mesh.size) if all(x % n == 0 for x in lengths)]
            raise ValueError(
                f"{where} NUM_PARTITIONS={self.mesh.shape[MODEL]} does not divide; of "
                f"{self.mesh.size} devices, NUM_PARTITIONS may be {listed(cuts, 'or')}"
            )


def put(tree: Tree, sharding: Any) -> Tree:
    """Arrays of the host on the devices; every process has all of each array.

    Args:
      tree: of arrays.
      sharding: one for all of them, or a tree of them.
    """
    if isinstance(sharding, Sharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def one(x, where: Sharding) -> jax.Array:
        if where.is_fully_addressable:
            return jax.device_put(x, where)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(x), where))
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

    return jax.tree.map(one, tree, sharding)


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of an array that this process holds, in order; all of them if it is the only one.

    Args:
      array: cut over its leading axis alone, or replicated.
    """
    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return np.asarray(jax.device_get(array))
    pieces = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])
