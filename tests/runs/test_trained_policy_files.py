"""A trained policy as a Python object: its scores, its front and its exports."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import smoke
from trained_runs import DOCUMENTS, SUMMARIES, WEIGHTS, made, raises

import clp_jax
from clp_jax import evaluate, export
from clp_jax.algorithm.weighting import Weighting
from clp_jax.models import checkpoints
from clp_jax.rewards import rouge, scoring
from clp_jax.runs import states


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An evaluated run; evaluated at its last step."""
    folder = tmp_path_factory.mktemp("api") / "run"
    run = made(folder)
    evaluate.main([f"--model_dir={folder}"])
    (folder / "evaluation" / "7-custom").mkdir()
    return run


@pytest.fixture(scope="module")
def policy(run):
    return clp_jax.load(run.model_dir)


def test_scores_are_those_of_the_command(run, policy, monkeypatch):
    references = SUMMARIES[1:] + SUMMARIES[:1]
    stack = scoring.of_text(run.model.rewards)
    records = [
        {"document": d, "summary": s, "reference": r}
        for d, s, r in zip(DOCUMENTS, SUMMARIES, references, strict=True)
    ]
    rows = list(scoring.score(stack, records, "reference"))
    stack.close()

    def no_pool(*arguments, **options):
        raise AssertionError("a script without a main guard would run once more in the pool")

    monkeypatch.setattr(rouge, "ProcessPoolExecutor", no_pool)
    scores = policy.score(DOCUMENTS, SUMMARIES, references)
    assert list(scores.raw) == list(scores.normalised) == ["entailment", "rouge"]
    for name in policy.reward_names:
        for got, key in ((scores.raw, "rewards_raw"), (scores.normalised, "rewards")):
            expected = [row[key][name] for row in rows]
            assert np.ptp(expected) > 0 or name == "entailment"
            np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-6)
    assert policy._rewards is policy._rewards


def test_a_reward_without_its_references_is_nan(policy):
    whole = policy.score(DOCUMENTS, SUMMARIES, SUMMARIES)
    with pytest.warns(UserWarning, match="NaN") as warned:
        scores = policy.score(DOCUMENTS, SUMMARIES)
    (message,) = {str(warning.message) for warning in warned}
    assert message == "scores are NaN: rouge needs references"
    assert warned[0].filename == __file__
    for got, expected in zip(scores, whole, strict=True):
        np.testing.assert_array_equal(got["rouge"], np.full(5, np.nan, np.float32))
        np.testing.assert_array_equal(got["entailment"], expected["entailment"])
    assert not np.isnan(whole.raw["rouge"]).any()
    assert scores.raw["rouge"] is not scores.normalised["rouge"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((DOCUMENTS, SUMMARIES[0]), ["summaries is one text"]),
        ((DOCUMENTS[0], SUMMARIES), ["documents is one text"]),
        ((DOCUMENTS, SUMMARIES, SUMMARIES[0]), ["references is one text"]),
        ((DOCUMENTS[:3], SUMMARIES), ["documents has 3 values for 5 summaries"]),
        ((DOCUMENTS, SUMMARIES, SUMMARIES[:2]), ["references has 2 values for 5 summaries"]),
    ],
)
def test_wrong_texts(policy, arguments, parts):
    with raises(*parts):
        policy.score(*arguments)


def by_author(prompts, completions, author):
    return [len(name) for name in author]


def test_mixtures_and_columns_of_ones_own(tmp_path):
    run = made(
        tmp_path, "REWARDS=('both', 'test_trained_policy_files.by_author')",
        "REWARD_MIXTURES={'both': {'entailment': 0.25, 'rouge': 0.75}}", steps=(3,),
    )  # fmt: skip
    policy = clp_jax.load(tmp_path)
    with pytest.warns(UserWarning, match="NaN: both needs references; by_author needs author$"):
        scores = policy.score(DOCUMENTS, SUMMARIES)
    assert np.isnan([*scores.raw.values(), *scores.normalised.values()]).all()
    authors = ["Ann", "Al", "A", "Anna", "Bo"]
    with pytest.warns(UserWarning, match="NaN: both needs references$"):
        scores = policy.score(DOCUMENTS, SUMMARIES, author=authors)
    np.testing.assert_array_equal(scores.raw["by_author"], [3, 2, 1, 4, 2])
    scores = policy.score(DOCUMENTS, SUMMARIES, SUMMARIES, author=authors)
    stack = scoring.of_text(run.model.rewards)
    expected = stack(
        DOCUMENTS, SUMMARIES, {"document": DOCUMENTS, "summary": SUMMARIES, "author": authors}
    )
    stack.close()
    for got, columns in zip(scores, expected, strict=True):
        np.testing.assert_allclose(got["both"], columns[:, 0], rtol=1e-6)
        np.testing.assert_allclose(got["by_author"], columns[:, 1], rtol=1e-6)


