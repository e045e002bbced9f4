"""A trained policy as a Python object: any run, at any weighting."""

import json
import pathlib
from concurrent import futures
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from trained_runs import DOCUMENTS, WEIGHTS, made, raises

import clp_jax
from clp_jax import evaluate, generate
from clp_jax.algorithm.weighting import Weighting
from clp_jax.policies.logit_mixing import LogitMixingPolicy
from clp_jax.policies.policy import CLPPolicy
from clp_jax.runs import generation
from clp_jax.settings import command_line


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


def test_policies_that_are_loaded_at_once(run, tmp_path):
    other = made(tmp_path / "other", "REWARDS=('quality', 'rouge')")
    wanted = [run, other] * 3
    with futures.ThreadPoolExecutor(len(wanted)) as pool:
        loaded = list(pool.map(lambda each: clp_jax.load(each.model_dir), wanted))
    assert [p.reward_names for p in loaded] == [each.model.rewards.names for each in wanted]
    assert [each.model_dir in repr(p) for p, each in zip(loaded, wanted, strict=True)] == [True] * 6


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"documents": {"text": 1}}, ["documents is a dict; valid is a list of texts"]),
        ({"documents": {"text"}}, ["documents is a set"]),
        ({"documents": None}, ["documents is a NoneType"]),
        ({"documents": b"text"}, ["documents is a bytes"]),
        ({"documents": ["news \ud83d"]}, ["documents[0]", "lone surrogate"]),
        ({"reward_weights": {0.3, 0.7}}, ["are not numbers"]),
        ({"seed": 2**32}, ["seed=4294967296 must be below 2**32"]),
        ({"seed": 1.5}, ["seed=1.5 must be a whole number"]),
        ({"batch_size": "3"}, ["batch_size='3' must be a whole number"]),
        ({"batch_size": None}, ["batch_size=None must be a whole number"]),
    ],
)
def test_what_only_looks_like_an_argument(policy, arguments, parts):
    with raises(*parts):
        policy.generate(**{"documents": DOCUMENTS, "reward_weights": WEIGHTS, **arguments})


@pytest.mark.parametrize("alpha", [np.float32(0.01), np.linspace(0.01, 1, 5, dtype="f4")])
def test_a_kl_weight_that_float32_rounded(policy, alpha):
    assert len(policy.generate(DOCUMENTS, WEIGHTS, alpha)) == 5
