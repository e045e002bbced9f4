"""The command that fits reward models: at smoke scale, resumed, and refusing bad settings."""

import dataclasses
import json
import os
import re

import jax
import numpy as np
import pytest
import smoke
from smoke import lines

from clp_jax import fit_reward
from clp_jax.models import checkpoints
from clp_jax.reward_fitting import fitting
from clp_jax.reward_fitting.fit_config import FitRun, NLIObjective, PreferenceObjective
from clp_jax.rewards import saved
from clp_jax.settings import command_line, gin_config

NLI = ["gin/rewards/nli.gin", "gin/rewards/briefs_nli.gin"]
PREFERENCE = ["gin/rewards/preference.gin", "gin/rewards/briefs_preference.gin"]
SIZES = [
    "FIT_STEPS=6", "FIT_BATCH_SIZE=8", "FIT_EVAL_BATCH_SIZE=8", "FIT_STATS_PERIOD=2",
    "FIT_SAVE_PERIOD=3", "FIT_EVAL_PERIOD=0",
    *(f"reward_model/t5.T5Config.{size}" for size in (
        "emb_dim=16", "num_heads=2", "num_encoder_layers=1", "num_decoder_layers=1", "head_dim=8",
        "mlp_dim=32")),
]  # fmt: skip
NLI_SIZES = ["pairs.briefs_nli.train_size=200", "pairs.briefs_nli.validation_size=20"]
PREFERENCE_SIZES = [
    "pairs.briefs_preferences.train_size=200",
    "pairs.briefs_preferences.validation_size=20",
]


def flags(model_dir, *bindings, files=NLI):
    nli = files[0] == NLI[0]
    directory = "NLI_MODEL_DIR" if nli else "TLDR_MODEL_DIR"
    sizes = SIZES + (NLI_SIZES if nli else PREFERENCE_SIZES)
    return [
        *[f"--gin_file={smoke.ROOT / file}" for file in files],
        f"--gin.{directory}={str(model_dir)!r}",
        *[f"--gin.{binding}" for binding in [*sizes, *bindings]],
    ]


