"""`import clp_jax`: what it has, what it costs, and a trained policy as a Python object."""

import ast
import contextlib
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke

import clp_jax
from clp_jax import evaluate, export, generate
from clp_jax.algorithm.weighting import Weighting
from clp_jax.data.batches import Batches
from clp_jax.data.briefs import corpus
from clp_jax.models import checkpoints
from clp_jax.policies.logit_mixing import LogitMixingPolicy
from clp_jax.policies.policy import CLPPolicy
from clp_jax.policies.rewarded_soup import expert_runs
from clp_jax.rewards import rouge, scoring
from clp_jax.runs import generation, states
from clp_jax.runs.run_checkpoints import RunCheckpoints
from clp_jax.settings import command_line

STEPS = (3, 7)
ROWS = corpus.generate("validation", 5)
DOCUMENTS = [row["document"] for row in ROWS]
SUMMARIES = [row["summary"] for row in ROWS]
WEIGHTS = {"entailment": 0.7, "rouge": 0.3}


def moved(tree, seed):
    """Parameters far from each other and from those of any other seed."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def made(folder, *bindings, kind="clp_attn", steps=STEPS):
    """A MODEL_DIR as training leaves it, with replicas that training did not move so far."""
    files = [file.replace("clp_attn", kind) for file in smoke.FILES]
    run = smoke.configured(folder, *bindings, files=files)
    command_line.claim_model_dir(str(folder))
    reference = jax.tree.map(lambda x: 1.5 * x, states.init_params(run))
    checkpoints.save_params(folder / checkpoints.REFERENCE, reference)
    runs = expert_runs(run) if run.model.rewarded_soup else [run]
    for i, one in enumerate(runs):
        saved = RunCheckpoints(pathlib.Path(one.model_dir, "checkpoints"), KEEP_ALL)
        state = states.init_state(one, reference)
        for step in steps:
            params = moved(state.params, 10 * i + step)
            at_step = state.replace(step=jnp.int32(step), params=params)
            saved.save(step, at_step, Batches(one.train_dataset_cfg, repeat=True, seed=0))
        saved.close()
    return run


KEEP_ALL = SimpleNamespace(keep=None)


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


@contextlib.contextmanager
def raises(*parts):
    """A ValueError that says all of `parts`."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        yield
    for part in parts:
        assert part in str(caught.value)


# ------------------------------------------------------------------------------------------------
# The package
# ------------------------------------------------------------------------------------------------

IMPORTED = """
import sys, clp_jax
heavy = ("jax", "numpy", "flax", "tensorflow", "seqio", "gin", "matplotlib")
assert not {m.partition(".")[0] for m in sys.modules}.intersection(heavy)
assert set(clp_jax.__all__) <= set(dir(clp_jax))
try:
    clp_jax.trainstep
except AttributeError as error:
    assert "'clp_jax' has no attribute 'trainstep'" in str(error)
"""


def test_importing_the_package_imports_nothing_else():
    subprocess.run([sys.executable, "-c", IMPORTED], check=True)


def test_each_name_is_what_static_tools_take_it_for():
    tree = ast.parse(pathlib.Path(clp_jax.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))  # if TYPE_CHECKING
    imported = {alias.name: node.module for node in checked.body for alias in node.names}
    assert imported == {name: f"clp_jax.{home}" for name, home in clp_jax._HOMES.items()}
    assert clp_jax.__all__ == sorted(imported)
    for name, module in imported.items():
        assert getattr(clp_jax, name) is getattr(importlib.import_module(module), name)


def test_no_name_is_that_of_a_room_or_a_command():
    taken = {path.stem for path in pathlib.Path(clp_jax.__file__).parent.iterdir()}
    assert not taken.intersection(clp_jax.__all__)


