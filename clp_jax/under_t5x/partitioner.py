"""The mesh of devices."""

import functools

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh
from t5x import partitioning


class Partitioner(partitioning.PjitPartitioner):
    """t5x's partitioner with a mesh for any kind of device.

    t5x's own knows no default mesh for TPU v5e, and ignores `num_partitions` on CPUs.

    Args:
      num_partitions: devices over which one copy of the model is cut; the others share the batch.

    Raises:
      ValueError: it does not divide the number of devices.
    """

    def __init__(self, num_partitions: int):
        count = jax.device_count()
        if num_partitions < 1 or count % num_partitions:
            valid = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
            raise ValueError(
                f"NUM_PARTITIONS={num_partitions} must divide the number of devices, {count}; it "
                f"may be {valid}"
            )
        super().__init__(
            num_partitions=num_partitions,
            logical_axis_rules=partitioning.standard_logical_axis_rules(),
        )

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Devices as [data, model]."""
        shape = (jax.device_count() // self._num_partitions, self._num_partitions)
        return Mesh(mesh_utils.create_device_mesh(shape), ("data", "model"))
