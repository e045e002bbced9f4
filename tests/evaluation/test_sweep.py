import dataclasses
import json

import jax
import numpy as np
import pytest
import smoke
from matplotlib.figure import Figure

from clp_jax.algorithm.rollout import Rollout
from clp_jax.evaluation import grids, plots, report, sweep
from clp_jax.evaluation import result as result_lib
from clp_jax.evaluation.result import SweepResult
from clp_jax.models.partitioning import Placement
from clp_jax.rewards.registry import make_reward_stack
from clp_jax.runs import training


def result(values, weights, kl=None, alphas=None, names=("a", "b", "c")):
    values, weights = np.asarray(values, float), np.asarray(weights, float)
    n = len(values)
    return SweepResult(
        names=names[: values.shape[1]],
        kl_weights=np.zeros(n) if alphas is None else np.asarray(alphas),
        reward_weights=weights,
        prompt_raw=values[:, None],
        prompt_normalised=values[:, None],
        prompt_kl=np.zeros((n, 1)) if kl is None else np.asarray(kl)[:, None],
        prompt_length=np.ones((n, 1)),
        prompt_repetition=np.linspace(0, 0.5, n)[:, None],
        other_names=(),
        prompt_other_raw=np.zeros((n, 1, 0)),
        prompt_other_normalised=np.zeros((n, 1, 0)),
        documents=np.array(["document"], object),
        references=np.array(["reference"], object),
        completions=np.array([["completion"]] * n, object),
        truncated_prompts=0,
    )


GRID = grids.simplex_grid(2, 3)


def test_values_are_kl_regularised():
    r = result([[1.0, 0.0], [0.5, 0.5]], GRID[:2], kl=[2.0, 4.0], alphas=[0.1, 0.5])
    np.testing.assert_allclose(r.values, [[0.7, -0.2], [-1.75, -1.75]])


def test_each_column_is_what_its_name_says():
    rng = np.random.default_rng(0)
    n, prompts = 3, 4
    learned = {"prompt_raw": 5.0, "prompt_normalised": 1.0}
    fields = {k: high * rng.random((n, prompts, 2)) for k, high in learned.items()}
    fields |= {
        k: rng.random((n, prompts, 1)) for k in ("prompt_other_raw", "prompt_other_normalised")
    }
    fields |= {f"prompt_{k}": rng.random((n, prompts)) for k in ("kl", "length", "repetition")}
    alphas, weights = np.array([0.1, 0.2, 0.3]), rng.dirichlet([1, 1], n)
    made = SweepResult(
        names=("a", "b"), kl_weights=alphas, reward_weights=weights, other_names=("c",),
        documents=np.array(["d"] * prompts), references=np.array([""] * prompts),
        completions=np.full((n, prompts), "x"), truncated_prompts=0, **fields,
    )  # fmt: skip
    mean = {k.removeprefix("prompt_"): v.mean(axis=1) for k, v in fields.items()}
    values = (1 - alphas)[:, None] * mean["normalised"] - (alphas * mean["kl"])[:, None]
    expected = {
        "w a": weights[:, 0], "w b": weights[:, 1], "α": alphas,
        "a": mean["normalised"][:, 0], "b": mean["normalised"][:, 1],
        "a (raw)": mean["raw"][:, 0], "b (raw)": mean["raw"][:, 1], "KL": mean["kl"],
        "V a": values[:, 0], "V b": values[:, 1],
        "length": mean["length"], "repetition": mean["repetition"],
        "other c": mean["other_normalised"][:, 0], "other c (raw)": mean["other_raw"][:, 0],
    }  # fmt: skip
    assert [list(row) for row in made.rows()] == [list(expected)] * n
    for name, column in expected.items():
        np.testing.assert_allclose([row[name] for row in made.rows()], column, err_msg=name)
    scalars = made.scalars()
    for name in ("kl", "length", "repetition"):
        assert scalars[f"eval/{name}"] == pytest.approx(mean[name].mean())
    assert scalars["eval/other/c"] == pytest.approx(mean["other_normalised"].mean())
    for i, name in enumerate("ab"):
        assert scalars[f"eval/range/{name}"] == pytest.approx(np.ptp(values[:, i]))


def test_a_steerable_front_has_tau_one_and_a_collapsed_one_has_no_range():
    front = result([[0.9, 0.1], [0.6, 0.5], [0.2, 0.8]], GRID)
    assert front.controllability == {"a": 1.0, "b": 1.0}
    assert front.ranges == pytest.approx({"a": 0.7, "b": 0.7})
    point = result([[0.5, 0.5]] * 3, GRID)
    assert point.controllability == {"a": 0.0, "b": 0.0}
    assert point.ranges == {"a": 0.0, "b": 0.0}


def test_tau_counts_pairs_in_the_wrong_order():
    # Of the three pairs of weightings one is in the wrong order for "a": τ = (2 − 1) / 3.
    r = result([[0.9, 0.1], [0.2, 0.5], [0.4, 0.8]], GRID)
    assert r.controllability["a"] == pytest.approx(1 / 3)


