"""SIGTERM is never missed, wherever in the run it comes."""

import os
import signal

import jax
import numpy as np
import pytest

from clp_jax.machine import hosts, preemption
from clp_jax.machine.preemption import Preemption


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


def test_it_counts_too_where_it_cuts_a_line_in_two(handler_before, monkeypatch):
    def refused(text):
        raise RuntimeError("reentrant call")

    monkeypatch.setattr(preemption, "say", refused)
    with Preemption() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()


@pytest.fixture
def two_processes(monkeypatch):
    """What this process says to another one, and what that one says: nothing by default."""
    said, other = [], []

    def any_of(asked):
        said.append(asked)
        return np.array(asked or len(said) in other)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "any_of", any_of)
    return said, other


def test_several_processes_stop_at_the_question_after_the_one_that_they_agreed_on(
    handler_before, two_processes
):
    said, _ = two_processes
    with Preemption() as stop:
        answers = [stop()]
        os.kill(os.getpid(), signal.SIGTERM)
        answers += [stop(), stop(), stop()]
    assert answers == [False, False, True, True]
    assert said == [False, True, True, True]


def test_every_process_stops_where_another_one_is_asked(handler_before, two_processes):
    said, other = two_processes
    other += [2]
    with Preemption() as stop:
        assert [stop(), stop(), stop()] == [False, False, True]
    assert not any(said)


def test_a_sigterm_while_the_processes_agree_is_not_lost(
    handler_before, two_processes, monkeypatch
):
    without = hosts.any_of

    def any_of(asked):
        if len(two_processes[0]) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return without(asked)

    monkeypatch.setattr(hosts, "any_of", any_of)
    with Preemption() as stop:
        assert [stop() for _ in range(4)] == [False, False, False, True]
