"""Which rows of a batch each process has, and what a single process does without others."""

import os
import types

import jax
import numpy as np
import pytest

from clp_jax.machine import hosts
from clp_jax.machine.hosts import Rows
from clp_jax.reporting.errors import Preempted, RewardError


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
    with pytest.raises(
        ValueError,
        match="cut across .*they hold 4, 4 rows.*NUM_PARTITIONS.* 3 of 6 devices .*, 1, 3 or 6",
    ):
        Rows(sharding(*parts), 6)


def test_one_process_gathers_nothing():
    rows, values = Rows(sharding((0, 0, 8)), 8), np.arange(8)
    assert rows.gather(values) is values
    assert hosts.merged({"0_of_1": {"x": values}})["0_of_1"]["x"] is values
    assert hosts.unanimous(True)
    assert not hosts.unanimous(False)
    assert hosts.any_of(True)
    assert not hosts.any_of(False)


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


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (ValueError("no address"), ValueError, "does not say where the others are .no address"),
        (RuntimeError("timed out"), Preempted, "did not meet by the environment's address"),
    ],
)
def test_a_meeting_that_fails(monkeypatch, raised, kind, message):
    def initialize(*args, **kwargs):
        raise raised

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(kind, match=message):
        hosts.initialize()


@pytest.fixture
def of_two(monkeypatch):
    """Two processes, the other of which sends the negative of what this one does."""
    sent = []

    def process_allgather(x):
        sent.append(np.asarray(x))
        return np.stack([x, ~x if x.dtype == bool else -x])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", process_allgather)
    return sent


def test_what_another_process_fails_in_ends_this_one_too(of_two):
    with pytest.raises(RewardError, match="process 1 failed; its log says how"):
        hosts.all_or_none(lambda: 3)


def test_the_error_of_this_process_is_told_here(of_two):
    def fails():
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        hosts.all_or_none(fails, (ValueError, OSError))
    assert of_two == [np.array(True)]


def test_one_that_disagrees_is_enough(of_two):
    assert not hosts.unanimous(True)


def test_rows_of_all_processes_come_to_their_places(of_two):
    rows = Rows(sharding((0, 0, 2), (1, 2, 4), (1, 4, 6), (0, 6, 8)), 8)
    values = np.array([[1], [2], [3], [4]])
    assert rows.gather({"x": values})["x"][:, 0].tolist() == [1, 2, -1, -2, -3, -4, 3, 4]


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (jax.errors.JaxRuntimeError("UNAVAILABLE: closed"), 75, "lost another one, whose own log"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory"), 1, "failed: RESOURCE_EXHAUSTED"),
        (KeyError("name"), 1, "failed: 'name'"),
    ],
)
def test_how_a_process_of_several_ends(monkeypatch, capsys, error, status, message):
    def leave(code):
        raise Ended(code)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Ended) as ended, hosts.ending_together("clp_jax.train"):
        raise error
    assert ended.value.args == (status,)
    said = capsys.readouterr().err
    assert f"clp_jax.train: error: process 0 of 2 {message}" in said
    assert "Traceback" in said


@pytest.mark.parametrize("error", [RewardError("no"), Preempted("saved")])
def test_what_all_processes_end_with_together_is_passed_on(monkeypatch, error):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(type(error), match=str(error)), hosts.ending_together("clp_jax.train"):
        raise error
