"""Put the paper's claims to the test on briefs: every run, then a report of what holds.

  python -m clp_jax.reproduce --scale=briefs --document=docs/reproduction.md

A reproduction that was stopped goes on when the same command is given again.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from clp_jax.reporting.errors import RunFailed
from clp_jax.settings import command_line


def main(argv: Sequence[str]) -> None:
    """The command."""
    flags = command_line.parse(_parser(), argv)
    output = pathlib.Path(flags.output or f"runs/reproduction{'_quick' if flags.quick else ''}")
    document = pathlib.Path(flags.document) if flags.document else output / "reproduction.md"
    with command_line.errors("clp_jax.reproduce"):
        if flags.processes < 1:
            raise ValueError(f"--processes={flags.processes} must be at least 1")
    from clp_jax.reproduction import reproduce, runs

    scale = runs.QUICK if flags.quick else runs.BRIEFS
    with command_line.errors("clp_jax.reproduce", RunFailed):
        reproduce.reproduce(scale, output, document, flags.processes)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("clp_jax.reproduce", __doc__)
    parser.add_argument(
        "--scale",
        choices=("briefs",),
        default="briefs",
        help="briefs: the self-made corpus and a T5 of 0.3 M parameters; default: %(default)s",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="every run cut down to seconds, to see that all of it works; nothing is learnt",
    )
    parser.add_argument("--output", help="folder of the runs; default: runs/reproduction[_quick]")
    parser.add_argument("--document", help="report to write; default: OUTPUT/reproduction.md")
    parser.add_argument(
        "--processes",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="runs at a time, each on a core of its own; default: %(default)s, all cores",
    )
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