def configured(model_dir, *bindings, files=NLI):
    arguments = flags(model_dir, *bindings, files=files)
    return command_line.configured_run("test", None, arguments, None, lambda: FitRun)[0]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The MODEL_DIR of an NLI model that was fitted by the command."""
    model_dir = tmp_path_factory.mktemp("fitted")
    fit_reward.main(flags(model_dir))
    return model_dir


def test_a_fit_leaves_a_reward_model_a_report_and_logs(fitted):
    report = json.loads((fitted / "held_out.json").read_text())
    assert report["step"] == 6
    assert report["examples"] == 20
    assert report["range"][0] < report["range"][1] <= 0
    assert report["confusion"].keys() == {"entailment", "not_entailment"}
    assert {"premise", "hypothesis", "label", "score"} <= report["samples"][0].keys()
    assert (fitted / "held_out.png").stat().st_size > 1000
    metrics = lines(fitted / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [2, 3, 4, 6, 6]
    assert {"loss/cross_entropy", "accuracy", "gradient_norm"} <= metrics[0].keys()
    assert metrics[-1]["eval/accuracy"] == report["accuracy"]
    assert (fitted / "config.gin").exists()
    kept = json.loads((fitted / "reward_model/reward.json").read_text())
    assert kept["report"]["range"] == report["range"]
    # The samples' scores are those of the reward that a CLP run loads.
    reward = saved.NLI(str(fitted))
    scores, _ = reward.score_texts(
        [row["premise"] for row in report["samples"]],
        [row["hypothesis"] for row in report["samples"]],
    )
    np.testing.assert_allclose(scores, [row["score"] for row in report["samples"]], rtol=1e-4)


def test_a_finished_fit_writes_its_model_again(fitted, capfd):
    before = (fitted / "held_out.json").read_text()
    (fitted / "held_out.json").unlink()
    (fitted / "held_out.png").unlink()
    fit_reward.main(flags(fitted))
    assert (fitted / "held_out.json").read_text() == before
    error = capfd.readouterr().err
    assert "resuming from step 6" in error
    low, high = json.loads(before)["range"]
    assert f"--gin.REWARD_RANGES=\"{{'nli': ({low:g}, {high:g})}}\"" in error


@pytest.mark.slow
def test_a_preference_fit_that_stops_and_goes_on_is_one_that_did_not(tmp_path, capfd):
    # A constant learning rate: that of the briefs files depends on FIT_STEPS.
    constant = ["FIT_OPTIMIZER=@reward_model/optimizers.adafactor()", "FIT_DROPOUT_RATE=0.1"]

    def run(name, steps):
        made = configured(tmp_path / name, *constant, f"FIT_STEPS={steps}", files=PREFERENCE)
        return fitting.fit(made), made

    whole, made = run("whole", 6)
    run("parts", 2)
    resumed, _ = run("parts", 6)
    assert "resuming from step 2" in capfd.readouterr().err
    assert resumed == whole
    shapes = jax.eval_shape(made.init_params)
    one, two = (
        checkpoints.load_params(tmp_path / name / "reward_model/params", shapes)
        for name in ("whole", "parts")
    )
    jax.tree.map(np.testing.assert_array_equal, one, two)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), one, made.init_params())
    assert any(jax.tree.leaves(changed))
    assert saved.kind_of(tmp_path / "whole") == "preference"
    assert {"length_baseline", "longer_is_better", "auc"} <= whole.keys()
    assert (tmp_path / "whole/held_out.json").read_text() == (
        tmp_path / "parts/held_out.json"
    ).read_text()
    # A network that starts from it, and evaluation on a part.
    run_from = dataclasses.replace(
        made, initial_checkpoint_path=str(tmp_path / "whole/reward_model/params"), eval_examples=9
    )
    fitting.check(run_from)
    jax.tree.map(np.testing.assert_array_equal, run_from.init_state()["params"], one)


def test_evaluation_does_not_depend_on_the_batch_size(fitted, tmp_path):
    reports = []
    for size in (3, 20):
        run = dataclasses.replace(configured(fitted), eval_batch_size=size, eval_examples=17)
        reports.append(fitting.fit(dataclasses.replace(run, model_dir=str(fitted))))
    assert reports[0]["examples"] == reports[1]["examples"] == 17
    assert reports[0]["confusion"] == reports[1]["confusion"]
    assert reports[0]["mean"] == pytest.approx(reports[1]["mean"], rel=1e-5)


def test_dry_run_prints_and_writes_nothing(tmp_path, capfd):
    fit_reward.main([*flags(tmp_path / "new"), "--dry_run"])
    error = capfd.readouterr().err
    for text in ("200 examples, 20 held out", "'entailment': 3", "6, checkpoint", "summarize:"):
        assert text in error
    assert not (tmp_path / "new").exists()


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def refused(capfd, arguments):
    """What the command says when it refuses."""
    with pytest.raises(SystemExit) as exit_info:
        fit_reward.main(arguments)
    error = capfd.readouterr().err
    assert exit_info.value.code == 2
    assert "Traceback" not in error
    assert error.count("clp_jax.fit_reward: error: ") == 1
    return error


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "contradictory"}, r"nli.jsonl:2: unknown label 'contradictory'; nearest: con"),
        ({"label": 3}, r"nli.jsonl:2: the label is 3, expected one of"),
        ({"hypothesis": " "}, r"nli.jsonl:2: field 'hypothesis' is blank"),
    ],
)  # fmt: skip
def test_bad_lines_of_nli(tmp_path, capfd, row, message):
    good = {"premise": "The mayor built a boat.", "hypothesis": "A boat.", "label": "neutral"}
    path = jsonl(tmp_path / "nli.jsonl", [good, good | row])
    arguments = flags(tmp_path / "new", "FIT_TASK=@pairs.nli_jsonl()", f"NLI_TRAIN_FILE={path!r}")
    assert re.search(message, refused(capfd, arguments))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"worse": "A boat."}, r"tldr.jsonl:2: 'better' and 'worse' are the same: 'A boat.'"),
        ({"worse": ""}, r"tldr.jsonl:2: field 'worse' is blank"),
        ({"better": "  "}, r"tldr.jsonl:2: field 'better' is blank"),
    ],
)
def test_bad_lines_of_preferences(tmp_path, capfd, row, message):
    good = {"post": "The mayor built a boat.", "better": "A boat.", "worse": "A mayor."}
    path = jsonl(tmp_path / "tldr.jsonl", [good, good | row])
    arguments = flags(
        tmp_path / "new", "FIT_TASK=@pairs.preference_jsonl()", f"TLDR_TRAIN_FILE={path!r}",
        files=PREFERENCE,
    )  # fmt: skip
    assert re.search(message, refused(capfd, arguments))


@pytest.mark.parametrize(
    ("files", "binding", "message"),
    [
        (NLI, "FIT_LABEL_TOKENS={'entailment': '€', 'not_entailment': 4}",
         "label 'entailment': the vocabulary has no token for '€'"),
        (NLI, "FIT_LABEL_TOKENS={'entailment': 3, 'not_entailment': 3}", "they must differ"),
        (NLI, "FIT_LABEL_TOKENS={'entailment': 3, 'not_entailment': 256}",
         "token 256 is not in the model's vocabulary of 256"),
        (NLI, "FIT_LABEL_TOKENS={'yes': 3, 'not_entailment': 4}",
         r"must have a token for each label of the Task, which are entailment, not_entailment"),
        (NLI, "FIT_ENTAILMENT_LABEL='entails'", "unknown label 'entails' .*FIT_ENTAILMENT_LABEL"),
        (NLI, "FIT_TASK='brief'", "unknown task of pairs 'brief'"),
        (NLI, "FIT_STEPS=0", "FIT_STEPS=0 must be a whole number of at least 1"),
        (NLI, "FIT_SAVE_PERIOD=2.5", "FIT_SAVE_PERIOD=2.5 must be"),
        (NLI, "FIT_EVAL_EXAMPLES=0", "FIT_EVAL_EXAMPLES=0 must be"),
        (NLI, "NLI_MODEL_DIR='gs://bucket/nli'", "'gs://bucket/nli'; give a local path"),
        (NLI, "FIT_BATCH_SIZE=201", "200 train examples, fewer than one batch of"),
        (NLI, "FIT_SUMMARY_LENGTH=2", "more than summary_length=2"),
        (NLI, "FIT_MAX_LENGTH=20", "FIT_SUMMARY_LENGTH=24 leaves no room for the document"),
        (NLI, "FIT_INITIAL_CHECKPOINT_PATH='/nowhere'", "no checkpoint at /nowhere"),
        (NLI, "reward_model/t5.T5Config.vocab_size=200", "has 256 pieces, .*vocab_size=200"),
        (NLI, "FIT_STPES=3", "unknown gin name 'FIT_STPES'.*FIT_STEPS"),
        (NLI, "MODEL_DIR='x'", "unknown gin name 'MODEL_DIR'.*NLI_MODEL_DIR"),
        (PREFERENCE, "FIT_CENTRING=-1", "FIT_CENTRING=-1 must be a finite number >= 0"),
        (PREFERENCE, "FIT_SCORE_TOKEN=256", "token 256 is not in the model's vocabulary"),
        (PREFERENCE, "FIT_TASK=@pairs.preference_jsonl()", "tldr.jsonl is not a file"),
        (NLI, "FIT_TASK=@pairs.briefs_preferences();"
         "pairs.briefs_preferences.vocabulary=%FIT_VOCABULARY",
         "FIT_TASK has preferences, not labels: NLI needs @pairs.nli_jsonl"),
        (PREFERENCE, "FIT_TASK=@pairs.briefs_nli();pairs.briefs_nli.vocabulary=%FIT_VOCABULARY",
         "FIT_TASK has labels .entailment, not_entailment., not preferences"),
        (["gin/rewards/tldr.gin"], "TLDR_MODEL_DIR='x'", "gin/rewards/nli.gin"),
    ],
)  # fmt: skip
def test_refuses(tmp_path, capfd, files, binding, message):
    arguments = flags(tmp_path / "new", files=files)
    if files not in (NLI, PREFERENCE):  # not their settings
        arguments = [f"--gin_file={smoke.ROOT / file}" for file in files]
    bindings = [f"--gin.{part}" for part in binding.split(";")]
    assert re.search(message, refused(capfd, [*arguments, *bindings]))
    assert not (tmp_path / "new").exists()


def test_another_fit_in_the_same_place(fitted, capfd):
    error = refused(capfd, flags(fitted, "FIT_LEARNING_RATE=0.5"))
    assert "FIT_LEARNING_RATE: 0.02 -> 0.5" in error


def test_without_gin_files(capfd):
    assert "--gin_file=gin/rewards/nli.gin" in refused(capfd, [])


# ------------------------------------------------------------------------------------------------
# The gin files
# ------------------------------------------------------------------------------------------------


def test_published_sizes_and_objectives(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [
        {"post": f"p {i}", "better": "a", "worse": "b", "premise": f"p {i}", "hypothesis": "h",
         "label": i % 3} for i in range(50)
    ])  # fmt: skip
    vocabulary = str(smoke.ROOT / "clp_jax/data/briefs/briefs.model")
    common = [f"--gin.FIT_VOCABULARY_FILE={vocabulary!r}"]
    tasks = [
        ["--gin.FIT_TASK=@pairs.nli_jsonl()", f"--gin.NLI_TRAIN_FILE={path!r}"],
        [f"--gin.TLDR_TRAIN_FILE={path!r}"],
    ]
    runs = []
    for file, task in zip((NLI[0], PREFERENCE[0]), tasks, strict=True):
        arguments = [f"--gin_file={file}", *common, *task]
        runs.append(command_line.configured_run("test", None, arguments, None, lambda: FitRun)[0])
    for run in runs:
        assert (run.max_length, run.summary_length) == (512, 128)
        assert (run.module.config.emb_dim, run.module.config.num_encoder_layers) == (1024, 24)
    nli, preference = runs
    count = sum(x.size for x in jax.tree.leaves(jax.eval_shape(nli.init_params)))
    assert count == 783_150_080
    assert preference.module == nli.module
    tokens = {"entailment": "1", "neutral": "2", "contradiction": "0"}
    assert nli.objective == NLIObjective(tokens)
    assert preference.objective == PreferenceObjective(token=1, centring=0.01)
    assert (nli.model_dir, preference.model_dir) == ("runs/nli", "runs/tldr")


def test_they_do_not_change_a_clp_run(tmp_path):
    plain = smoke.configured(tmp_path)
    for extra in (["gin/rewards/nli.gin"], ["gin/rewards/preference.gin"], NLI, PREFERENCE):
        with_rewards = smoke.configured(tmp_path, files=[*smoke.FILES, *extra])
        assert comparable(with_rewards) == comparable(plain)
        with_rewards = smoke.configured(tmp_path, files=[smoke.FILES[0], *extra, *smoke.FILES[1:]])
        assert comparable(with_rewards) == comparable(plain)


def comparable(run):
    """What of a `Run` can be compared: optimizers are functions, vocabularies are made anew."""

    def fields(part, *left_out):
        names = {field.name for field in dataclasses.fields(part)} - {*left_out}
        return {name: getattr(part, name) for name in names if not name.endswith("optimizer")}

    made_anew = (run.model.vocabulary.vocab_size, run.model.rewards.describe())
    return (
        fields(run, "model", "sft"),
        fields(run.sft),
        fields(run.model, "vocabulary", "rewards"),
        made_anew,
    )


def test_and_a_clp_run_does_not_change_them(tmp_path):
    alone = configured(tmp_path, files=NLI)
    arguments = [f"--gin_file={smoke.ROOT / file}" for file in smoke.FILES]
    arguments += [f"--gin.MODEL_DIR={str(tmp_path)!r}", "--gin.t5.T5Config.remat_policy='full'"]
    arguments += flags(tmp_path, files=NLI)
    behind = command_line.configured_run("test", None, arguments, None, lambda: FitRun)[0]
    assert behind.module == alone.module
    assert behind.objective == alone.objective
    assert behind.model.template == alone.model.template
    assert behind.total_steps == alone.total_steps


def macros(path):
    return set(re.findall(r"^([A-Z][A-Z_]+) = ", path.read_text(), re.MULTILINE))


def test_every_macro_is_documented_and_none_is_taken():
    files = [smoke.ROOT / name for name in (*NLI, *PREFERENCE, "gin/rewards/fit.gin",
                                            "gin/rewards/tldr.gin")]  # fmt: skip
    documented = (smoke.ROOT / "docs/configuration.md").read_text()
    of_runs = {name for path in smoke.ROOT.glob("gin/*.gin") for name in macros(path)}
    for path in files:
        text = path.read_text()
        assert {name for name in macros(path) if f"`{name}`" not in documented} == set(), path
        assert macros(path) & of_runs <= {"NLI_MODEL_DIR", "TLDR_MODEL_DIR"}, path
        assert "%gin.REQUIRED" not in text
        header = text.split("\n\nfrom __gin__")[0]
        assert header.startswith("# ")
        assert "python -m clp_jax.fit_reward" in header or "python -m clp_jax.train" in header, path


def test_what_may_change_is_what_the_files_have():
    known = {name for path in smoke.ROOT.glob("gin/**/*.gin") for name in macros(path)}
    assert known >= gin_config._MAY_CHANGE


def test_help_helps():
    done = smoke.command("clp_jax.fit_reward", "--help", env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert "python -m clp_jax.fit_reward --gin_file=gin/rewards/nli.gin" in done.stdout
    assert "--dry_run" in done.stdout
