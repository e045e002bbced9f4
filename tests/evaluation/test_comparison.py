import dataclasses
import re

import numpy as np
import pytest
import sweeps
from sweeps import WEIGHTS

from clp_jax.evaluation import alignment, comparison, pareto
from clp_jax.evaluation.alignment import EvaluatedRun

CONVEX = [[0.9, 0.1], [0.6, 0.6], [0.1, 0.9]]
LINEAR = [[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]]


def compare(*arguments, resamples=20, **options):
    return comparison.compare(*arguments, resamples=resamples, **options)


def run(label, swept, **steps):
    return EvaluatedRun(label, f"{label}/prompts.npz", swept, steps.get("steps", {}))


def two(**kwargs):
    """A better and a worse front, on noisy prompts."""
    options = {"prompts": 50, "noise": 0.2, "alphas": [0.1] * 3, "kl": [2.0, 1.0, 0.5], **kwargs}
    return [
        run("ours", sweeps.sweep(CONVEX, seed=1, **options)),
        run("theirs", sweeps.sweep(LINEAR, seed=2, **options)),
    ]


# --- what is compared


def test_a_run_is_read_from_each_kind_of_path(tmp_path):
    swept = sweeps.sweep(CONVEX)
    folder = sweeps.save(swept, tmp_path / "clp", 500)
    for path, label in (
        (tmp_path / "clp", "clp"),
        (folder, "clp/500"),
        (folder / "prompts.npz", "clp/500"),
        (f"mine={folder}", "mine"),
        (f"{tmp_path}/clp/", "clp"),
    ):
        read = alignment.read(str(path))
        assert read.label == label
        np.testing.assert_array_equal(read.result.prompt_normalised, swept.prompt_normalised)
        assert read.steps == {}
    alone = sweeps.save(swept, tmp_path / "lr=0.1")
    assert alignment.read(str(alone)).label == "lr=0.1"
    assert alignment.read(f"low={alone}").label == "low"
    for bad in ("=runs/clp", "clp="):
        with pytest.raises(ValueError, match="expected PATH or LABEL=PATH"):
            alignment.read(bad)
    with pytest.raises(ValueError, match="nowhere has no evaluation"):
        alignment.read("nowhere")


def test_the_newest_step_is_compared_and_the_others_are_its_progress(tmp_path):
    for step in (1000, 50, 100):
        sweeps.save(sweeps.sweep(np.array(CONVEX) * step / 1000), tmp_path / "clp", step)
    read = alignment.read(str(tmp_path / "clp"))
    assert list(read.steps) == [50, 100, 1000]
    assert read.result.values[0, 0] == pytest.approx(0.9)
    assert [s.values[0, 0] for s in read.steps.values()] == pytest.approx([0.045, 0.09, 0.9])


def test_of_many_steps_a_few_are_read(tmp_path):
    for step in range(1, 14):
        sweeps.save(sweeps.sweep(CONVEX, prompts=1), tmp_path / "clp", step)
    steps = list(alignment.read(str(tmp_path / "clp")).steps)
    assert len(steps) == alignment.PROGRESS_STEPS
    assert (steps[0], steps[-1]) == (1, 13)
    assert max(np.diff(steps)) <= 3


def test_runs_are_matched_by_weighting_and_not_by_row():
    ours, theirs = two()
    rows = [2, 0, 1]
    mixed = run("theirs", theirs.result.part(np.array(rows)))
    straight, crossed = compare([ours, theirs]), compare([ours, mixed])
    np.testing.assert_array_equal(
        straight.fronts[0].dominance["theirs"].differences,
        crossed.fronts[0].dominance["theirs"].differences,
    )
    for label in ("ours", "theirs"):
        part = crossed.fronts[0].parts[label]
        np.testing.assert_array_equal(part.reward_weights, WEIGHTS)
        np.testing.assert_array_equal(part.completions, straight.fronts[0].parts[label].completions)
    # In order of w, whichever order the first run has.
    crossed = compare([mixed, ours])
    np.testing.assert_array_equal(crossed.fronts[0].parts["ours"].reward_weights, WEIGHTS)


def test_only_common_weightings_are_compared_and_the_others_are_named():
    ours, theirs = two()
    weights = np.array([[0.5, 0.5], [0.2, 0.8], [0, 1]], np.float32)
    other = dataclasses.replace(theirs.result, reward_weights=weights)
    third = np.array([[0.5, 0.5], [1 / 3, 2 / 3], [0, 1]])
    ours = run("ours", dataclasses.replace(ours.result, reward_weights=third))
    compared = compare([ours, run("theirs", other)])
    np.testing.assert_allclose(compared.fronts[0].weights, [[0.5, 0.5], [0, 1]])
    assert compared.notes == (
        "ours has 3 weightings; the 2 that all runs have are compared",
        "theirs has 3 weightings; the 2 that all runs have are compared",
    )
    single = dataclasses.replace(other, reward_weights=third.astype(np.float32))
    assert compare([ours, run("theirs", single)]).notes == ()  # float32 is the same


