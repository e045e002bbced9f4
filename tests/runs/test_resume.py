"""Runs that are killed go on as if they had not been."""

import re
import signal

import jax
import numpy as np
import pytest
import smoke
from smoke import lines, without_timing

from clp_jax import train
from clp_jax.runs import restoring, trainer

# Kills itself in the call of a step, once that many are done; saves are what is under way then.
KILLED = """
import os, signal, sys
from clp_jax import train
from clp_jax.runs import supervised, trainer
kind, last = {kind}, {last}
step = kind.__call__
def killed(self, state, batch, number):
    if number == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, state, batch, number)
kind.__call__ = killed
train.main(sys.argv[1:])
"""
STEPS = ("SFT_STEPS=9", "TRAIN_STEPS=12", "SAVE_PERIOD=4")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("unbroken") / "run"
    train.main(smoke.flags(model_dir, *STEPS))
    return model_dir


def ended_alike(model_dir, unbroken):
    """Logs and the last state are equal bit for bit."""
    for name in ("metrics.jsonl", "sft/metrics.jsonl"):
        assert without_timing(lines(model_dir / name)) == without_timing(lines(unbroken / name))
    assert lines(model_dir / "samples.jsonl") == lines(unbroken / "samples.jsonl")
    runs = [smoke.configured(path, *STEPS) for path in (unbroken, model_dir)]
    leaves = [jax.tree.leaves(restoring.restore(run, 12)) for run in runs]
    assert len(leaves[0]) > 50
    for a, b in zip(*leaves, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_killed_run_goes_on_bit_for_bit(unbroken, tmp_path, capfd):
    model_dir = tmp_path / "run"
    # Once in supervised finetuning, once in training, when the second checkpoint may be half done.
    for kind, last in (("supervised.SupervisedStep", 8), ("trainer.Trainer", 9)):
        program = KILLED.format(kind=kind, last=last)
        process = smoke.start(model_dir, *STEPS, program=("-c", program), said=None)
        assert process.wait(timeout=300) == -signal.SIGKILL
    assert re.search(r"sft: resuming from step [48]\n", capfd.readouterr().err)
    train.main(smoke.flags(model_dir, *STEPS))
    assert re.search(r"resuming from step [48] ", capfd.readouterr().err)
    ended_alike(model_dir, unbroken)


def test_sigterm_ends_a_run_with_its_step_saved(unbroken, tmp_path, monkeypatch, capfd):
    call = trainer.Trainer.__call__

    def interrupted(self, state, batch, step):
        if step == 5:
            signal.raise_signal(signal.SIGTERM)
        return call(self, state, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "__call__", interrupted)
        with pytest.raises(SystemExit) as ended:
            train.main(smoke.flags(tmp_path, *STEPS))
    assert ended.value.code == 75  # what a launcher tries again
    assert "step 6 is saved" in capfd.readouterr().err
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["6"]
    train.main(smoke.flags(tmp_path, *STEPS))
    assert "resuming from step 6" in capfd.readouterr().err
    ended_alike(tmp_path, unbroken)


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
            train.main(smoke.flags(tmp_path, "SFT_STEPS=0", "INIT_FROM_SCRATCH=True"))
    train.main(smoke.flags(tmp_path, "SFT_STEPS=0", "INIT_FROM_SCRATCH=True"))
    assert (tmp_path / "evaluation/6/values.json").exists()
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [2, 3, 4, 6, 6]
