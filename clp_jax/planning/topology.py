"""Slices of TPU that can be compiled for, and what their chips can do."""

import dataclasses
import functools
import importlib.util
import os

import jax

from clp_jax.reporting.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, by its maker's figures.

    Attributes:
      name: of the generation.
      hbm_bytes: memory.
      usable_hbm_bytes: what the compiler lets a program have of it.
      flops: matrix products in bfloat16, per second.
      hbm_bandwidth: bytes/s between memory and chip.
      link_bandwidth: bytes/s of one link to a neighbour, in one direction.
      clock: cycles/s that the compiler's estimates are in.
    """

    name: str
    hbm_bytes: int
    usable_hbm_bytes: int
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    clock: float


# cloud.google.com/tpu/docs/v5e, and for the links jax-ml.github.io/scaling-book/tpus.
V5E = Chip(
    name="v5e",
    hbm_bytes=16 * 2**30,
    usable_hbm_bytes=int(15.75 * 2**30),
    flops=197e12,
    hbm_bandwidth=819e9,
    link_bandwidth=45e9,
    clock=1.5e9,
)

# The slices of v5e that can be had; libtpu compiles for others too.
SHAPES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
NAMES = tuple(f"{V5E.name}:{shape}" for shape in SHAPES)

# What libtpu else asks of the machine it is on, or writes there.
_ENVIRONMENT = {
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two compilations at once are no conflict over a chip
}


def check(name: str) -> str:
    """A slice's name as it is.

    Raises:
      ValueError: there is no such slice; names the nearest ones.
    """
    if name in NAMES:
        return name
    generation, colon, shape = name.partition(":")
    if colon and generation != V5E.name:
        raise ValueError(
            f"--topology={name}: figures are known of {V5E.name} alone; for example "
            f"{V5E.name}:{shape if shape in SHAPES else '4x4'}"
        )
    turned = ":".join([V5E.name, "x".join(reversed(shape.split("x")))])
    if turned in NAMES:
        raise ValueError(f"--topology={name}: there is no such slice; it is called {turned}")
    message = unknown_name("topology", name, NAMES, "--topology")
    raise ValueError(f"{message}; valid are {', '.join(NAMES)}")


def prepare() -> None:
    """Makes this process one that compiles for TPUs and computes on its CPU; comes first of all.

    Raises:
      ImportError: there is no libtpu.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError("compiling for a TPU needs libtpu: pip install 'clp-jax[tpu]'")
    os.environ.update(_ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")


@functools.cache
def devices(name: str) -> tuple[jax.Device, ...]:
    """The chips of a slice, which can be compiled for and nothing else; after `prepare`.

    Args:
      name: one of `NAMES`.

    Raises:
      ValueError: there is no such slice.
    """
    from jax.experimental import topologies

    options = {"chips_per_host_bounds": (1, 1, 1)} if check(name).endswith(":1x1") else {}
    found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return tuple(found.devices)