class ConstantPolicy:
    """Says "boat" to every prompt; its log-ratio to the reference is 2 − w_1."""

    placement = Placement.over(jax.local_devices()[:1])

    def __init__(self, vocabulary, text="boat"):
        self.tokens = [*vocabulary.encode(text), vocabulary.eos_id]
        self.keys = []

    def generate(self, weighting, prompts, key):
        self.keys.append(jax.random.key_data(key).tolist())
        shape = (len(prompts), len(self.tokens))
        per_token = (2 - np.asarray(weighting.reward_weights)[0]) / len(self.tokens)
        return Rollout(
            prompts=prompts,
            completions=np.broadcast_to(self.tokens, shape),
            mask=np.ones(shape),
            log_probs=np.full(shape, per_token),
            plain_prompts=prompts,
            reference_log_probs=np.zeros(shape),
        )


def boats(prompts, completions):
    return [
        float(c == "boat") + 0.5 * ("potter" in p)
        for p, c in zip(prompts, completions, strict=True)
    ]


def letters(prompts, completions, document):
    return [len(d) for d in document]


@pytest.fixture
def run(tmp_path):
    run = smoke.configured(
        tmp_path, "REWARDS=('test_sweep.boats', 'test_sweep.letters')", "EVAL_BATCH_SIZE=8",
        "EVAL_REWARDS=('entailment', 'test_sweep.letters')",
        "REWARD_RANGES={'test_sweep.letters': (100, 200)}",
    )  # fmt: skip
    return dataclasses.replace(
        run, evaluation=dataclasses.replace(run.evaluation, num_examples=None)
    )


def test_sweep_averages_over_every_prompt(run):
    from clp_jax.data import tasks

    policy = ConstantPolicy(run.model.vocabulary)
    got = sweep.sweep(policy, run)
    rows = tasks.columns("briefs", "validation")
    assert got.num_prompts == len(rows) == 20
    np.testing.assert_allclose(got.reward_weights, GRID)
    potters = np.mean(["potter" in row["prompt"] for row in rows])
    np.testing.assert_allclose(got.raw[:, 0], 1 + 0.5 * potters)
    np.testing.assert_allclose(got.raw[:, 1], np.mean([len(row["document"]) for row in rows]))
    np.testing.assert_allclose(got.kl, 2 - GRID[:, 0], rtol=1e-6)
    assert set(got.completions.ravel()) == {"boat"}
    assert got.documents.tolist() == [row["document"] for row in rows]
    assert got.references.tolist() == [row["summary"] for row in rows]
    # The same random numbers at each weighting, other ones in each batch.
    assert len({json.dumps(key) for key in policy.keys}) == 3
    assert policy.keys[:3] == policy.keys[3:6] == policy.keys[6:]


def test_rewards_that_were_not_learned_are_reported_beside(run):
    got = sweep.sweep(ConstantPolicy(run.model.vocabulary), run)
    assert run.model.rewards.names == ("boats", "letters")
    assert got.other_names == ("entailment", "letters")
    np.testing.assert_array_equal(got.other_raw[:, 0], -7)  # "boat" is no summary
    np.testing.assert_array_equal(got.other_raw[:, 1], got.raw[:, 1])
    np.testing.assert_allclose(got.other_normalised[:, 1], (got.raw[:, 1] - 100) / 100, rtol=1e-6)
    row = got.rows()[0]
    assert row["other letters (raw)"] == row["letters (raw)"]
    assert got.scalars()["eval/other/letters"] == pytest.approx(row["other letters"])
    assert "other_raw" in got.to_json()
    assert training.check(run) is None
    missing = dataclasses.replace(
        run.evaluation, rewards=make_reward_stack(("test_sweep.needs_author",))
    )
    with pytest.raises(ValueError, match="reward 'needs_author' needs a column"):
        training.check(dataclasses.replace(run, evaluation=missing))


def needs_author(prompts, completions, author):
    return [0.0 for _ in author]


def test_repetition_is_a_column_of_all_that_is_written(run):
    policy = ConstantPolicy(run.model.vocabulary, "boat " * 6)
    ngrams = list(zip(policy.tokens, policy.tokens[1:], policy.tokens[2:], strict=False))
    expected = 1 - len(set(ngrams)) / len(ngrams)
    assert expected > 0.3
    got = sweep.sweep(policy, run)
    np.testing.assert_allclose(got.repetition, [expected] * 3, rtol=1e-6)
    prompts = got.num_prompts
    other = dataclasses.replace(got, prompt_repetition=np.tile([[0.1], [0.2], [0.6]], prompts))
    assert [row["repetition"] for row in other.rows()] == pytest.approx([0.1, 0.2, 0.6])
    assert other.scalars()["eval/repetition"] == pytest.approx(0.3)
    assert other.to_json()["repetition"] == pytest.approx([0.1, 0.2, 0.6])


@pytest.mark.parametrize("examples", [1, 8, 11])
def test_sweep_stops_at_num_examples(run, examples):
    run = dataclasses.replace(
        run, evaluation=dataclasses.replace(run.evaluation, num_examples=examples)
    )
    assert sweep.sweep(ConstantPolicy(run.model.vocabulary), run).num_prompts == examples


