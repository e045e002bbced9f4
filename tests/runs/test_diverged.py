"""NaN and infinity: refused where parameters are read, and the end of a run where they arise."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke

from clp_jax import generate, sft, train
from clp_jax.models import checkpoints
from clp_jax.models.t5 import T5Config
from clp_jax.reporting import metrics_log
from clp_jax.reporting.errors import Diverged
from clp_jax.reporting.metrics_log import MetricsLog, Progress
from clp_jax.runs import loop, restoring, states
from clp_jax.runs.run_checkpoints import RunCheckpoints
from clp_jax.settings import command_line

LEAF = "decoder/layers_0/mlp/wo/kernel"


def with_nan(tree, path=LEAF, value=np.nan):
    """The tree with one wrong number in the leaf whose path ends so."""

    def change(where, x):
        wrong = jax.tree_util.keystr(where, simple=True, separator="/").endswith(path)
        return x.at[(0,) * x.ndim].set(value) if wrong else x

    return jax.tree_util.tree_map_with_path(change, tree)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_an_initial_checkpoint_with_a_wrong_number(tmp_path, capsys, value):
    run = smoke.configured(tmp_path / "run")
    checkpoints.save_params(tmp_path / "initial", with_nan(states.init_params(run), value=value))
    flags = smoke.flags(tmp_path / "run", f"INITIAL_CHECKPOINT_PATH='{tmp_path / 'initial'}'")
    with pytest.raises(SystemExit) as ended:
        train.main([*flags, "--gin.SFT_STEPS=0"])
    assert ended.value.code == 2
    message = f"{tmp_path / 'initial'} has values that are NaN or infinite in {LEAF}: "
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run/reference").exists()


def strict(path):
    """The rows of a file of JSON lines; NaN is none."""

    def refuse(constant):
        raise ValueError(constant)

    lines = pathlib.Path(path).read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_a_run_that_diverges_ends_at_the_first_wrong_step(tmp_path, capsys):
    model_dir = tmp_path / "run"
    smoke_flags = smoke.flags(model_dir, "TRAIN_STEPS=2", "SAVE_PERIOD=1")
    train.main(smoke_flags)
    capsys.readouterr()
    # What the run goes on from: good parameters, and an optimizer that makes them infinite.
    run = command_line.saved_run(str(model_dir))
    with pytest.raises(SystemExit) as ended:
        train.main(
            smoke.flags(tmp_path / "bad", "SAVE_PERIOD=1", "KEEP_CHECKPOINTS=None",
                        "POLICY_LEARNING_RATE=1e38", f"INITIAL_CHECKPOINT_PATH='{model_dir}'",
                        "SFT_STEPS=0", "STATS_PERIOD=1")
        )  # fmt: skip
    assert ended.value.code == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if "clp_jax.train: error: " in line]
    step = int(line.split("error: step ")[1].split(":")[0])
    assert 1 <= step < 6
    assert " is nan" in line or " is inf" in line
    # Not a step at or behind it was saved, and what was saved is good.
    saved = sorted(int(path.name) for path in (tmp_path / "bad/checkpoints").glob("[0-9]*"))
    assert all(done < step for done in saved)
    rows = strict(tmp_path / "bad/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, step))
    assert run.total_steps == 2


def test_supervised_finetuning_that_diverges(tmp_path, capsys):
    flags = smoke.flags(tmp_path, "optimizers.adam_with_cosine_decay.learning_rate=1e38")
    with pytest.raises(SystemExit) as ended:
        sft.main([*flags, "--gin.SAVE_PERIOD=1"])
    assert ended.value.code == 2
    assert "clp_jax.sft: error: step " in capsys.readouterr().err
    assert not (tmp_path / "reference").exists()


class Steps:
    def samples(self):
        return ()


@pytest.mark.parametrize("name", ["loss/policy", "objective/kl", "gradient/value_norm"])
def test_any_metric_that_is_not_finite_is_named_with_its_step(tmp_path, name):
    log = MetricsLog(tmp_path)
    reports = loop.Reports(Steps(), Progress("x", 0, 9), log, None)
    reports.add(1, {name: jnp.float32(1), "accuracy": 0.5})
    reports.add(2, {name: jnp.float32(jnp.nan), "accuracy": 0.5})
    with pytest.raises(Diverged, match=rf"^step 2: {name} is nan\. The checkpoints before it stay"):
        reports.add(3, {name: jnp.float32(1), "accuracy": 0.5})
    reports.add(4, {name: jnp.float32(jnp.inf), "accuracy": 0.5})
    with pytest.raises(Diverged, match=f"^step 4: {name} is inf"):
        reports.write(4)
    log.close()


def test_what_a_reward_says_of_itself_may_be_anything_and_the_log_is_json(tmp_path):
    log = metrics_log.opened(tmp_path)
    reports = loop.Reports(Steps(), Progress("x", 0, 9), log, None)
    reports.add(1, {"rewards_own/mine/share": float("nan"), "loss/policy": 0.5})
    reports.write(1)
    log.close()
    (row,) = strict(tmp_path / "metrics.jsonl")
    assert row["rewards_own/mine/share"] is None
    assert row["loss/policy"] == 0.5


def test_a_state_with_a_wrong_number_is_not_steered(tmp_path, capsys):
    train.main(smoke.flags(tmp_path, "TRAIN_STEPS=1", "SFT_STEPS=0", "INIT_FROM_SCRATCH=True"))
    run = command_line.saved_run(str(tmp_path))
    state, _ = restoring.restore(run)
    saved = RunCheckpoints(tmp_path / "checkpoints", run.checkpoint_cfg.save)
    bad = state.replace(step=jnp.int32(2), params=with_nan(state.params, "query/kernel"))
    saved.save(2, bad, _Nowhere())
    saved.close()
    (tmp_path / "a.jsonl").write_text('{"document": "A goose sings."}\n')
    with pytest.raises(SystemExit) as ended:
        generate.main([f"--model_dir={tmp_path}", "--reward_weights=1,0",
                       f"--input={tmp_path / 'a.jsonl'}"])  # fmt: skip
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "checkpoints/2 has values that are NaN or infinite in conditioned/decoder/" in error


class _Nowhere:
    def position(self):
        return {"examples": np.array([0])}


def test_activations_that_overflow_are_refused():
    with pytest.raises(ValueError, match="unknown dtype 'float16' .*nearest: bfloat16, float32"):
        T5Config(vocab_size=8, dtype="float16")
