"""SIGTERM is never missed, wherever in the run it comes."""

import os
import signal

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from clp_jax.preemption import Preemption


@pytest.fixture
def handler_before():
    """SIGTERM's handler while no run is under way, which does nothing."""
    calls = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    yield calls
    signal.signal(signal.SIGTERM, before)


def test_asked_once_to_stop_it_says_so_until_it_is_closed(handler_before):
    with Preemption() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop()
        assert handler_before == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert handler_before == [signal.SIGTERM]


def test_a_second_sigterm_is_left_to_the_handler_before(handler_before):
    with Preemption():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert handler_before == [signal.SIGTERM]


def test_a_sigterm_that_comes_while_the_processes_agree_counts_at_the_next_step(
    handler_before, monkeypatch
):
    sent = []

    def process_allgather(asked):
        """Two processes, the other of which is not asked; this one is, after it has answered."""
        sent.append(bool(asked))
        if len(sent) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return np.array([asked, False])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", process_allgather)
    with Preemption() as stop:
        assert [stop(), stop(), stop()] == [False, True, True]
    assert sent == [False, True, True]


def test_every_process_stops_where_another_one_is_asked(handler_before, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda asked: np.array([asked, True]))
    with Preemption() as stop:
        assert stop()
