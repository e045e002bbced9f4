"""Runs of the real, unmodified t5x with this project's gin files, for the tests of it."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import pytest
import smoke
from smoke import lines, without_timing

from clp_jax import train
from clp_jax.models import checkpoints
from clp_jax.runs import restoring, training

with_t5x = pytest.mark.skipif(
    importlib.util.find_spec("t5x") is None, reason="t5x is not installed"
)

STEPS = (
    "TRAIN_STEPS=6",
    "SAVE_PERIOD=2",
    "STATS_PERIOD=1",
    "KEEP_CHECKPOINTS=None",
    "POLICY_LEARNING_RATE=0.03",  # for replicas that differ after so few steps
)


class T5X:
    """One of t5x's scripts, on virtual devices."""

    def __init__(self, script, arguments, devices=1):
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe would fill up
        flags = f"--xla_force_host_platform_device_count={devices}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"t5x.{script}", *arguments],
            cwd=smoke.ROOT,
            env={**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"},
            stdout=self._output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def wait_for(self, condition):
        deadline = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def output(self):
        """What it printed until it ended; to be called once."""
        self.process.wait(540)
        with self._output:
            self._output.seek(0)
            return self._output.read()


def run_t5x(script, arguments, devices=1, returncode=0):
    """Runs one of t5x's scripts; returns what it printed."""
    script = T5X(script, arguments, devices)
    output = script.output()
    assert script.process.returncode == returncode, output[-4000:]
    return output


def train_under_t5x(model_dir, *bindings, **kwargs):
    return run_t5x("train", smoke.flags(model_dir, *STEPS, *bindings), **kwargs)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Plain LM parameters that every run starts from."""
    run = smoke.configured(tmp_path_factory.mktemp("sft"))
    path = tmp_path_factory.mktemp("reference") / "params"
    checkpoints.save_params(path, training.load_reference(run))
    return f"INITIAL_CHECKPOINT_PATH={str(path)!r}"


@pytest.fixture(scope="module")
def ours(tmp_path_factory, reference):
    """A run of `python -m clp_jax.train`."""
    folder = tmp_path_factory.mktemp("ours")
    train.main(smoke.flags(folder, *STEPS, reference))
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, reference):
    """The same run of `python -m t5x.train`."""
    folder = tmp_path_factory.mktemp("theirs")
    train_under_t5x(folder, reference)
    return folder


def metrics(model_dir):
    """Every metric of every step, without times."""
    return without_timing(lines(model_dir / "metrics.jsonl"))


def state_of(model_dir, *bindings, step=6):
    return restoring.restore(smoke.configured(model_dir, *STEPS, *bindings), step)


def assert_same_bits(a, b):
    leaves = [jax.tree.leaves(tree) for tree in (a, b)]
    assert len(leaves[0]) > 20
    for x, y in zip(*leaves, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
