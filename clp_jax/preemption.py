"""SIGTERM: a machine that is taken away lets the step under way end, and its state be saved."""

import signal
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from clp_jax.metrics_log import say


class Preemption:
    """Whether to stop now; of several processes, all stop where one was asked to.

    Handles SIGTERM until `close`; a second SIGTERM ends the process at once.
    """

    def __init__(self) -> None:
        self._asked = False
        # None where the handler is not Python's.
        self._before: Any = signal.signal(signal.SIGTERM, self._on_sigterm) or signal.SIG_DFL

    def __call__(self) -> bool:
        """Whether to stop now. Every process has to ask at the same points of the run."""
        if jax.process_count() == 1:
            return self._asked
        # Not kept in `_asked`: a SIGTERM that comes while the others are waited for would be lost.
        return bool(multihost_utils.process_allgather(np.array(self._asked)).any())

    def _on_sigterm(self, number: int, frame: Any) -> None:
        say("SIGTERM: the step under way is the last one")
        self._asked = True
        signal.signal(number, self._before)

    def close(self) -> None:
        """Leaves SIGTERM to whom it was left before."""
        signal.signal(signal.SIGTERM, self._before)

    def __enter__(self) -> "Preemption":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
