"""Runs at smoke scale, shared by the tests of the commands."""

import json
import os
import pathlib
import subprocess
import sys

from clp_jax.settings import command_line

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Without what conftest.py sets for programs that compile fast and run slowly.
FOR_TESTS = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
AS_USERS = {name: value for name, value in os.environ.items() if name not in FOR_TESTS}
FILES = ["gin/clp_attn.gin", "gin/briefs.gin", "gin/smoke.gin"]


def flags(model_dir, *bindings, files=FILES):
    """Command-line flags of a smoke run in `model_dir`."""
    return [
        *[f"--gin_file={ROOT / file}" for file in files],
        f"--gin.MODEL_DIR={str(model_dir)!r}",
        *[f"--gin.{binding}" for binding in bindings],
    ]


def configured(model_dir, *bindings, files=FILES):
    """The `Run` of a smoke run."""
    return command_line.configured_run("test", None, flags(model_dir, *bindings, files=files))[0]


def command(module, *arguments, **kwargs):
    """Runs `python -m module ...` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True, text=True, check=False, timeout=540, **kwargs,
    )  # fmt: skip


def start(model_dir, *bindings, program=("-m", "clp_jax.train"), said=subprocess.DEVNULL):
    """A smoke run under way in a process of its own; `said` is where its lines go."""
    return subprocess.Popen(
        [sys.executable, *program, *flags(model_dir, *bindings)],
        stdout=subprocess.DEVNULL, stderr=said,
    )  # fmt: skip


def without_timing(rows):
    """Rows of metrics.jsonl without what differs from one run to the next."""
    return [{k: v for k, v in row.items() if not k.startswith("timing/")} for row in rows]


def lines(path):
    """The rows of a JSONL file."""
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
