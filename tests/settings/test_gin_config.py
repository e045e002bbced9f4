import sys

import jax.numpy as jnp
import pytest
import smoke

from clp_jax.algorithm import subset, weighting
from clp_jax.reporting.errors import ConfigError
from clp_jax.settings import command_line, gin_config


def test_files_and_overrides_make_a_run(tmp_path):
    run = smoke.configured(
        tmp_path,
        "SUBSET=@subset.attention()",
        "subset.attention.first_layers=1",
        "TRAIN_STEPS=7",
        "REWARDS=('quality', 'entailment', 'rouge')",
        "KL_WEIGHT_SAMPLER=@weighting.InverseCDFKLWeight()",
        "KL_WEIGHT_MIN=0.05",
        "KL_MIX=@weighting.LinearKLMix()",
        "WEIGHTINGS_PER_BATCH=4",
    )
    assert run.model.subset == subset.attention(first_layers=1)
    assert run.total_steps == 7
    assert run.model.rewards.names == ("quality", "entailment", "rouge")
    assert run.model.rewards.ranges["rouge"] == (52, 84)
    mix = weighting.LinearKLMix(0.05)
    assert run.model.kl_mix == mix
    assert run.model.kl_weight_sampler == weighting.InverseCDFKLWeight(mix)
    assert run.model.reward_weights_sampler == weighting.DirichletRewardWeights(1.0, 3)
    assert run.model.weightings_per_batch == 4
    assert run.model.module.config.vocab_size == 256
    assert run.sft.steps == 8


def test_paper_defaults(tmp_path):
    # App. B: batch 32, α = 0.01, Dirichlet(1), 30,000 steps, and attn-CLP's S.
    run = smoke.configured(
        tmp_path,
        "MIXTURE_OR_TASK_NAME='briefs'",
        "VOCABULARY=@tasks.briefs_vocabulary()",
        "TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 64}",
        "REWARDS=('rouge',)",
        files=["gin/clp_attn.gin", str(_importing_tasks(tmp_path))],
    )
    assert (run.total_steps, run.train_dataset_cfg.batch_size) == (30_000, 32)
    assert run.model.kl_weight_sampler == weighting.FixedKLWeight(0.01)
    assert run.model.kl_mix == weighting.SoftmaxKLMix(0.01)
    assert run.model.reward_weights_sampler == weighting.DirichletRewardWeights(1.0, 1)
    assert run.model.rewards.ranges == {"rouge": (19, 29)}
    assert run.model.module.config.emb_dim == 768


