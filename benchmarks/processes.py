"""Worker processes that stay alive and take turns, and the rounds in which they do."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

# What is compared runs in processes of its own: in each round, each of them does one timed piece of
# work, one at a time. So a machine whose speed drifts slows all of them alike, and none pays for
# the memory or the threads of another. Nor is jax or torch imported here: each process has only
# what it measures.

_PAUSE = 0.2  # seconds before each turn: threads of the one before may still wait for work


class Worker:
    """A process that runs a script with --worker and answers one request after the other.

    Args:
      script: calls `serve` when it is given --worker.
      arguments: what the worker is made of, as a dict that survives JSON.
    """

    def __init__(self, script: str, arguments: Mapping[str, Any]):
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, script, "--worker", json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the worker's object and returns what it returned.

        Raises:
          RuntimeError: the process ended; the message has the end of its log.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the missing reply says it
            print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        if not reply:
            status = self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"a worker ended with {status}:\n{self._log.read()[-4000:]}")
        return json.loads(reply)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()


def serve(make: Callable[[], Any]) -> None:
    """Makes an object, then calls those of its methods that stdin names, until stdin ends."""
    # Libraries print too; what they print must not stand between the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    served = make()
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(json.dumps(getattr(served, method)(*arguments)), file=replies, flush=True)


def interleave(turns: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Calls each of `turns` once per round, and each round begins with another one.

    Returns:
      What each returned, round by round.
    """
    names, results = list(turns), {name: [] for name in turns}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(_PAUSE)
            results[name].append(turns[name]())
    return results
