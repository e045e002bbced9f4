"""Two processes of two devices each are one of four; one that ends takes the other along."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import smoke
from smoke import lines

from clp_jax.runs import restoring
from clp_jax.settings import command_line

TESTS = pathlib.Path(__file__).parent
SETTINGS = [
    "POLICY_LEARNING_RATE=0.03",
    "TRAIN_STEPS=20",
    "INIT_FROM_SCRATCH=True",
    "SFT_STEPS=0",
    "STATS_PERIOD=1",
    "CONDITION_PROMPT=True",
    "WEIGHTINGS_PER_BATCH=2",
    # Over four devices: each process has half of the batch, and a part of every parameter.
    "NUM_PARTITIONS=2",
    "FULLY_SHARDED=True",
]
LOST_SECONDS = 20
SECONDS_TO_END = 60  # heartbeats and the shutdown's barrier wait for LOST_SECONDS each
PROGRAM = f"""
import sys
from clp_jax import train
from clp_jax.machine import hosts
hosts._LOST_SECONDS = {LOST_SECONDS}
train.main(sys.argv[1:])
"""


def command(model_dir, *settings):
    return [sys.executable, "-c", PROGRAM, *smoke.flags(model_dir, *SETTINGS, *settings)]


class Pair:
    """The two processes of a run, under way."""

    def __init__(self, model_dir, *settings):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.model_dir = model_dir
        self.logs = [model_dir.with_name(f"{i}.log") for i in range(2)]
        self.processes = []
        for i, log in enumerate(self.logs):
            meeting = [f"--coordinator_address={address}", "--process_count=2"]
            program = [*command(model_dir, *settings), *meeting, f"--process_index={i}"]
            environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(TESTS)}
            with log.open("w") as output:
                self.processes.append(
                    subprocess.Popen(program, env=environment, stdout=output, stderr=output)
                )

    def wait_for_step(self, step):
        log = self.model_dir / "metrics.jsonl"
        for _ in range(2400):
            if log.exists() and lines(log) and lines(log)[-1]["step"] >= step:
                return
            assert all(p.poll() is None for p in self.processes), self.said()
            time.sleep(0.1)
        raise AssertionError(self.said())

    def ended(self, seconds=240):
        """The exit statuses, once both have ended."""
        return [p.wait(timeout=seconds) for p in self.processes]

    def said(self):
        return [log.read_text() for log in self.logs]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("one") / "run"
    done = subprocess.run(
        command(model_dir, "DATA_SHARDS=2"),
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return model_dir


def same_run(model_dir, expected):
    """Metrics of every step, the last state and the evaluation are equal up to rounding."""
    names = lambda row: {n for n in row if not n.startswith("timing/")}  # noqa: E731
    rows, expected_rows = lines(model_dir / "metrics.jsonl"), lines(expected / "metrics.jsonl")
    assert len(rows) == len(expected_rows) == 21
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert names(row) == names(expected_row)
        for name in names(row):
            scale = 50 if name == "loss/policy" else 1
            assert row[name] == pytest.approx(expected_row[name], rel=1e-4, abs=1e-5 * scale), name
    last = [
        restoring.restore(command_line.saved_run(str(folder)))[0]
        for folder in (model_dir, expected)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *last)
    values = [
        json.loads((folder / "evaluation/20/values.json").read_text())
        for folder in (model_dir, expected)
    ]
    np.testing.assert_allclose(values[0]["values"], values[1]["values"], atol=1e-4)


@pytest.mark.slow
def test_two_processes_are_one_whatever_ends_them(one_process, tmp_path):
    model_dir = tmp_path / "pair"
    pair = Pair(model_dir)
    pair.wait_for_step(2)
    pair.processes[1].send_signal(signal.SIGTERM)
    # One is told to stop, both save the same step and stop.
    assert pair.ended() == [75, 75], pair.said()
    first, second = pair.said()
    saved = int(re.search(r"step (\d+) is saved", first)[1])
    assert saved <= 12, "too late for the next process to be killed"
    assert f"step {saved} is saved" in second
    assert "rewards" not in second  # only the first reports

    pair = Pair(model_dir)
    pair.wait_for_step(saved + 2)
    pair.processes[1].kill()
    status, _ = pair.ended(SECONDS_TO_END)
    assert status in (75, -signal.SIGABRT)
    # Ours, or JAX's own where its heartbeats are the first to notice.
    messages = ("process 0 of 2 lost another one", "most likely indicates that another task died")
    assert any(message in pair.said()[0] for message in messages)
    assert f"resuming from step {saved}" in pair.said()[0]

    pair = Pair(model_dir)
    assert pair.ended() == [0, 0], pair.said()
    assert "resuming from step" in pair.said()[0]
    same_run(model_dir, one_process)


@pytest.mark.slow
def test_a_reward_that_fails_on_one_process_ends_both(tmp_path):
    pair = Pair(tmp_path / "pair", "REWARDS=('rouge', 'failing_on_one.score')")
    assert pair.ended() == [2, 2], pair.said()
    first, second = pair.said()
    assert "process 1 failed; its log says how" in first
    assert "'score' raised ValueError: no score here" in second
    assert "step 2 failed; the checkpoint of step 1 was saved" in first
