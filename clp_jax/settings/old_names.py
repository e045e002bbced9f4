"""Modules by the names that they had in 0.1.0, which MODEL_DIR/config.gin of that time imports."""

import importlib
import importlib.abc
import importlib.util
import io
import pathlib
import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "clp_jax.config": "clp_jax.settings.config",
    "clp_jax.optimizers": "clp_jax.algorithm.optimizers",
    "clp_jax.rewards.fit_config": "clp_jax.reward_fitting.fit_config",
    "clp_jax.subset": "clp_jax.algorithm.subset",
    "clp_jax.t5x_driver": "clp_jax.settings.t5x_driver",
    "clp_jax.weighting": "clp_jax.algorithm.weighting",
}


def opened(path: str) -> io.StringIO:
    """A gin file, for gin to read, with the names of today: to gin, one name is not the other."""

    def today(match: re.Match[str]) -> str:
        room, _, name = MOVED.get(f"{match[1]}.{match[2]}", "").rpartition(".")
        return f"from {room} import {name}" if room else match[0]

    text = pathlib.Path(path).read_text()
    file = io.StringIO(re.sub(r"^from ([\w.]+) import (\w+)$", today, text, flags=re.MULTILINE))
    file.name = path  # for gin's messages
    return file


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module where it stands now."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Of an old name."""
        return importlib.util.spec_from_loader(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself: what gin binds of it is the same under either name."""
        module = importlib.import_module(MOVED[spec.name])
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run; gives it back its spec, which importing it by another name replaced."""
        module.__spec__ = self._spec


def install() -> None:
    """Lets t5x, which has gin read the files as they are, import the old names."""
    sys.meta_path.append(_Finder())