def test_the_front_is_what_was_evaluated(run, policy):
    front = policy.front()
    file = pathlib.Path(run.model_dir, "evaluation/7/values.json")
    values = json.loads(file.read_text())
    names = policy.reward_names
    for key, column in (("reward_weights", "w {}"), ("values", "V {}"), ("raw", "{} (raw)")):
        got = [[row[column.format(name)] for name in names] for row in front.rows]
        np.testing.assert_allclose(got, values[key])
    table = str(front).splitlines()
    assert table[0].startswith("| w entailment | w rouge | α |")
    assert len(table) == 2 + len(values["values"])
    assert front._repr_markdown_() == repr(front) == str(front)


def test_the_front_is_drawn_where_one_says(policy):
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure

    front, axes = policy.front(), Figure().subplots()
    assert front.plot(axes) is axes
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xydata(), front.result.values)
    new = front.plot()
    assert new.figure is plt.gcf()
    np.testing.assert_allclose(new.lines[0].get_xydata(), front.result.values)
    plt.close(new.figure)


BACKEND = """
import sys, matplotlib
matplotlib.use("svg")
from clp_jax.evaluation import plots
assert matplotlib.get_backend() == "svg"
assert "matplotlib.pyplot" not in sys.modules
"""


def test_drawing_leaves_a_notebooks_choice_of_backend():
    subprocess.run([sys.executable, "-c", BACKEND], cwd=smoke.ROOT, check=True)


def test_what_was_not_evaluated_has_no_front(run):
    command = f"python -m clp_jax.evaluate --model_dir={run.model_dir}"
    with raises("evaluation/3/", "evaluated steps: 7.", f"{command} --step=3"):
        clp_jax.load(run.model_dir, step=3).front()
    # What was evaluated is the mixture of parameters.
    with raises("evaluation/7-logits/", f"{command} --step=7 --mixing=logits"):
        clp_jax.load(run.model_dir, mixing="logits").front()


def test_what_is_exported_is_what_the_command_writes(run, policy, tmp_path, monkeypatch):
    flags = ["--reward_weights=0.7,0.3", "--kl_weight=0.05", f"--output={tmp_path / 'theirs'}"]
    export.main([f"--model_dir={run.model_dir}", *flags])
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = policy.export("~/ours", WEIGHTS, kl_weight=0.05)
    assert ours == tmp_path / "ours"
    files = {path.name: path.read_bytes() for path in ours.iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    loaded = checkpoints.load_params(ours, states.reference_shapes(run), run.model.module.config)
    mixed = policy._policy(0.0).language_model(Weighting.of(0.05, [0.7, 0.3]))
    jax.tree.map(np.testing.assert_array_equal, loaded, mixed)
    with raises("overwrite"):
        policy.export(ours, WEIGHTS)
    policy.export(ours, (0, 1), overwrite=True)
    assert (ours / "model.safetensors").read_bytes() != files["model.safetensors"]
    t5x = policy.export(tmp_path / "t5x", WEIGHTS, format="t5x", dtype="bfloat16")
    assert t5x == tmp_path / "t5x" / "checkpoint_7"


def test_an_export_is_of_the_step_that_was_loaded(run, policy, tmp_path):
    first = clp_jax.load(run.model_dir, step=3).export(tmp_path / "a", WEIGHTS)
    second = policy.export(tmp_path / "b", WEIGHTS)
    cards = [(path / "README.md").read_text() for path in (first, second)]
    assert ["step 3" in card for card in cards] == [True, False]
    a, b = ((path / "model.safetensors").read_bytes() for path in (first, second))
    assert a != b


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"format": "onnx"}, ["'onnx'", "hf"]),
        ({"dtype": "int8"}, ["'int8'", "bfloat16"]),
        ({"output": "gs://bucket/x"}, ["gs://bucket/x", "directory of this machine"]),
        ({"reward_weights": [1]}, ["entailment, rouge"]),
        ({"reward_weights": [WEIGHTS] * 2}, ["2 values for 1"]),
        ({"kl_weight": 2}, ["[0.01, 1]"]),
    ],
)
def test_wrong_exports(policy, tmp_path, arguments, parts):
    with raises(*parts):
        policy.export(**{"output": tmp_path / "out", "reward_weights": WEIGHTS, **arguments})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("column", ["document", "summary"])
def test_columns_that_have_an_argument(policy, column):
    with raises(f"{column}: give ", "instead"):
        policy.score(DOCUMENTS, SUMMARIES, **{column: SUMMARIES})
