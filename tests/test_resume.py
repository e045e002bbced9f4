"""Runs that are killed go on as if they had not been."""

import signal
import time

import jax
import numpy as np
import pytest
import smoke
from smoke import lines

from clp_jax import restoring, train


def without_timing(rows):
    return [{k: v for k, v in row.items() if not k.startswith("timing/")} for row in rows]


# Long enough to be killed in; saves are what takes longest.
STEPS = ("SFT_STEPS=100", "TRAIN_STEPS=40", "SAVE_PERIOD=7")


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
    process = smoke.start(killed, *STEPS)
    wait_for(lambda: list((killed / "sft/checkpoints").glob("[0-9]*")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "reference").exists()
    process = smoke.start(killed, *STEPS)

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
    states = [restoring.restore(smoke.configured(path, *STEPS), 40) for path in (unbroken, killed)]
    leaves = [jax.tree.leaves(state) for state in states]
    assert len(leaves[0]) > 50
    for a, b in zip(*leaves, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_sigterm_ends_a_run_with_its_step_saved(tmp_path):
    settings = ("SFT_STEPS=0", "INIT_FROM_SCRATCH=True", "TRAIN_STEPS=40", "SAVE_PERIOD=1000",
                "STATS_PERIOD=1")  # fmt: skip
    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    train.main(smoke.flags(unbroken, *settings))
    process = smoke.start(stopped, *settings)
    wait_for(lambda: (stopped / "metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75  # what a launcher tries again
    saved = lines(stopped / "metrics.jsonl")[-1]["step"]
    assert saved < 40
    assert [p.name for p in (stopped / "checkpoints").iterdir()] == [str(saved)]
    train.main(smoke.flags(stopped, *settings))
    for name in ("metrics.jsonl", "samples.jsonl"):
        rows = [without_timing(lines(path / name)) for path in (stopped, unbroken)]
        assert rows[0] == rows[1]


def test_sigterm_ends_an_evaluation_with_its_weightings_kept(tmp_path, monkeypatch):
    from clp_jax.evaluation import sweep

    settings = ("SFT_STEPS=0", "INIT_FROM_SCRATCH=True", "EVAL_GRID_POINTS=4")
    at, done = sweep._at, []

    def interrupted(*args):
        done.append(args)
        if len(done) == 2:
            signal.raise_signal(signal.SIGTERM)
        return at(*args)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "_at", interrupted)
        with pytest.raises(SystemExit) as ended:
            train.main(smoke.flags(tmp_path, *settings))
        assert ended.value.code == 75
        assert len(list((tmp_path / "evaluation/6/weightings").glob("*.npz"))) == 2
        train.main(smoke.flags(tmp_path, *settings))
    assert len(done) == 4
    assert (tmp_path / "evaluation/6/values.json").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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
