"""`clp-jax NAME ...`: what stands at the top of the package is a command."""

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib.metadata import version

import clp_jax
from clp_jax.reporting.errors import unknown_name


def names() -> list[str]:
    """The commands there are."""
    return [module.name for module in pkgutil.iter_modules(clp_jax.__path__) if not module.ispkg]


def usage() -> str:
    """What `clp-jax --help` prints: a line for each command."""
    lines = ["usage: clp-jax COMMAND ...", "", "clp-jax COMMAND --help says more of each:", ""]
    width = max(map(len, names())) + 2
    for name in names():
        summary = (importlib.import_module(f"clp_jax.{name}").__doc__ or "").splitlines()[0]
        lines.append(f"  {name:<{width}}{summary}")
    return "\n".join([*lines, "", "  --version  prints the version"])


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    sys.path.insert(0, os.getcwd())  # as `python -m` does: rewards of one's own are found there
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name in ("-V", "--version"):
        print(f"clp-jax {version('clp-jax')}")
    elif name in names():
        importlib.import_module(f"clp_jax.{name}").main(rest)
    else:
        print(f"clp-jax: error: {unknown_name('command', name, names())}", file=sys.stderr)
        raise SystemExit(2)
