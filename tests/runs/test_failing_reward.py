"""A reward that fails stops the run, which then goes on as if nothing had happened."""

import json
import os
import re

import jax
import numpy as np
import pytest
import smoke
from smoke import lines

from clp_jax import train
from clp_jax.reporting.errors import RewardError
from clp_jax.reporting.metrics_log import MetricsLog
from clp_jax.runs import loop, restoring

# ---- The loop with a step that only counts -------------------------------------------------------


class Numbers:
    """Batches 0, 1, 2, ... as a data set whose position can be saved."""

    def __init__(self):
        self.next = 0

    def __next__(self):
        self.next += 1
        return self.next - 1

    def position(self):
        return {"next": np.array(self.next)}

    def restore(self, position):
        self.next = int(position["next"])


class Checkpoints(dict):
    """{step: (state, data position)}."""

    def save(self, step, state, batches):
        assert step not in self
        self[step] = (state, batches.position())


class Adds:
    """The state is the list of batches that it saw; fails once, at step `fails_at`."""

    def __init__(self, fails_at=None):
        self.fails_at = fails_at

    def __call__(self, state, batch, step):
        if step + 1 == self.fails_at:
            self.fails_at = None
            try:
                raise KeyError("mine")
            except KeyError as error:
                raise RewardError("reward 'judge' raised") from error
        return [*state, batch], {"batch": np.float32(batch)}

    def samples(self):
        return ()


def run_loop(folder, checkpoints, step_fn, watch=None):
    """From the last checkpoint to step 7; saves at 3, 6 and 7 and reports at 2, 3, 4, 6 and 7."""
    batches, first = Numbers(), max(checkpoints, default=0)
    state = []
    if first:
        state, position = checkpoints[first]
        batches.restore(position)
    log = MetricsLog(folder, first)
    try:
        return loop.train(
            step_fn, state, batches, what="test", first_step=first, total_steps=7, stats_period=2,
            save_period=3, log=log, checkpoints=checkpoints, watch=watch,
        )  # fmt: skip
    finally:
        log.close()


@pytest.mark.parametrize(
    ("fails_at", "saved"),
    [(1, []), (2, [1]), (3, [2]), (4, [3]), (5, [3, 4]), (6, [3, 5]), (7, [3, 6])],
)
def test_all_steps_before_the_failing_one_are_saved(tmp_path, fails_at, saved):
    checkpoints = Checkpoints()
    with pytest.raises(RewardError, match=f"(?s)reward 'judge'.*step {fails_at} failed") as raised:
        run_loop(tmp_path, checkpoints, Adds(fails_at))
    assert isinstance(raised.value.__cause__, KeyError)  # the user's own error, for the traceback
    assert list(checkpoints) == saved
    if fails_at > 1:
        assert f"the checkpoint of step {fails_at - 1} was saved" in str(raised.value)
        state, position = checkpoints[fails_at - 1]
        assert state == list(range(fails_at - 1))
        assert position["next"] == fails_at - 1
    else:
        assert "nothing was saved" in str(raised.value)
    assert run_loop(tmp_path, checkpoints, Adds()) == list(range(7))
    reported = [row["step"] for row in lines(tmp_path / "metrics.jsonl")]
    assert reported == sorted({2, 3, 4, 6, 7} | ({fails_at - 1} if fails_at > 1 else set()))


def test_no_step_is_left_out_of_the_reports(tmp_path):
    seen = []
    checkpoints = Checkpoints()
    for fails_at in (2, 6):
        with pytest.raises(RewardError):
            run_loop(tmp_path, checkpoints, Adds(fails_at), lambda *report: seen.append(report))
    run_loop(tmp_path, checkpoints, Adds(), lambda *report: seen.append(report))
    # Steps 1 and 2, 3, 4, 5 and 6, and 7 saw the batches 0 ... 6.
    means = {1: 0.0, 2: 1.0, 3: 2.0, 4: 3.0, 5: 4.0, 6: 5.0, 7: 6.0}
    assert seen == [(step, {"batch": mean}) for step, mean in means.items()]
    logged = lines(tmp_path / "metrics.jsonl")
    assert {row["step"]: row["batch"] for row in logged} == means


