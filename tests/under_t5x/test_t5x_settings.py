"""Under the real t5x: overrides, wrong settings, rewards that fail, t5x's own network."""

import os
import re

import pytest
import smoke
from t5x_runs import (  # noqa: F401 - fixtures
    STEPS,
    metrics,
    ours,
    reference,
    run_t5x,
    theirs,
    train_under_t5x,
    with_t5x,
)

from clp_jax import train
from clp_jax.settings import gin_config

pytestmark = with_t5x


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
