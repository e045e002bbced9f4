"""SIGTERM: a machine that is taken away lets the step under way end, and its state be saved."""

import contextlib
import signal
from typing import Any

import jax

from clp_jax.machine import hosts
from clp_jax.reporting.metrics_log import say


class Preemption:
    """Whether to stop now; of several processes, all stop where one was asked to.

    Handles SIGTERM until `close`; a second SIGTERM ends the process at once.
    """

    def __init__(self) -> None:
        self._asked = False
        # Of several processes: what they agreed on when they were last asked.
        self._agreed: jax.Array | None = None
        # None where the handler is not Python's.
        self._before: Any = signal.signal(signal.SIGTERM, self._on_sigterm) or signal.SIG_DFL

    def __call__(self) -> bool:
        """Whether to stop now. Every process has to ask at the same points of the run.

        Several processes hear of a SIGTERM when they ask for the second time after it: none waits
        until the others, and the device, have come to where it is.
        """
        if jax.process_count() == 1:
            return self._asked
        before, self._agreed = self._agreed, hosts.any_of(self._asked)
        return before is not None and bool(before)

    def _on_sigterm(self, number: int, frame: Any) -> None:
        self._asked = True
        signal.signal(number, self._before)
        # Python refuses to print where the signal came in the middle of another line.
        with contextlib.suppress(RuntimeError):
            say("SIGTERM: the step under way is the last one")

    def close(self) -> None:
        """Leaves SIGTERM to whom it was left before."""
        signal.signal(signal.SIGTERM, self._before)

    def __enter__(self) -> "Preemption":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
