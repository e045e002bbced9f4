"""SIGTERM: a machine that is taken away lets the step under way end, and its state be saved."""

import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

from clp_jax.metrics_log import say

# The exit status of a run that the same command continues: EX_TEMPFAIL of sysexits.h.
RETRY = 75


class Preempted(Exception):
    """The run was asked to stop, and did; what it says is for the person who starts it again."""


class Preemption:
    """Whether to stop now; of several processes, all are told so at the same point.

    Handles SIGTERM until `close`; a second SIGTERM ends the process at once.
    """

    def __init__(self) -> None:
        self._asked = False
        # Each process asks as often as the others; JAX finds the number at which all can stop.
        self._times_asked = 0
        self._before: Any = None
        if jax.process_count() == 1:  # else JAX's own handler is there, and tells the others
            self._before = signal.signal(signal.SIGTERM, self._on_sigterm)

    def __call__(self) -> bool:
        """Whether to stop now. Every process has to ask at the same points of the run."""
        self._times_asked += 1
        if jax.process_count() > 1 and not self._asked:
            self._asked = multihost_utils.reached_preemption_sync_point(self._times_asked)
        return self._asked

    def _on_sigterm(self, number: int, frame: Any) -> None:
        say("SIGTERM: the step under way is the last one")
        self._asked = True
        signal.signal(number, self._before)

    def close(self) -> None:
        """Leaves SIGTERM to whom it was left before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def __enter__(self) -> "Preemption":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