def _importing_tasks(tmp_path):
    path = tmp_path / "imports.gin"
    lines = ["from __gin__ import dynamic_registration", "from clp_jax.data import tasks"]
    path.write_text("\n".join([*lines, "tasks.briefs.seed = 0", ""]))
    return path


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("SUBSETT=1", r"unknown gin name 'SUBSETT' \(from --gin.SUBSETT=1\); nearest: SUBSET"),
        ("SUBSET=@subset.atention()", r"has no attribute atention.*nearest: attention"),
        ("SUBSET=@subsets.full()", r"'subsets' was not provided by an import.*nearest: subset"),
        ("subset.attention.layers=1", r"'layers'.*nearest: first_layers"),
        ("REWARDS=('entailmant',)", r"unknown reward 'entailmant'.*nearest: entailment"),
        ("REWARDS=('rouge', 'rouge')", "'rouge' twice"),
        ("REWARDS=('no_such_module.reward',)", "there is no module 'no_such_module'"),
        ("MODEL_DIR=/tmp/x", "is not a gin value .* a string needs quotes"),
        ("TRAIN_STEPS", "has no value"),
        ("TRAIN_STEPS=-1", "total_steps=-1 must be a whole number of at least 1"),
        ("TRAIN_STEPS=True", "total_steps=True must be a whole number"),
        ("SFT_STEPS=2.5", "SFT_STEPS=2.5 must be a whole number of at least 0"),
        ("RANDOM_SEED=None", "random_seed=None must be a whole number"),
        ("RANDOM_SEED=2147483648", r"RANDOM_SEED=2147483648 must be below 2\*\*31"),
        ("SUBSET=@subset.full", r"subset is the class full.*@full\(\) with its parentheses"),
        ("KL_WEIGHT_SAMPLER=@weighting.FixedKLWeight", "kl_weight_sampler is the class"),
        ("MODEL_DIR='gs://bucket/run'", "MODEL_DIR='gs://bucket/run': buckets cannot"),
        ("INITIAL_CHECKPOINT_PATH='s3://b/c'", "INITIAL_CHECKPOINT_PATH='s3://b/c' must be"),
        ("TRAIN_STEPS=%STEPS", "unknown gin name '%STEPS'"),
        ("BATCH_SIZE=0", "batch_size=0"),
        ("WEIGHTINGS_PER_BATCH=3", "WEIGHTINGS_PER_BATCH=3 must divide BATCH_SIZE=8; .*1, 2, 4, 8"),
        ("KL_WEIGHT_MIN=1.5", r"kl_weight_min=1.5 is outside \(0, 1\)"),
        ("weighting.FixedKLWeight.kl_weight=0.001", r"kl_weight=0.001 is outside \[0.01, 1\]"),
        ("weighting.DirichletRewardWeights.concentration=-1", "must be positive"),
        ("TASK_FEATURE_LENGTHS={'inputs': 5}", "must give a length for 'inputs' and for 'targets'"),
        ("REWARD_RANGES={'rouge': (5, 5)}", "'rouge'"),
        ("REWARD_RANGES={'roug': (5, 6)}", "unknown reward 'roug'.*nearest: rouge"),
        ("TEMPERATURE=0.0", "TEMPERATURE=0.0 must be positive"),
        ("POLICY_LEARNING_RATE=0.0", "learning_rate=0.0 must be positive"),
        ("t5.T5Config.vocab_size=100", "vocabulary has 256 pieces, the model's vocab_size=100"),
        ("SAVE_PERIOD=0", "SAVE_PERIOD=0 must be a whole number of at least 1"),
        ("SAVE_PERIOD='5'", "SAVE_PERIOD='5' must be a whole number"),
        ("EVAL_GRID_POINTS=1", "grid_points=1 must be a whole number of at least 2"),
        ("SUBSET=@subset.matching()\n", "subset.matching"),
    ],
)
def test_bad_bindings(tmp_path, binding, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        smoke.configured(tmp_path, binding)


def test_sampler_of_fixed_weights_of_the_wrong_length(tmp_path):
    with pytest.raises(ConfigError, match="has 3 weights, but there are 2 rewards"):
        smoke.configured(
            tmp_path,
            "REWARD_WEIGHTS_SAMPLER=@weighting.FixedRewardWeights()",
            "weighting.FixedRewardWeights.reward_weights=(0.2, 0.3, 0.5)",
        )


def test_unknown_gin_file(tmp_path):
    with pytest.raises(ConfigError, match="unknown gin file 'gin/clp_atn.gin'.*gin/clp_attn.gin"):
        command_line.configured_run("test", None, ["--gin_file=gin/clp_atn.gin"])


def test_no_gin_file():
    with pytest.raises(ConfigError, match="no --gin_file"):
        command_line.configured_run("test", None, [])


def test_what_must_be_set_is_named(tmp_path):
    with pytest.raises(ConfigError, match="MIXTURE_OR_TASK_NAME, MODEL_DIR, .* must be set"):
        command_line.configured_run("test", None, [f"--gin_file={smoke.ROOT}/gin/clp_attn.gin"])


def test_both_spellings_of_an_override(tmp_path):
    flags = [*smoke.flags(tmp_path), "--gin.TRAIN_STEPS", "3"]
    assert command_line.configured_run("test", None, flags)[0].total_steps == 3


def test_errors_name_the_file_and_line(tmp_path):
    path = tmp_path / "mine.gin"
    path.write_text("from __gin__ import dynamic_registration\nfrom clp_jax import subzet\n")
    message = r'(?s)mine.gin", line 2.*nearest: clp_jax.algorithm.subset'
    with pytest.raises(ConfigError, match=message):
        gin_config.load([str(path)])


def test_model_dir_of_another_run(tmp_path):
    command_line.claim_model_dir(smoke.configured(tmp_path).model_dir)
    command_line.claim_model_dir(smoke.configured(tmp_path, "TRAIN_STEPS=99").model_dir)
    run = smoke.configured(tmp_path, "BATCH_SIZE=4", "SUBSET=@subset.full()")
    with pytest.raises(
        ConfigError,
        match=r"(?s)another configuration .*BATCH_SIZE: 8 -> 4.*SUBSET: @subset.attention",
    ):
        command_line.claim_model_dir(run.model_dir)
    # What is there stays as it was.
    assert command_line.saved_run(str(tmp_path)).train_dataset_cfg.batch_size == 8


def test_saved_run_is_the_run(tmp_path):
    run = smoke.configured(tmp_path, "SUBSET=@subset.full()", "REWARDS=('quality', 'rouge')")
    command_line.claim_model_dir(run.model_dir)
    again = command_line.saved_run(str(tmp_path))
    assert again.model.subset == run.model.subset
    assert again.model.rewards.names == ("quality", "rouge")
    assert again.total_steps == run.total_steps


def test_saved_run_follows_its_directory(tmp_path):
    command_line.claim_model_dir(smoke.configured(tmp_path / "a").model_dir)
    (tmp_path / "a").rename(tmp_path / "b")
    assert command_line.saved_run(str(tmp_path / "b")).model_dir == str(tmp_path / "b")


def test_no_run_there(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        command_line.saved_run(str(tmp_path))


@pytest.mark.parametrize(
    "name", sorted(str(path.relative_to(smoke.ROOT)) for path in smoke.ROOT.glob("gin/*.gin"))
)
def test_every_run_file_resolves_on_briefs(tmp_path, name):
    if name in ("gin/jsonl.gin", "gin/xsum.gin"):
        pytest.skip("needs data; see test_tasks.py")
    files = dict.fromkeys([name, *smoke.FILES[1:]])
    assert smoke.configured(
        tmp_path, files=files if "clp" in name or "prompt" in name else smoke.FILES
    )


def test_a_misspelt_macro_in_a_file(tmp_path):
    path = tmp_path / "mine.gin"
    path.write_text("TRAIN_STEP = 3\nMY_OWN_HELPER = 5\n")
    with pytest.raises(ConfigError, match="unknown gin name 'TRAIN_STEP' .*nearest: TRAIN_STEPS"):
        smoke.configured(tmp_path / "run", files=[*smoke.FILES, str(path)])
    path.write_text("MY_OWN_HELPER = 5\n")
    smoke.configured(tmp_path / "run", files=[*smoke.FILES, str(path)])


def test_percent_signs_and_the_word_required_in_values(tmp_path):
    assert smoke.configured("/tmp/100%done/REQUIRED").model_dir == "/tmp/100%done/REQUIRED"


def test_long_values_are_compared_to_their_end(tmp_path):
    lengths = "{'inputs': 48, 'targets': 24}"
    ranges = "{'rouge': (52, 84), 'quality': (0.0, 1.0), 'entailment': (-2.25, 0.0)}"
    bindings = [f"TASK_FEATURE_LENGTHS={lengths}", f"REWARD_RANGES={ranges}"]
    command_line.claim_model_dir(smoke.configured(tmp_path, *bindings).model_dir)
    command_line.claim_model_dir(smoke.configured(tmp_path, *bindings).model_dir)
    bindings[1] = bindings[1].replace("-2.25", "-2.26")
    run = smoke.configured(tmp_path, *bindings)
    with pytest.raises(ConfigError, match="REWARD_RANGES"):
        command_line.claim_model_dir(run.model_dir)


def test_the_main_module_keeps_its_own_train(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "train", "mine", raising=False)
    smoke.configured(tmp_path)
    assert sys.modules["__main__"].train == "mine"


def test_differences_are_named_by_what_differs():
    before = "A = 1\n\n# Parameters for b:\nb.long = \\\n    'x'\n\nb.value = {\n    'y': 1}\n"
    after = before.replace("= 1\n", "= 2\n").replace("'y': 1", "'y': 2") + "\nb.z = 3\n"
    assert gin_config.config_differences(before, after) == [
        "A: 1 -> 2",
        "b.value: { 'y': 1} -> { 'y': 2}",
        "b.z: (unset) -> 3",
    ]


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("NUM_PARTITIONS=2", "NUM_PARTITIONS=2 must divide the number of devices, 1; it may be 1"),
        ("DATA_SHARDS=3", "DATA_SHARDS=3 must divide the batch of 8; it may be 1, 2, 4, 8"),
    ],
)
def test_what_the_devices_cannot_share_is_refused(tmp_path, capsys, binding, message):
    from clp_jax import train

    with pytest.raises(SystemExit):
        train.main([*smoke.flags(tmp_path, binding), "--dry_run"])
    assert message in capsys.readouterr().err