def test_a_weighting_that_was_evaluated_twice_counts_once():
    ours, theirs = two()
    twice = ours.result.part(np.array([0, 1, 2, 0]))
    compared = compare([run("ours", twice), theirs])
    assert compared.fronts[0].weights.shape == (3, 2)


def test_each_alpha_is_a_front():
    swept = sweeps.sweep(
        CONVEX + LINEAR, np.tile(WEIGHTS, (2, 1)), [0.2] * 3 + [0.4] * 3, prompts=9
    )
    compared = compare([run("a", swept)])
    assert [front.kl_weight for front in compared.fronts] == [0.2, 0.4]
    np.testing.assert_allclose(compared.fronts[1].parts["a"].normalised, LINEAR, atol=1e-6)
    # A weighting is (α, w): what one run has at .2 and the other at .4 is not matched.
    other = dataclasses.replace(swept, kl_weights=np.array([0.2] * 3 + [0.5] * 3))
    assert len(compare([run("a", swept), run("b", other)]).fronts) == 1


def changed(**changes):
    ours, theirs = two()
    return [ours, run("theirs", dataclasses.replace(theirs.result, **changes))]


def other_documents():
    documents = two()[0].result.documents.copy()
    documents[7] = "another one"
    return documents


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (lambda: changed(names=("nli", "tldr")), "ours and theirs .* nli, rouge and nli, tldr"),
        (lambda: changed(names=("rouge", "nli")), "nli, rouge and rouge, nli"),
        (lambda: changed(documents=other_documents()),
         "1 of their 50 prompts differ.* prompt 7: 'document 7' and 'another one'"),
        (lambda: [two()[0], two(prompts=40)[1]], "on 50 and 40 prompts"),
        (lambda: changed(kl_weights=np.full(3, 0.2)),
         r"no weighting .* common: ours has \(0.1, \(1, 0\)\), .*; theirs has \(0.2, \(1, 0\)\)"),
        (lambda: changed(prompt_kl=np.full((3, 50), np.nan)), "theirs .* not finite"),
        (lambda: changed(prompt_raw=2 * two()[1].result.prompt_raw),
         r"range of nli .* is \(-7, .*\) and \(-14, "),
        (lambda: [two()[0], run("ours", two()[1].result)], "two runs are called 'ours'"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_the_difference(runs, message):
    with pytest.raises(ValueError, match=message):
        compare(runs())


def test_scores_that_do_not_tell_a_range_are_no_reason_to_refuse():
    ours, theirs = two()
    floored = np.maximum(theirs.result.prompt_raw, theirs.result.prompt_raw.mean())
    compared = compare([ours, run("b", dataclasses.replace(theirs.result, prompt_raw=floored))])
    assert list(compared.fronts[0].metrics) == [ours.label, "b"]
    flat = [run(label, sweeps.sweep([[0.5, 0.5]] * 3)) for label in "ab"]
    np.testing.assert_array_equal(compare(flat).fronts[0].dominance["b"].differences, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "thiers"}, "unknown baseline 'thiers'; nearest: theirs"),
        ({"reference_point": [0]}, "has 1 numbers; expected 2: for nli, rouge"),
        ({"reference_point": [0, np.inf]}, "not finite"),
        ({"resamples": 0}, "0 resamples"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        compare(two(), **options)


# --- numbers


def test_metrics_are_those_of_each_front():
    ours, theirs = two()
    compared = compare([ours, theirs], "theirs", [-0.1, 0.05])
    (front,) = compared.fronts
    assert compared.others == ("ours",)
    for each in (ours, theirs):
        values = each.result.prompt_values
        expected = pareto.front_metrics(WEIGHTS, values, [-0.1, 0.05], 20)
        assert front.metrics[each.label] == expected
        one_by_one = [w @ v.mean(axis=0) for w, v in zip(WEIGHTS, values, strict=True)]
        np.testing.assert_allclose(front.scalarized[each.label].value, one_by_one)
    assert list(front.dominance) == list(front.igd_plus) == list(front.shortfall) == ["ours"]
    difference = front.scalarized["ours"].value - front.scalarized["theirs"].value
    np.testing.assert_allclose(front.dominance["ours"].differences, difference)
    assert front.dominance["ours"].differences[1] == pytest.approx(0.09)
    assert front.igd_plus["ours"] == pareto.mutual_igd_plus(
        ours.result.values, theirs.result.values
    )
    np.testing.assert_array_equal(compared.reference_point, [-0.1, 0.05])


def test_points_that_add_nothing_to_the_hypervolume_are_counted():
    ours, theirs = two()
    (front,) = compare([ours, theirs]).fronts
    np.testing.assert_array_equal(front.reference_point, [0, 0])
    # V rouge = .9 · .1 − .1 · 2 < 0 at the first corner; V nli = .09 − .05 > 0 at the other
    assert front.not_above == {"ours": 1, "theirs": 1}
    (front,) = compare([ours, theirs], reference_point=[0.375, 0.3]).fronts
    assert front.not_above == {"ours": 2, "theirs": 3}


def test_shortfall_is_one_minus_the_ratio_with_its_paired_interval():
    ours, theirs = two()
    (front,) = compare([ours, theirs], "theirs", resamples=200).fronts
    shortfall = front.shortfall["ours"]
    V = {k: front.scalarized[k].value for k in ("ours", "theirs")}
    np.testing.assert_allclose(shortfall.value, 1 - V["ours"] / V["theirs"])
    assert shortfall.value[1] < 0
    for w in range(3):
        a, b = (
            pareto.resampled_means((each.result.prompt_values[[w]] @ WEIGHTS[w]), 200)[:, 0]
            for each in (ours, theirs)
        )
        low, high = np.percentile(1 - a / b, [2.5, 97.5])
        assert shortfall.low[w] == pytest.approx(low)
        assert shortfall.high[w] == pytest.approx(high)
    assert np.all(shortfall.low <= shortfall.high)


def test_shortfall_is_undefined_where_the_baseline_may_have_no_value():
    rewards = [[0.9, 0.1], [0.001, 0.001], [0.1, -0.5]]
    runs = [run("a", sweeps.sweep(CONVEX, prompts=30)),
            run("b", sweeps.sweep(rewards, prompts=30, noise=0.3))]  # fmt: skip
    (front,) = compare(runs, "b").fronts
    np.testing.assert_array_equal(np.isnan(front.shortfall["a"].value), [False, True, True])
    np.testing.assert_array_equal(np.isnan(front.shortfall["a"].low), [False, True, True])


def test_with_one_reward_the_front_is_reward_against_kl_as_alpha_varies():
    alphas, kl = np.array([1.0, 0.1, 0.5]), np.array([0.2, 3.4, 1.0])
    rewards = np.array([[0.2], [0.9], [0.6]])
    swept = sweeps.sweep(rewards, np.ones((3, 1)), alphas, kl, prompts=20, noise=0.1)
    lower = sweeps.sweep(rewards - 0.1, np.ones((3, 1)), alphas, kl, prompts=20, noise=0.1, seed=1)
    (front,) = compare([run("a", swept), run("b", lower)], "b").fronts
    assert front.kl_weight is None
    assert front.objectives == ("nli", "−KL")
    np.testing.assert_array_equal(front.parts["a"].kl_weights, [0.1, 0.5, 1.0])
    np.testing.assert_allclose(
        front.scalarized["a"].value, [0.9 * 0.9 - 0.1 * 3.4, 0.3 - 0.5, -0.2], atol=1e-6
    )
    np.testing.assert_allclose(front.dominance["a"].differences, [0.09, 0.05, 0], atol=1e-6)
    # The largest KL is 3.4: −4. Rectangles of the staircase, from the right.
    np.testing.assert_array_equal(front.reference_point, [0, -4])
    volume = 0.9 * 0.6 + 0.6 * (3 - 0.6) + 0.2 * (3.8 - 3)
    assert front.metrics["a"].hypervolume.value == pytest.approx(volume)
    assert front.not_above == {"a": 0, "b": 0}
    np.testing.assert_array_equal(np.isnan(front.shortfall["a"].value), [False, True, True])


def test_default_reference_point_leaves_room_where_the_policy_is_the_reference():
    swept = sweeps.sweep([[0.2], [0.3]], np.ones((2, 1)), [0.1, 1], [0, 0])
    (front,) = compare([run("a", swept)]).fronts
    np.testing.assert_array_equal(front.reference_point, [0, -1])


def test_progress_is_of_the_same_weightings_and_prompts():
    ours, theirs = two()
    half = sweeps.sweep(np.array(LINEAR) / 2, prompts=50, alphas=[0.1] * 3, kl=[1, 1, 1])
    shuffled = half.part(np.array([2, 1, 0]))
    lacking = half.part(np.array([0, 1]))
    elsewhere = dataclasses.replace(half, documents=other_documents())
    steps = {10: shuffled, 20: lacking, 30: elsewhere, 40: ours.result}
    compared = compare([run("ours", ours.result, steps=steps), theirs])
    assert [note.partition(":")[0] for note in compared.notes] == [
        "step 20 of ours is left out of the progress",
        "step 30 of ours is left out of the progress",
    ]
    first, last = comparison.progress(compared)
    assert (first.label, first.step, first.kl_weight) == ("ours", 10, 0.1)
    np.testing.assert_array_equal(compared.runs[0].steps[10].reward_weights, WEIGHTS)
    # V = .9 R − .1: a staircase of three points
    (x0, y0), (x1, y1), (x2, y2) = 0.45 * np.array(LINEAR) - 0.1
    volume = x1 * y1 + (x0 - x1) * max(y0, 0) + (y2 - y1) * max(x2, 0)
    assert first.hypervolume == pytest.approx(volume)
    np.testing.assert_allclose(first.ranges, [0.36, 0.36], atol=1e-6)
    assert first.length == 11
    assert last.step == 40
    assert last.hypervolume == compared.fronts[0].metrics["ours"].hypervolume.value