@pytest.mark.parametrize("m", [1, 2, 3])
def test_report_writes_values_and_a_plot(tmp_path, capfd, m):
    weights = grids.simplex_grid(m, 3)
    alphas = np.linspace(0.1, 1, len(weights))
    report.write(result(weights, weights, alphas=alphas), tmp_path)
    written = json.loads((tmp_path / "values.json").read_text())
    assert len(written["values"]) == len(weights)
    assert "Kendall tau" in capfd.readouterr().err
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_front_joins_the_points_in_order_of_w():
    axes = Figure().subplots()
    plots.draw_front(result([[0.9, 0.1], [0.6, 0.5], [0.2, 0.8]], GRID), axes)
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0.9, 0.6, 0.2])


def test_each_alpha_is_a_front_of_its_own(tmp_path):
    values = [[0.9, 0.1], [0.2, 0.8], [0.5, 0.4], [0.4, 0.5]]
    both = result(values, [[1, 0], [0, 1]] * 2, alphas=[0.1, 0.1, 0.5, 0.5])
    parts = both.fronts()
    assert [part.kl_weights.tolist() for part in parts] == [[0.1, 0.1], [0.5, 0.5]]
    assert parts[0].ranges["a"] == pytest.approx(0.9 * 0.7)
    assert parts[1].ranges["a"] == pytest.approx(0.5 * 0.1)
    report.write(both, tmp_path)
    written = json.loads((tmp_path / "values.json").read_text())
    assert [front["kl_weight"] for front in written["fronts"]] == [0.1, 0.5]
    # One reward: α is what varies along the one front.
    assert len(result([[1.0], [2.0]], [[1], [1]], alphas=[0.1, 1.0]).fronts()) == 1


def test_what_was_measured_is_saved_and_read(run, tmp_path):
    got = sweep.sweep(ConstantPolicy(run.model.vocabulary), run)
    assert got.other_names == ("entailment", "letters")
    report.write(got, tmp_path / "evaluation" / "7")
    again = result_lib.load(result_lib.find(str(tmp_path)))
    for field in dataclasses.fields(SweepResult):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(got, field.name))
    assert json.loads((tmp_path / "evaluation" / "7" / "values.json").read_text()) == json.loads(
        json.dumps(again.to_json())
    )


def test_the_newest_evaluation_is_found(tmp_path):
    for step in ("9", "10", "10-custom"):
        report.write(result([[float(len(step)), 1.0]], GRID[:1]), tmp_path / "evaluation" / step)
    assert result_lib.find(str(tmp_path)).parent.name == "10"
    assert list(result_lib.evaluations(tmp_path)) == [9, 10]
    custom = tmp_path / "evaluation" / "10-custom"
    assert result_lib.find(str(custom)) == custom / "prompts.npz"
    assert result_lib.find(str(custom / "prompts.npz")) == custom / "prompts.npz"
    with pytest.raises(ValueError, match="has no evaluation"):
        result_lib.find(str(tmp_path / "evaluation"))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off"])
def test_a_broken_file_of_prompts_is_named(tmp_path, content):
    path = tmp_path / "prompts.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"prompts\.npz is not a file of evaluated prompts"):
        result_lib.load(path)


class Killed(Exception):
    pass


class KilledPolicy(ConstantPolicy):
    """Dies at the third weighting."""

    def generate(self, weighting, prompts, key):
        if float(weighting.reward_weights[0]) == 0:
            raise Killed
        return super().generate(weighting, prompts, key)


def test_a_sweep_that_was_stopped_goes_on(run, tmp_path):
    whole = sweep.sweep(ConstantPolicy(run.model.vocabulary), run)
    with pytest.raises(Killed):
        sweep.sweep(KilledPolicy(run.model.vocabulary), run, folder=tmp_path, name="step 3")
    policy = ConstantPolicy(run.model.vocabulary)
    got = sweep.sweep(policy, run, folder=tmp_path, name="step 3")
    assert len(policy.keys) == 3  # the batches of one weighting
    for field in dataclasses.fields(SweepResult):
        np.testing.assert_array_equal(getattr(got, field.name), getattr(whole, field.name))
    report.write(got, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "front.png", "prompts.npz", "values.json",
    ]  # fmt: skip


def test_a_weighting_of_something_else_is_measured_again(run, tmp_path):
    def batches(run, name):
        policy = ConstantPolicy(run.model.vocabulary)
        sweep.sweep(policy, run, folder=tmp_path, name=name)
        return len(policy.keys)

    assert batches(run, "step 3") == 9
    assert batches(run, "step 3") == 0
    assert batches(run, "step 4") == 9
    assert batches(dataclasses.replace(run, model_dir="elsewhere"), "step 4") == 9
    fewer = dataclasses.replace(run.evaluation, num_examples=11)
    assert batches(dataclasses.replace(run, evaluation=fewer), "step 4") == 6
    logits = dataclasses.replace(fewer, mixing="logits")
    assert batches(dataclasses.replace(run, evaluation=logits), "step 4") == 6