def test_supervised_finetuning_reads_as_many_parts(tmp_path):
    message = "DATA_SHARDS=4 must divide SFT_BATCH_SIZE=6 too; it may be 1, 2\n"
    with pytest.raises(ValueError, match=message):
        smoke.configured(tmp_path, "DATA_SHARDS=4", "SFT_BATCH_SIZE=6")
    smoke.configured(tmp_path, "DATA_SHARDS=4", "SFT_BATCH_SIZE=6", "SFT_STEPS=0")


def test_paper_learning_rates():
    from clp_jax.settings.gin_config import gin

    gin_config.load(["gin/clp_attn.gin"])
    assert gin.query_parameter("%POLICY_LEARNING_RATE") == 3e-5
    assert gin.query_parameter("%VALUE_LEARNING_RATE") == 1e-4


def test_the_home_directory_is_written_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = smoke.configured("~/run", "INITIAL_CHECKPOINT_PATH='~/initial'")
    assert run.model_dir == str(tmp_path / "run")
    assert run.checkpoint_cfg.restore.path == str(tmp_path / "initial")
    parser = command_line.parser("clp_jax.test", None)
    parser.add_argument("--output")
    flags = command_line.parse(parser, ["--output=~/out", "--verbose"])
    assert flags.output == str(tmp_path / "out")


