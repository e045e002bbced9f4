"""The real, unmodified t5x trains as `python -m clp_jax.train` does, and resumes."""

import re

import jax
import numpy as np
import pytest
import smoke
from smoke import lines
from t5x_runs import (  # noqa: F401 - fixtures
    STEPS,
    T5X,
    assert_same_bits,
    metrics,
    ours,
    reference,
    state_of,
    theirs,
    train_under_t5x,
    with_t5x,
)

from clp_jax import train

pytestmark = with_t5x


def test_both_drivers_take_the_same_steps(ours, theirs, reference):
    assert len(metrics(ours)) == 7  # six steps and an evaluation
    assert metrics(ours) == metrics(theirs)
    assert_same_bits(state_of(ours, reference), state_of(theirs, reference))
    assert lines(ours / "samples.jsonl") == lines(theirs / "samples.jsonl")
    values = [(path / "evaluation/6/values.json").read_text() for path in (ours, theirs)]
    assert values[0] == values[1]
    assert (theirs / "config.gin").read_text().replace(str(theirs), str(ours)) == (
        ours / "config.gin"
    ).read_text()


def test_a_killed_run_goes_on_bit_for_bit(tmp_path, theirs, reference):
    script = T5X("train", smoke.flags(tmp_path, *STEPS, reference))
    script.wait_for((tmp_path / "checkpoints/2").exists)
    script.process.kill()
    script.output()
    assert not (tmp_path / "checkpoints/6").exists()
    assert "resuming from step" in train_under_t5x(tmp_path, reference)
    assert metrics(tmp_path) == metrics(theirs)
    assert_same_bits(state_of(tmp_path, reference), state_of(theirs, reference))


def test_sigterm_saves_the_step_under_way(tmp_path, theirs, reference):
    # No checkpoint but the one that the signal makes.
    never = ("SAVE_PERIOD=6",)
    script = T5X("train", smoke.flags(tmp_path, *STEPS, reference, *never))
    path = tmp_path / "metrics.jsonl"
    script.wait_for(lambda: path.exists() and path.read_text())
    script.process.terminate()
    output = script.output()
    assert script.process.returncode == 1
    assert re.search(r"PreemptionError: SIGTERM; step \d is saved", output)
    (saved,) = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert 1 <= int(saved) < 6
    train_under_t5x(tmp_path, reference, *never)
    assert_same_bits(state_of(tmp_path, reference, *never), state_of(theirs, reference))


def test_each_driver_goes_on_where_the_other_stopped(tmp_path, ours, reference):
    first, second = tmp_path / "t5x first", tmp_path / "t5x second"
    train_under_t5x(first, reference, "TRAIN_STEPS=3")
    train.main(smoke.flags(first, *STEPS, reference))
    train.main(smoke.flags(second, *STEPS, reference, "TRAIN_STEPS=3"))
    train_under_t5x(second, reference)
    for folder in (first, second):
        assert_same_bits(state_of(folder, reference), state_of(ours, reference))


@pytest.mark.parametrize(("devices", "num_partitions"), [(2, 1), (2, 2), (4, 2)])
def test_several_devices_equal_one(tmp_path, theirs, reference, devices, num_partitions):
    binding = f"NUM_PARTITIONS={num_partitions}"
    train_under_t5x(tmp_path, reference, binding, devices=devices)
    for one, several in zip(metrics(theirs)[:6], metrics(tmp_path)[:6], strict=True):
        assert one.keys() == several.keys()
        for name, value in one.items():
            # The loss is a mean of terms as large as log π(y), 24 tokens of up to log 256, which
            # cancel.
            size = 24 * np.log(256) if name == "loss/policy" else max(abs(value), 1)
            assert several[name] == pytest.approx(value, abs=1e-5 * size), (name, one["step"])
    leaves = [jax.tree.leaves(state_of(path, reference)[0]) for path in (theirs, tmp_path)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_plain_t5x_checkpoint_is_read_once(tmp_path, theirs, reference):
    from t5x_directories import write_legacy

    params = state_of(theirs, reference)[1]
    checkpoint = tmp_path / "checkpoint_1000"
    write_legacy(checkpoint, params)
    binding = f"INITIAL_CHECKPOINT_PATH={str(checkpoint)!r}"
    folder = tmp_path / "run"
    train_under_t5x(folder, binding, "TRAIN_STEPS=3")
    (checkpoint / "checkpoint").write_text("not a checkpoint any more")
    train_under_t5x(folder, binding)
    assert_same_bits(state_of(folder, binding), state_of(theirs, reference))


def test_learned_rewards_on_several_devices(tmp_path, reference):
    from reward_models import HEADS, random_reward_model

    folders = {kind: random_reward_model(tmp_path / kind, kind)[0] for kind in HEADS}
    bindings = (
        reference,
        f"NLI_MODEL_DIR={str(folders['nli'])!r}",
        f"TLDR_MODEL_DIR={str(folders['preference'])!r}",
        "REWARDS=('nli', 'rouge', 'tldr')",
        "TRAIN_STEPS=2",
    )
    train.main(smoke.flags(tmp_path / "one", *STEPS, *bindings))
    train_under_t5x(tmp_path / "two", *bindings, devices=2)
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for name in ("rewards_raw/nli", "rewards_raw/tldr"):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=1e-5)
    assert "rewards_raw/nli" in metrics(tmp_path / "two")[0]
