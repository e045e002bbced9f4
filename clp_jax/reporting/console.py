"""A quiet console: a command's own lines, and of the libraries' those that say what is wrong.

What is left out is known to be harmless and is named here; everything else that a library says is
still seen.
"""

import contextlib
import importlib.abc
import importlib.util
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType

# Of Python's loggers: orbax's managers that only read, and SeqIO's advice on shuffling.
_HARMLESS_RECORDS = re.compile(
    r"CheckpointManagerOptions\.read_only=True"
    r"|Given directory is read only="
    r"|Using an uncached \w+ for training is not recommended"
)
# Of C++, which writes to the file descriptor: TensorFlow's information and its missing GPU.
_HARMLESS_LINES = (
    r"WARNING: All log messages before absl::InitializeLog\(\) is called"
    r"|I\d{4} \d\d:\d\d:"
    r"|To enable the following instructions:"
    r"|E\d{4} .* failed call to cuInit"
)


def quiet() -> None:
    """Leaves out the harmless lines from now on; to be called before TensorFlow is imported."""
    logger = logging.getLogger("absl")
    if _is_of_interest not in logger.filters:
        logger.addFilter(_is_of_interest)
        sys.meta_path.insert(0, _QuietTensorFlow())


def _is_of_interest(record: logging.LogRecord) -> bool:
    return not _HARMLESS_RECORDS.match(record.getMessage())


# A process of its own, which outlives this one and still says what it died of.
_FILTER = """
import re, sys
harmless, last = re.compile(sys.argv[1].encode()), b"\\n"
for last in sys.stdin.buffer:
    if not harmless.match(last):
        sys.stderr.buffer.write(last)
        sys.stderr.buffer.flush()
if not last.endswith(b"\\n"):
    sys.stderr.write("\\n")
"""


@contextlib.contextmanager
def without_harmless_lines() -> Iterator[None]:
    """Keeps the harmless lines among what C++ writes to stderr meanwhile from coming out there.

    Does nothing where `quiet` was not called, or stderr is closed.
    """
    stderr = None
    if _is_of_interest in logging.getLogger("absl").filters:
        with contextlib.suppress(OSError):
            stderr = os.dup(2)
    if stderr is None:
        yield
        return
    command = [sys.executable, "-I", "-S", "-c", _FILTER, _HARMLESS_LINES]
    lines = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert lines.stdin is not None
    sys.stderr.flush()
    os.dup2(lines.stdin.fileno(), 2)
    lines.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process begun meanwhile goes on
            lines.wait(5)


class _QuietTensorFlow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports TensorFlow, and has it look for GPUs, without the lines of both."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Of TensorFlow alone, once."""
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Likewise."""
        with without_harmless_lines():
            self._loader.exec_module(module)
            module.config.list_physical_devices()
