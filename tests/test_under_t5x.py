"""The real, unmodified t5x trains, evaluates and generates with this project's gin files.

Skipped where t5x is not installed; README.md says how it is.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import pytest
import smoke
from smoke import lines

from clp_jax import gin_config, train, training
from clp_jax.models import checkpoints

pytestmark = pytest.mark.skipif(
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
    return [
        {name: value for name, value in row.items() if not name.startswith("timing/")}
        for row in lines(model_dir / "metrics.jsonl")
    ]


def state_of(model_dir, *bindings, step=6):
    return training.restore(smoke.configured(model_dir, *STEPS, *bindings), step)


def assert_same_bits(a, b):
    leaves = [jax.tree.leaves(tree) for tree in (a, b)]
    assert len(leaves[0]) > 20
    for x, y in zip(*leaves, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


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


def resolved(text):
    """What describes a run: label -> text."""
    block = text[text.index("model  ") : text.index("MODEL_DIR  ")]
    parts = re.split(r"^(\S+(?: \S+)*) {2,}", block, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["SUBSET=@subset.full()"], {"subset S", "policy", "state"}),
        (["SUBSET=@subset.matching()", "subset.matching.regex='logits'"],
         {"subset S", "policy", "state"}),
        (["REWARD_WEIGHTS_SAMPLER=@weighting.FixedRewardWeights()",
          "weighting.FixedRewardWeights.reward_weights=(0.5, 0.5)"], {"w"}),
        (["KL_WEIGHT_SAMPLER=@weighting.InverseCDFKLWeight()"], {"α"}),
        (["KL_MIX=@weighting.LinearKLMix()"], {"α"}),
        (["REWARDS=('rouge', 'quality')"], {"rewards"}),
        (["CONDITION_PROMPT=True"], {"weightings"}),
    ],
)  # fmt: skip
def test_an_override_changes_what_it_says_and_nothing_else(
    tmp_path, ours, reference, capsys, overrides, changed
):
    # A run of no steps: it is resolved, and its MODEL_DIR claimed.
    output = train_under_t5x(tmp_path, reference, *overrides, "train.total_steps=0")
    names = {override.partition("=")[0] for override in overrides}
    configs = [(path / "config.gin").read_text() for path in (ours, tmp_path)]
    differences = gin_config.config_differences(*configs)
    assert {difference.partition(":")[0] for difference in differences} == (
        names | {"train_script.train.total_steps"}
    )
    train.main([*smoke.flags(tmp_path, *STEPS, reference), "--dry_run"])
    before, after = resolved(capsys.readouterr().err), resolved(output)
    assert {label for label in before if before[label] != after[label]} == changed


def test_infer_gives_the_completions_of_generate(tmp_path, theirs):
    from clp_jax import generate

    completions = {}
    for weights in ("1,0", "0,1"):
        output = tmp_path / weights
        arguments = [
            f"--gin_file={theirs}/config.gin", "--gin_file=gin/t5x_infer.gin",
            f"--gin.REWARD_WEIGHTS=({weights})", f"--gin.INFER_OUTPUT_DIR='{output}'",
        ]  # fmt: skip
        run_t5x("infer", arguments)
        (file,) = output.glob("*.jsonl-00000-of-00001")
        rows = lines(file)
        completions[weights] = [row["prediction"] for row in rows]
        documents = tmp_path / "documents.jsonl"
        run = smoke.configured(theirs, *STEPS)
        from clp_jax.data import tasks

        columns = tasks.columns(run.infer_eval_dataset_cfg.mixture_or_task_name, "validation")
        documents.write_text(
            "".join(json.dumps({"document": r["document"]}) + "\n" for r in columns)
        )
        expected = tmp_path / "expected.jsonl"
        generate.main([
            f"--model_dir={theirs}", f"--reward_weights={weights}", f"--input={documents}",
            f"--output={expected}",
        ])  # fmt: skip
        assert completions[weights] == [row["completion"] for row in lines(expected)]
        assert len(completions[weights]) == 20
    assert completions["1,0"] != completions["0,1"]


def test_eval_gives_the_rewards_of_evaluate(tmp_path, theirs):
    output = run_t5x(
        "eval",
        [
            f"--gin_file={theirs}/config.gin", "--gin_file=gin/t5x_eval.gin",
            "--gin.REWARD_WEIGHTS=(1, 0)", f"--gin.EVAL_OUTPUT_DIR='{tmp_path}'",
            "--gin.EVAL_TEMPERATURE=0.0",
        ],
    )  # fmt: skip
    (values,) = tmp_path.rglob("values.json")
    assert list(values.parent.glob("events*")), output
    found = json.loads(values.read_text())
    assert found["reward_weights"] == [[1.0, 0.0]]
    run = smoke.configured(theirs, *STEPS)
    policy, _ = training.restore_policy(run, temperature=0.0)
    from clp_jax.evaluation import sweep

    expected = sweep.sweep(policy, run, [(0.01, np.array([1.0, 0.0]))], None, "")
    assert found["normalised"] == pytest.approx(expected.prompt_normalised.mean(1), abs=1e-6)
    assert found["kl"] == pytest.approx(expected.prompt_kl.mean(1), abs=1e-4)


@pytest.mark.parametrize(
    "binding",
    ["SUBSET=@subset.matching()", "WEIGHTINGS_PER_BATCH=3", "REWARDS=('rouge', 'rogue')",
     "TRAIN_STEPS=0", "TRIAN_STEPS=7", "KL_WEIGHT_MIN=2.0"],
)  # fmt: skip
def test_a_wrong_setting_fails_with_our_message(tmp_path, reference, binding, capsys):
    extra = ["subset.matching.regex='no such parameter'"] if "SUBSET" in binding else []
    flags = smoke.flags(tmp_path, *STEPS, reference, binding, *extra)
    with pytest.raises(SystemExit):
        train.main(flags)
    (message, *_) = re.findall(r"error: (.*)", capsys.readouterr().err)
    output = run_t5x("train", flags, returncode=1)
    assert message.partition(": ")[2] in output or message in output
    assert not (tmp_path / "reference").exists()


def test_t5xs_own_network_is_a_policy(tmp_path, ours, reference):
    """Its parameters are those of ours, and so are its logits up to rounding."""
    flags = [
        *smoke.flags(tmp_path, *STEPS, reference)[:3],
        f"--gin_file={tmp_path}/network.gin",
        *smoke.flags(tmp_path, *STEPS, reference)[3:],
    ]
    (tmp_path / "network.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from t5x.examples.t5 import network\n"
        "MODULE = @network.Transformer()\n"
        "network.Transformer.config = @network.T5Config()\n"
        "network.T5Config:\n"
        "  vocab_size = 256\n  emb_dim = 16\n  num_heads = 2\n  num_encoder_layers = 1\n"
        "  num_decoder_layers = 1\n  head_dim = 8\n  mlp_dim = 32\n"
        "  mlp_activations = ('gelu', 'linear')\n  dropout_rate = 0.0\n  dtype = 'float32'\n"
    )
    run_t5x("train", flags)
    first, expected = metrics(tmp_path)[0], metrics(ours)[0]
    for name, value in expected.items():
        assert first[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


FAILING = """
def sometimes(prompts, completions, **columns):
    import pathlib
    path = pathlib.Path(__file__).with_name("calls")
    calls = int(path.read_text()) if path.exists() else 0
    path.write_text(str(calls + 1))
    if calls == 5:
        raise OSError("the judge is out for lunch")
    return [0.5 for _ in completions]