def test_a_file_that_includes_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "briefs.gin").write_text("include 'briefs.gin'\n")
    with pytest.raises(ConfigError, match="--gin_file=briefs.gin includes itself.*'gin/NAME.gin'"):
        gin_config.load(["briefs.gin"])
    (tmp_path / "briefs.gin").write_text("include 'gin/briefs.gin'\nTRAIN_STEPS = 3\n")
    gin_config.load(["clp_attn.gin", "briefs.gin"])
    assert gin_config.configured_run().total_steps == 3


@pytest.mark.parametrize("spelling", ["mine.gin", "gin/mine.gin", "tiny.gin"])
def test_a_file_of_ones_own_wins_in_any_spelling(tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gin").mkdir()
    (tmp_path / "gin" / spelling.removeprefix("gin/")).write_text("OF_MY_OWN = 1\n")
    gin_config.load([spelling])
    assert gin_config.gin.query_parameter("%OF_MY_OWN") == 1


@pytest.mark.parametrize("files", [["gin/briefs.gin"], ["gin/smoke.gin"], ["gin/rewards/nli.gin"]])
def test_without_a_run_file_one_is_named(files):
    flags = [f"--gin_file={file}" for file in files]
    with pytest.raises(ConfigError, match=r"no file for this command among them; .*clp_attn\.gin"):
        command_line.configured_run("test", None, flags)


def wrong_sampler():
    return lambda key: jnp.array([0.9, 0.9])


def test_a_sampler_of_ones_own_is_checked_before_a_run(tmp_path, capsys, monkeypatch):
    from clp_jax import train

    monkeypatch.setitem(sys.modules, "own_samplers", sys.modules[__name__])
    path = tmp_path / "own.gin"
    path.write_text(
        "from __gin__ import dynamic_registration\nimport own_samplers\n"
        "REWARD_WEIGHTS_SAMPLER = @own_samplers.wrong_sampler()\n"
    )
    with pytest.raises(SystemExit) as ended:
        train.main([*smoke.flags(tmp_path / "run", files=[*smoke.FILES, str(path)]), "--dry_run"])
    assert ended.value.code == 2
    assert "a draw of REWARD_WEIGHTS_SAMPLER=0.9,0.9 sums to 1.8" in capsys.readouterr().err
