"""Runs that are killed go on as if they had not been."""

import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import smoke
from smoke import lines

from clp_jax import train, training


def without_timing(rows):
    return [{k: v for k, v in row.items() if not k.startswith("timing/")} for row in rows]


# Long enough to be killed in; saves are what takes longest.
STEPS = ("SFT_STEPS=100", "TRAIN_STEPS=40", "SAVE_PERIOD=7")


def start(model_dir):
    return subprocess.Popen(
        [sys.executable, "-m", "clp_jax.train", *smoke.flags(model_dir, *STEPS)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def wait_for(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    train.main(smoke.flags(unbroken, *STEPS))
    # Once in supervised finetuning, once in the middle of training, between two checkpoints.
    process = start(killed)
    wait_for(lambda: list((killed / "sft/checkpoints").glob("[0-9]*")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "reference").exists()
    process = start(killed)

    def past_step_10():
        path = killed / "metrics.jsonl"
        return path.exists() and '{"step": 10,' in path.read_text()

    wait_for(past_step_10, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = lines(killed / "metrics.jsonl")[-1]["step"]
    assert reached < 40
    train.main(smoke.flags(killed, *STEPS))

    for name in ("metrics.jsonl", "sft/metrics.jsonl"):
        assert without_timing(lines(killed / name)) == without_timing(lines(unbroken / name))
    assert lines(killed / "samples.jsonl") == lines(unbroken / "samples.jsonl")
    states = [training.restore(smoke.configured(path, *STEPS), 40) for path in (unbroken, killed)]
    leaves = [jax.tree.leaves(state) for state in states]
    assert len(leaves[0]) > 50
    for a, b in zip(*leaves, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_an_evaluation_that_was_cut_short_is_made_up_for(tmp_path, monkeypatch):
    from clp_jax.evaluation import report

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            train.main(smoke.flags(tmp_path, "SFT_STEPS=1"))
    train.main(smoke.flags(tmp_path, "SFT_STEPS=1"))
    assert (tmp_path / "evaluation/6/values.json").exists()
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [2, 3, 4, 6, 6]