OWN_LOOP = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "seqio", "gin", "clu", "orbax", "matplotlib"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
"""


def test_the_loop_of_the_documentation_runs_anywhere_and_steers(tmp_path):
    page = (smoke.ROOT / "docs/own_loop.md").read_text()
    (code,) = re.findall(r"```python run\n(.*?)```", page, re.DOTALL)
    (tmp_path / "loop.py").write_text(OWN_LOOP + code)
    environment = {**os.environ, "PYTHONPATH": str(smoke.ROOT)}
    done = subprocess.run(
        [sys.executable, "loop.py"], cwd=tmp_path, env=environment, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = [re.findall(r"\d\.\d\d", line) for line in done.stdout.splitlines()]
    w, _, first, second = np.array(printed, float).T
    np.testing.assert_allclose(w, [0, 0.25, 0.5, 0.75, 1])
    for rising in (first, second[::-1]):
        assert (np.diff(rising) > 0).all()
        assert rising[-1] - rising[0] > 0.5


# ------------------------------------------------------------------------------------------------
# Loading
# ------------------------------------------------------------------------------------------------


def test_it_says_what_it_is(run, policy):
    assert policy.reward_names == ("entailment", "rouge")
    assert (policy.kl_weight_min, policy.step, policy.mixing) == (0.01, 7, "parameters")
    said = repr(policy)
    for part in (run.model_dir, "step 7", "entailment, rouge", "[0.01, 1]", "parameters"):
        assert part in said


def test_any_way_to_write_a_path_and_any_step(run, monkeypatch):
    folder = pathlib.Path(run.model_dir)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert clp_jax.load("~/run", step=3).step == 3
    monkeypatch.chdir(folder.parent)
    relative = clp_jax.load(pathlib.Path("run"))
    monkeypatch.chdir("/")
    assert relative.front().rows


def test_wrong_runs_steps_and_mixings(run, tmp_path):
    with raises(str(tmp_path), "no run", "config.gin"):
        clp_jax.load(tmp_path)
    with raises("no checkpoint of step 5", "3, 7"):
        clp_jax.load(run.model_dir, step=5)
    with raises("'logit'", "logits", "parameters"):
        clp_jax.load(run.model_dir, mixing="logit")
    command_line.saved_run(run.model_dir)
    command_line.claim_model_dir(str(tmp_path / "empty"), may_change=["MODEL_DIR"])
    with raises(str(tmp_path / "empty")):
        clp_jax.load(tmp_path / "empty")


# ------------------------------------------------------------------------------------------------
# Generating
# ------------------------------------------------------------------------------------------------


def test_it_generates_what_the_command_does(run, policy, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"document": document}) + "\n" for document in DOCUMENTS)
    )
    flags = ["--reward_weights=0.7,0.3", "--kl_weight=0.05", f"--input={tmp_path / 'in.jsonl'}"]
    generate.main([f"--model_dir={run.model_dir}", *flags])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    theirs = [row["completion"] for row in rows]
    assert policy.generate(DOCUMENTS, WEIGHTS, kl_weight=0.05) == theirs
    assert len(set(theirs)) > 1


def test_it_samples_as_the_command_does(run, policy):
    at = Weighting.of(0.05, [0.7, 0.3])
    theirs = list(generation.Generator(run, at, 1.0, seed=3)(DOCUMENTS))
    options = {"kl_weight": 0.05, "temperature": 1.0}
    assert policy.generate(DOCUMENTS, WEIGHTS, **options, seed=3) == theirs
    assert policy.generate(DOCUMENTS, WEIGHTS, **options, seed=4) != theirs
    assert policy.generate(DOCUMENTS, WEIGHTS, kl_weight=0.05) != theirs


def test_names_have_no_order_and_numbers_that_of_the_rewards(policy):
    turned = dict(reversed(WEIGHTS.items()))
    of_names = policy.generate(DOCUMENTS, turned)
    assert of_names == policy.generate(DOCUMENTS, (0.7, 0.3))
    assert of_names == policy.generate(DOCUMENTS, np.array([0.7, 0.3]), kl_weight=0.01)
    assert of_names != policy.generate(DOCUMENTS, (0.3, 0.7))
    assert of_names != policy.generate(DOCUMENTS, (0.7, 0.3), kl_weight=0.5)


def test_a_weighting_for_each_document_is_a_call_for_each(policy, monkeypatch):
    weights = [(1, 0), WEIGHTS, (0, 1), (1, 0), (0.7, 0.3)]
    kl_weights = [0.01, 0.05, 0.01, 0.01, 0.05]
    mixed, greedy = [], policy._policy(0.0)
    mix = greedy._mix
    monkeypatch.setattr(
        greedy, "_mix", lambda p, r, w: mixed.append(float(w.kl_weight)) or mix(p, r, w)
    )
    together = policy.generate(DOCUMENTS, weights, kl_weights)
    np.testing.assert_allclose(mixed, [0.01, 0.05, 0.01])
    for document, w, alpha, completion in zip(
        DOCUMENTS, weights, kl_weights, together, strict=True
    ):
        assert policy.generate([document], w, alpha) == [completion]
    same = policy.generate(DOCUMENTS, [[1, 0]] * 5)
    assert same == policy.generate(DOCUMENTS, np.eye(2)[[0] * 5], kl_weight=[0.01] * 5)
    assert same[1] != together[1] or same[2] != together[2]


@pytest.mark.parametrize(
    ("shares", "batch_size", "filled", "sizes"),
    [
        (1, 32, False, [8]),
        (1, 3, False, [3, 2]),
        (1, 4, False, [4, 1]),
        (2, 3, False, [4, 2]),
        (1, 32, True, [32]),
        (2, 3, True, [4, 4]),
    ],
)
def test_batches_are_no_larger_than_they_have_to_be(run, shares, batch_size, filled, sizes):
    seen, said = [], []

    def completed(weighting, prompts, key):
        seen.append(len(prompts))
        said.append((prompts[prompts.any(axis=1)], jax.random.key_data(key).tolist()))
        return SimpleNamespace(completions=prompts)

    texts = generation.Texts(run)
    fake = SimpleNamespace(placement=SimpleNamespace(shares=shares), generate=completed)
    tokens = texts.tokens(DOCUMENTS)
    completions = list(texts.completions(fake, None, tokens, 0, batch_size, filled))
    assert seen == sizes
    assert completions == ["summarize: " + document for document in DOCUMENTS]
    assert len({str(key) for _, key in said}) == len(said)


def test_what_is_too_long_is_said(policy):
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer than .* tokens: truncated"):
        policy.generate([DOCUMENTS[0], DOCUMENTS[0] * 20], WEIGHTS)


def test_no_documents(policy):
    for weights in (WEIGHTS, (0.7, 0.3), [], np.zeros([0, 2])):
        assert policy.generate([], weights) == []
    with raises("sums to 2"):
        policy.generate([], (1, 1))


NAMES = "entailment, rouge"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"documents": "one text"}, ["documents is one text", "list of texts"]),
        ({"documents": [DOCUMENTS[0], None]}, ["documents[1] is None"]),
        ({"reward_weights": {"entailment": 1}}, ["weights of entailment;", NAMES]),
        ({"reward_weights": {**WEIGHTS, "quality": 0}}, ["rouge, quality;", NAMES]),
        ({"reward_weights": {}}, ["weights of nothing", NAMES]),
        ({"reward_weights": (0.2, 0.3, 0.5)}, ["0.2,0.3,0.5 has 3 weights", NAMES]),
        ({"reward_weights": (0.7, 0.7)}, ["sums to 1.4", NAMES]),
        ({"reward_weights": (1.5, -0.5)}, ["negative", NAMES]),
        ({"reward_weights": (float("nan"), 1)}, ["not finite", NAMES]),
        ({"reward_weights": ()}, ["has 0 weights", NAMES]),
        ({"reward_weights": "10"}, ["'10' are not numbers", NAMES]),
        ({"reward_weights": 0.7}, ["0.7 are not numbers", NAMES]),
        ({"reward_weights": {"entailment": "much", "rouge": 0}}, ["much", NAMES]),
        ({"reward_weights": [(1, 0)]}, ["1 values for 2 documents", "one for each"]),
        ({"reward_weights": [(1, 0), (1, 1)]}, ["of document 1", "sums to 2", NAMES]),
        ({"reward_weights": [(1, 0), {"rouge": 1}]}, ["of document 1 has weights of rouge", NAMES]),
        ({"kl_weight": 0.001}, ["kl_weight=0.001", "[0.01, 1]"]),
        ({"kl_weight": 1.1}, ["kl_weight=1.1", "[0.01, 1]"]),
        ({"kl_weight": [0.1]}, ["1 values for 2 documents"]),
        ({"kl_weight": [0.1, 0]}, ["kl_weight of document 1=0", "[0.01, 1]"]),
        ({"temperature": -1}, ["temperature", ">= 0"]),
        ({"batch_size": 0}, ["batch_size=0", "at least 1"]),
    ],
)
def test_wrong_arguments(policy, arguments, parts):
    given = {"documents": DOCUMENTS[:2], "reward_weights": WEIGHTS, **arguments}
    with raises(*parts):
        policy.generate(**given)


# ------------------------------------------------------------------------------------------------
# Scoring
# ------------------------------------------------------------------------------------------------


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
        tmp_path, "REWARDS=('both', 'test_api.by_author')",
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


# ------------------------------------------------------------------------------------------------
# The front
# ------------------------------------------------------------------------------------------------


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


# ------------------------------------------------------------------------------------------------
# Exporting
# ------------------------------------------------------------------------------------------------


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
        ({"reward_weights": [1]}, [NAMES]),
        ({"reward_weights": [WEIGHTS] * 2}, ["2 values for 1"]),
        ({"kl_weight": 2}, ["[0.01, 1]"]),
    ],
)
def test_wrong_exports(policy, tmp_path, arguments, parts):
    with raises(*parts):
        policy.export(**{"output": tmp_path / "out", "reward_weights": WEIGHTS, **arguments})
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------
# Other systems than CLP
# ------------------------------------------------------------------------------------------------


def same_as_generator(policy, run, weights):
    """Whether the policy says what the command's `Generator` does."""
    at = Weighting.of(policy.kl_weight_min, weights)
    theirs = list(generation.Generator(run, at)(DOCUMENTS))
    return policy.generate(DOCUMENTS, weights) == theirs