sometimes.range = (0, 1)
"""


def test_a_failing_reward_saves_the_steps_before(tmp_path, reference, monkeypatch):
    (tmp_path / "failing.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", f"{os.environ.get('PYTHONPATH', '')}:{tmp_path}")
    bindings = (reference, "REWARDS=('rouge', 'failing.sometimes')", "SAVE_PERIOD=6")
    folder = tmp_path / "run"
    output = train_under_t5x(folder, *bindings, returncode=1)
    assert "the judge is out for lunch" in output
    (saved,) = [path.name for path in (folder / "checkpoints").iterdir()]
    assert f"step {int(saved) + 1} failed" in output
    train_under_t5x(folder, *bindings)
    unbroken = tmp_path / "unbroken"
    train_under_t5x(unbroken, *bindings)
    assert metrics(folder) == metrics(unbroken)


def test_partitions_that_do_not_divide_the_devices(tmp_path, reference):
    flags = smoke.flags(tmp_path, reference, "NUM_PARTITIONS=3")
    output = run_t5x("train", flags, devices=4, returncode=1)
    assert "NUM_PARTITIONS=3 must divide the number of devices, 4; it may be 1, 2, 4" in output


def test_what_t5x_cannot_do_is_refused(tmp_path, reference):
    flags = smoke.flags(tmp_path, reference, files=["gin/rewarded_soup.gin", *smoke.FILES[1:]])
    assert "REWARDED_SOUP=True trains several policies" in run_t5x("train", flags, returncode=1)


def test_every_command_of_the_page_runs(tmp_path):
    text = (smoke.ROOT / "docs/t5x.md").read_text()
    commands = [
        line
        for block in re.findall(r"```bash t5x\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(commands) == 4
    (tmp_path / "gin").symlink_to(smoke.ROOT / "gin")
    for command in commands:
        command = command.replace("python", sys.executable, 1)
        if "t5x.train" in command:
            command += " --gin_file=gin/smoke.gin"
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
    (values,) = (tmp_path / "runs/t5x_evaluated").rglob("values.json")
    assert json.loads(values.read_text())["kl_weights"] == pytest.approx([0.1])


def test_learned_rewards_on_several_devices(tmp_path, reference):
    from test_saved_reward_model import HEADS, random_reward_model

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
