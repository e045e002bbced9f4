"""Which rows of a batch each process has, and what a single process does without others."""

import types

import numpy as np
import pytest

from clp_jax import hosts
from clp_jax.hosts import Rows
from clp_jax.rewards.host import RewardError


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


def sharding(*parts):
    """Of devices given as (process, first row, end)."""
    where = {Device(process): (slice(first, end, None),) for process, first, end in parts}
    return types.SimpleNamespace(
        devices_indices_map=lambda shape: where, mesh=types.SimpleNamespace(shape={"data": 4})
    )


@pytest.mark.parametrize(
    ("parts", "mine", "share"),
    [
        ([(0, None, None)], range(8), (0, 1)),
        ([(0, 0, 2), (0, 2, 4), (1, 4, 6), (1, 6, 8)], range(4), (0, 2)),
        # Not contiguous, as on a torus; the first row says whose part is which.
        ([(1, 0, 2), (0, 2, 4), (1, 4, 6), (0, 6, 8)], [2, 3, 6, 7], (1, 2)),
        # Two processes have parts of one copy of the model, and read the same.
        ([(0, 0, 4), (1, 0, 4), (2, 4, 8), (3, 4, 8)], range(4), (0, 2)),
    ],
)
def test_a_process_reads_the_rows_of_its_devices(parts, mine, share):
    rows = Rows(sharding(*parts), 8)
    assert rows.indices.tolist() == list(mine)
    assert (rows.share, rows.shares) == share


def test_rows_that_two_processes_have_in_part_are_refused():
    # Three devices each, copies of the model over two: the middle copy lies across.
    parts = [(0, 0, 2), (0, 0, 2), (0, 2, 4), (1, 2, 4), (1, 4, 6), (1, 4, 6)]
    with pytest.raises(ValueError, match="cut across .*they hold 4, 4 rows.*NUM_PARTITIONS"):
        Rows(sharding(*parts), 6)


def test_one_process_gathers_nothing():
    rows, values = Rows(sharding((0, 0, 8)), 8), np.arange(8)
    assert rows.gather(values) is values
    assert hosts.merged({"0_of_1": {"x": values}})["0_of_1"]["x"] is values
    assert hosts.agreed(True)
    assert not hosts.agreed(False)


def test_all_or_none_passes_on_what_it_got():
    assert hosts.all_or_none(lambda: 3) == 3

    def fails():
        raise RewardError("no")

    with pytest.raises(RewardError, match="no"):
        hosts.all_or_none(fails)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("here:1", 2, None), "--process_index must be given too"),
        ((None, 2, 0), "--coordinator_address must be given too"),
        (("here:1", 2, 2), "--process_index=2 must be one of 0 ... 1, as --process_count=2"),
        (("here:1", 0, 0), "--process_index=0 must be one of"),
    ],
)
def test_flags_of_a_meeting(flags, message):
    with pytest.raises(ValueError, match=message):
        hosts.initialize(*flags)