def test_a_soup_by_parameters_and_by_logits(tmp_path):
    run = made(tmp_path, kind="rewarded_soup", steps=(3,))
    policy = clp_jax.load(tmp_path)
    assert (policy.step, policy.mixing) == (6, "parameters")
    assert isinstance(policy._policy(0.0), CLPPolicy)
    assert same_as_generator(policy, run, (0.4, 0.6))
    by_logits = clp_jax.load(tmp_path, step=6, mixing="logits")
    assert isinstance(by_logits._policy(0.0), LogitMixingPolicy)
    # At a corner one expert speaks, whatever is mixed.
    corners = [(1, 0), (0, 1), (1, 0), (0, 1), (1, 0)]
    assert by_logits.generate(DOCUMENTS, corners) == policy.generate(DOCUMENTS, corners)
    with raises("step 3", "6 in all"):
        clp_jax.load(tmp_path, step=3)
    assert "step 6" in (policy.export(tmp_path / "out", WEIGHTS) / "README.md").read_text()
    with raises("logits", 'mixing="parameters"'):
        by_logits.export(tmp_path / "none", WEIGHTS)


def test_prompting(tmp_path):
    run = made(tmp_path, kind="prompting", steps=(3,))
    policy = clp_jax.load(tmp_path)
    assert same_as_generator(policy, run, (0.4, 0.6))
    ends = [policy.generate(DOCUMENTS, w) for w in ((1, 0), (0, 1))]
    assert ends[0] != ends[1]
    with raises("CONDITION_PROMPT"):
        clp_jax.load(tmp_path, mixing="logits")


def test_dera(tmp_path):
    run = made(tmp_path, "REWARDS=('entailment',)", kind="dera", steps=(3,))
    policy = clp_jax.load(tmp_path)
    assert policy.mixing == "logits"
    assert same_as_generator(policy, run, (1,))
    near, far = (policy.generate(DOCUMENTS, {"entailment": 1}, kl_weight=a) for a in (0.01, 1))
    assert near != far
