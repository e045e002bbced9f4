"""Several processes, one per host: how they meet, which rows each has, and how they agree.

With one process everything here is what it would be without it.
"""

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clp_jax.reporting.errors import RETRY, Diverged, Preempted, RewardError, divisors, listed
from clp_jax.reporting.metrics_log import say

T = TypeVar("T")
Tree = Any

# A process that is not heard of for this long is lost, and the others end.
_LOST_SECONDS = 60


# What JAX's errors begin with where the fault is not another process's.
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


def initialize(
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
) -> None:
    """Meets the other processes; to be called before anything is computed.

    Args:
      coordinator_address: HOST:PORT at which process 0 can be reached; None to take all three from
        the environment (TPU pods, GKE, Slurm).
      process_count: how many processes there are.
      process_index: which of them this is.

    Raises:
      ValueError: some are given and some not, or the environment does not say.
      Preempted: the others did not come.
    """
    given = {
        "--coordinator_address": coordinator_address,
        "--process_count": process_count,
        "--process_index": process_index,
    }
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        raise ValueError(f"{', '.join(missing)} must be given too, or none of the three")
    if not missing and not 0 <= process_index < process_count:  # type: ignore[operator]
        raise ValueError(
            f"--process_index={process_index} must be one of 0 ... {process_count - 1}, as "  # type: ignore[operator]
            f"--process_count={process_count}"
        )
    # `preemption.Preemption` handles SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address,
            process_count,
            process_index,
            heartbeat_timeout_seconds=_LOST_SECONDS,
            shutdown_timeout_seconds=_LOST_SECONDS,
        )
    except ValueError as error:
        raise ValueError(
            f"--multihost: the environment does not say where the others are ({error}); give "
            "--coordinator_address, --process_count and --process_index"
        ) from error
    except RuntimeError as error:
        where = coordinator_address or "the environment's address"
        raise Preempted(f"the processes did not meet by {where}: {error}") from error
    say(f"{jax.process_count()} processes have met; {jax.device_count()} devices in all")


def is_main() -> bool:
    """Whether this process writes the logs."""
    return jax.process_index() == 0


@contextlib.contextmanager
def ending_together(program: str) -> Iterator[None]:
    """Ends this process at once, with a message, when another one is lost, or this one fails.

    The exit status is `errors.RETRY` in the former case, and 1 in the latter.

    Raises:
      RewardError, Diverged, Preempted: all processes end with these together.
    """
    try:
        yield
    except (RewardError, Diverged, Preempted):
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        lost = isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(_OWN)
        what = "lost another one, whose own log says why" if lost else f"failed: {error}"
        print(
            f"{program}: error: process {jax.process_index()} of {jax.process_count()} {what}. The "
            "same command, given to all again, goes on from the last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(RETRY if lost else 1)  # an orderly end would wait for the others


class Rows:
    """The rows of a global batch that the devices of this process hold.

    Processes either hold the same rows (they have parts of one copy of the model) or none in
    common.

    Args:
      sharding: of the batch.
      size: B, over all processes.

    Attributes:
      size: B.
      indices: the rows, in order, [n].
      share: the processes that hold the same rows are one reader; which of the readers this is.
      shares: how many readers there are.

    Raises:
      ValueError: two processes hold some rows in common and others not.
    """

    def __init__(self, sharding: NamedSharding, size: int):
        self._sharding, self.size = sharding, size
        self._of_process: dict[int, set[int]] = {}
        where: Mapping[Any, Any] = sharding.devices_indices_map((size,))
        for device, (rows, *_) in where.items():
            held = self._of_process.setdefault(device.process_index, set())
            held.update(range(*rows.indices(size)))
        readers = sorted({tuple(sorted(rows)) for rows in self._of_process.values()})
        if sum(map(len, readers)) != size:
            counts = ", ".join(str(len(rows)) for rows in self._of_process.values())
            total, own = len(where), len(where) // len(self._of_process)
            cuts = [n for n in divisors(total) if own % n == 0 or n % own == 0]
            raise ValueError(
                f"the {size} rows of a batch are cut across processes (they hold {counts} rows, "
                f"some of them partly, over the mesh {dict(sharding.mesh.shape)}): "
                "NUM_PARTITIONS must divide the number of devices of a process, or be a multiple: "
                f"with {own} of {total} devices in each process, {listed(cuts, 'or')}"
            )
        mine = tuple(sorted(self._of_process[jax.process_index()]))
        self.indices = np.array(mine)
        self.share, self.shares = readers.index(mine), len(readers)

    def to_devices(self, tree: Tree) -> Tree:
        """This process's rows [n, ...] of each array -> the global arrays [B, ...]."""
        where = self._sharding

        def one(x) -> jax.Array:
            if isinstance(x, jax.Array) or where.is_fully_addressable:
                return jax.device_put(x, where)
            shape = (self.size, *x.shape[1:])

            def rows(index):
                return x[np.searchsorted(self.indices, np.arange(self.size)[index[0]])]

            return jax.make_array_from_callback(shape, where, rows)

        return jax.tree.map(one, tree)

    def gather(self, tree: Tree) -> Tree:
        """This process's rows [n, ...] of each array of the host -> all [B, ...], everywhere."""
        if len(self._of_process) == 1:
            return tree
        order = [sorted(self._of_process[p]) for p in sorted(self._of_process)]

        def one(x: np.ndarray) -> np.ndarray:
            out = np.zeros((self.size, *x.shape[1:]), x.dtype)
            for rows, values in zip(order, multihost_utils.process_allgather(x), strict=True):
                out[rows] = values
            return out

        return jax.tree.map(one, tree)


def everywhere(tree: Tree) -> Tree:
    """Global arrays as arrays of the host, whole on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def all_or_none(
    function: Callable[[], T], kinds: tuple[type[Exception], ...] = (RewardError,)
) -> T:
    """What `function` returns, if it does on every process.

    Args:
      function: called on each.
      kinds: of errors that all processes end with.

    Raises:
      Exception: one of `kinds`, which it raised here.
      RewardError: it raised one of `kinds` on another process and not here.
    """
    result, error = None, None
    try:
        result = function()
    except kinds as raised:
        error = raised
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(error is not None))
        if error is None and failed.any():
            which = ", ".join(map(str, np.flatnonzero(failed)))
            raise RewardError(f"process {which} failed; its log says how")
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def unanimous(value: bool) -> bool:
    """Whether every process says so."""
    return bool(multihost_utils.process_allgather(np.array(value)).all())


def any_of(value: bool) -> jax.Array:
    """Whether some process says so, bool []; dispatched, and not waited for."""
    each, reduced = _over_all_devices()
    said = np.full(jax.local_device_count(), value)
    return reduced(jax.make_array_from_process_local_data(each, said))


@functools.cache
def _over_all_devices() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    mesh = Mesh(np.array(jax.devices()), ("device",))
    whole = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("device")), jax.jit(jnp.any, out_shardings=whole)


def merged(position: Mapping[str, Any]) -> dict[str, Any]:
    """The items of every process's dictionary of arrays, on all of them."""
    if jax.process_count() == 1:
        return dict(position)
    mine = np.frombuffer(serialization.msgpack_serialize(dict(position)), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(mine.size))
    padded = np.pad(mine, (0, int(lengths.max()) - mine.size))
    everyone: dict[str, Any] = {}
    for length, row in zip(lengths, multihost_utils.process_allgather(padded), strict=True):
        everyone |= serialization.msgpack_restore(row[:length].tobytes())
    return everyone
