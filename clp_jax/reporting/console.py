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
import sys
import tempfile
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
_HARMLESS_LINES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called"
    rb"|I\d{4} \d\d:\d\d:"
    rb"|To enable the following instructions:"
    rb"|E\d{4} .* failed call to cuInit"
)


def quiet() -> None:
    """Leaves out the harmless lines from now on; to be called before TensorFlow is imported."""
    logger = logging.getLogger("absl")
    if _is_of_interest not in logger.filters:
        logger.addFilter(_is_of_interest)
        sys.meta_path.insert(0, _QuietTensorFlow())


def _is_of_interest(record: logging.LogRecord) -> bool:
    return not _HARMLESS_RECORDS.match(record.getMessage())


@contextlib.contextmanager
def without_harmless_lines() -> Iterator[None]:
    """Holds back what C++ writes to stderr meanwhile, and then writes what is not harmless.

    Does nothing where `quiet` was not called.
    """
    if _is_of_interest not in logging.getLogger("absl").filters:
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _HARMLESS_LINES.match(line):
                    os.write(2, line)


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
