"""The mesh of devices."""

import functools

import jax
from jax.sharding import Mesh
from t5x import partitioning

from clp_jax.models.partitioning import Placement


class Partitioner(partitioning.PjitPartitioner):
    """t5x's partitioner with the mesh and the rules of `python -m clp_jax.train`.

    t5x's own knows no default mesh for TPU v5e, and ignores `num_partitions` on CPUs.

    Args:
      placement: over which devices.
    """

    def __init__(self, placement: Placement):
        self.placement = placement
        super().__init__(
            num_partitions=jax.device_count() // placement.shares,
            logical_axis_rules=placement.rules,
        )

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Devices as [data, model]."""
        return self.placement.mesh
