"""A run that is killed twenty times, at random moments, is the run that was left alone."""

import random
import signal
import time

import jax
import numpy as np
import pytest
import smoke
from smoke import lines, without_timing

from clp_jax import train
from clp_jax.runs import restoring
from clp_jax.settings import command_line

KILLS = 20
# A checkpoint every other step, so that most kills fall near or into one; some into an evaluation.
SETTINGS = (
    "SFT_STEPS=20",
    "TRAIN_STEPS=150",
    "STATS_PERIOD=1",
    "SAVE_PERIOD=2",
    "EVAL_PERIOD=10",
    "EVAL_GRID_POINTS=2",
    "POLICY_LEARNING_RATE=0.01",
)


def wait_for(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def steps_done(model_dir):
    logs = [model_dir / "sft/metrics.jsonl", model_dir / "metrics.jsonl"]
    return sum(log.read_text().count("\n") for log in logs if log.exists())


@pytest.mark.very_slow
def test_twenty_kills_change_nothing(tmp_path):
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    train.main(smoke.flags(unbroken, *SETTINGS))
    chance = random.Random(0)
    moments = []
    for number in range(KILLS):
        with (tmp_path / "said").open("a") as said:
            process = smoke.start(killed, *SETTINGS, said=said)
        # The run goes back to its last checkpoint, and may be killed before it comes on again.
        before, further = steps_done(killed), chance.randint(1, 12)
        wait_for(lambda: steps_done(killed) >= before + further, process)  # noqa: B023
        time.sleep(chance.uniform(0, 0.5))
        sent = chance.choice([signal.SIGKILL, signal.SIGTERM])
        process.send_signal(sent)
        status = process.wait(timeout=120)
        assert status == (75 if sent == signal.SIGTERM else -9), number
        moments.append((sent.name, steps_done(killed)))
    assert {name for name, _ in moments} == {"SIGKILL", "SIGTERM"}
    assert moments[-1][1] < 150 + 20
    assert (tmp_path / "said").read_text().count("resuming from step") >= KILLS / 2
    train.main(smoke.flags(killed, *SETTINGS))

    for name in ("metrics.jsonl", "sft/metrics.jsonl"):
        assert without_timing(lines(killed / name)) == without_timing(lines(unbroken / name))
    assert lines(killed / "samples.jsonl") == lines(unbroken / "samples.jsonl")
    states = [restoring.restore(command_line.saved_run(str(p)))[0] for p in (unbroken, killed)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    for step in range(10, 151, 10):
        values = [(p / f"evaluation/{step}/values.json").read_text() for p in (unbroken, killed)]
        assert values[0] == values[1]