def test_the_step_of_a_failing_evaluation_is_saved(tmp_path):
    def evaluate(state, done):
        raise RewardError("reward 'judge' raised")

    checkpoints, batches, log = Checkpoints(), Numbers(), MetricsLog(tmp_path)
    with pytest.raises(RewardError, match="judge.*\n.*evaluation of step 2 failed"):
        loop.train(
            Adds(), [], batches, what="test", first_step=0, total_steps=7, stats_period=2,
            save_period=3, log=log, checkpoints=checkpoints, evaluate=evaluate, eval_period=2,
        )  # fmt: skip
    log.close()
    assert checkpoints == {2: ([0, 1], {"next": 2})}


def test_failing_again_at_the_step_of_the_checkpoint_saves_nothing_more(tmp_path):
    checkpoints = Checkpoints()
    for _ in range(2):
        with pytest.raises(RewardError, match="the checkpoint of step 4 was saved"):
            run_loop(tmp_path, checkpoints, Adds(5))
    assert list(checkpoints) == [3, 4]


# ---- A run ---------------------------------------------------------------------------------------

_calls = 0


def fails_at_a_call(prompts, completions):
    """The completions' lengths; raises at the call that the environment variable counts."""
    global _calls
    _calls += 1
    if _calls == int(os.environ.get("FAIL_AT_CALL", "0")):
        raise TimeoutError("the judge does not answer")
    return [float(len(completion)) for completion in completions]


fails_at_a_call.range = (0, 100)


@pytest.mark.slow
def test_a_run_whose_reward_fails_goes_on_bit_for_bit(tmp_path, capfd, monkeypatch):
    global _calls
    bindings = (
        "REWARDS=('entailment', 'test_failing_reward.fails_at_a_call')", "SFT_STEPS=0",
        "INIT_FROM_SCRATCH=True", "EVAL_EXAMPLES=2", "EVAL_GRID_POINTS=2", "KL_WARNING=1e-9",
    )  # fmt: skip
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train.main(smoke.flags(unbroken, *bindings))
    assert "warning: step " in capfd.readouterr().err  # KL_WARNING reaches the loop
    # Two calls of a command check the reward on the references of either split.
    _calls = 0
    monkeypatch.setenv("FAIL_AT_CALL", str(2 + 6))
    with pytest.raises(SystemExit) as stopped:
        train.main(smoke.flags(broken, *bindings))
    assert stopped.value.code == 2
    error = capfd.readouterr().err
    message = (
        r"reward 'fails_at_a_call' raised TimeoutError: the judge does not answer\s+"
        r"step 6 failed; the checkpoint of step 5 was saved"
    )
    assert re.search(message, error)
    assert 'raise TimeoutError("the judge' in error  # where in the user's code
    # Goes on from there, and fails in the evaluation after step 6: two checks, a step, a weighting.
    _calls = 0
    monkeypatch.setenv("FAIL_AT_CALL", str(2 + 1 + 2))
    with pytest.raises(SystemExit):
        train.main(smoke.flags(broken, *bindings))
    error = capfd.readouterr().err
    assert "resuming from step 5" in error
    assert "the evaluation of step 6 failed; the checkpoint of that step was saved" in error
    assert not (broken / "evaluation/6/values.json").exists()
    monkeypatch.delenv("FAIL_AT_CALL")
    train.main(smoke.flags(broken, *bindings))
    assert "resuming from step 6" in capfd.readouterr().err

    states = [
        restoring.restore(smoke.configured(path, *bindings), 6) for path in (unbroken, broken)
    ]
    leaves = [jax.tree.leaves(state) for state in states]
    assert len(leaves[0]) > 50
    for a, b in zip(*leaves, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    values = [
        json.loads((path / "evaluation/6/values.json").read_text()) for path in (unbroken, broken)
    ]
    assert values[0] == values[1]
    steps = [row["step"] for row in lines(broken / "metrics.jsonl")]
    assert steps == [2, 3, 4, 5, 6, 6]
