"""Metrics of held-out scores, against brute force and closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clp_jax.reward_fitting import held_out

few_scores = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


@given(few_scores, few_scores)
def test_auc_is_the_share_of_pairs_in_order(positive, negative):
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert held_out.auc(np.array(positive), np.array(negative)) == pytest.approx(np.mean(wins))


def test_auc_of_one_class_is_undefined():
    assert held_out.auc(np.ones(3), np.zeros(0)) is None


def brute_force_calibration_error(confidence, right, bins):
    total = 0.0
    for b in range(bins):
        inside = [
            i for i, c in enumerate(confidence)
            if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)
        ]  # fmt: skip
        if inside:
            gap = np.mean([confidence[i] for i in inside]) - np.mean([right[i] for i in inside])
            total += len(inside) / len(confidence) * abs(gap)
    return total


@given(
    st.lists(st.tuples(st.integers(0, 64), st.booleans()), min_size=1, max_size=30),
    st.sampled_from([1, 4, 16]),  # so that ends of bins are exact
)
def test_calibration_error_by_brute_force(rows, bins):
    confidence = np.array([c / 64 for c, _ in rows])
    right = np.array([r for _, r in rows])
    expected = brute_force_calibration_error(confidence, right, bins)
    found = held_out.expected_calibration_error(confidence, right, bins)
    assert found == pytest.approx(expected, abs=1e-12)


def test_calibration_error_in_closed_form():
    # Always sure with the confidence .9 and right with the frequency .7.
    right = np.arange(10) < 7
    assert held_out.expected_calibration_error(np.full(10, 0.9), right) == pytest.approx(0.2)
    # Errors of two bins do not cancel.
    confidence = np.array([0.6] * 10 + [0.9] * 10)
    right = np.concatenate([np.arange(10) < 8, np.arange(10) < 7])
    assert held_out.expected_calibration_error(confidence, right) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("ends", "most", "expected"),
    [
        ((-5.13, -0.003), 0.0, (-5.2, 0.0)),
        ((-5.13, -0.26), 0.0, (-5.2, -0.2)),
        ((-5.2, 0.0), 0.0, (-5.2, 0.0)),
        ((-1.551, 2.03), math.inf, (-1.6, 2.1)),
        ((0.0123, 0.4561), math.inf, (0.01, 0.46)),
        ((-1234.0, 987.0), math.inf, (-1300.0, 1000.0)),
        ((0.0, 0.0), 0.0, (-1.0, 0.0)),
        ((0.0, 0.0), math.inf, (-1.0, 0.0)),
        ((-2.0, -2.0), 0.0, (-2.1, -2.0)),
    ],
)
def test_proposed_range(ends, most, expected):
    # Of 101 evenly spread scores, the 5th and 95th percentile are scores themselves.
    low, high = ends
    step = (high - low) / 90
    scores = low + step * (np.arange(101) - 5)
    scores[5], scores[95] = low, high
    scores = np.minimum(scores, most)
    assert held_out.proposed_range(scores, most) == expected
    assert all(math.copysign(1, end) > 0 for end in expected if end == 0)


@given(st.lists(st.floats(-1e4, 0, width=32), min_size=1, max_size=20))
def test_proposed_range_holds_the_percentiles(scores):
    low, high = held_out.proposed_range(np.array(scores), most=0.0)
    assert low < high <= 0
    first, last = np.percentile(np.array(scores), [5, 95])
    assert low <= first
    assert last <= high


def test_scores_that_are_not_finite():
    with pytest.raises(ValueError, match="1 of 2 held-out scores are not finite: training has"):
        held_out.proposed_range(np.array([0.0, np.nan]))


def test_nli_report():
    # Log-probabilities of half the mass: a softmax over the labels doubles them.
    log_probs = np.log(np.array([[0.4, 0.1], [0.3, 0.2], [0.05, 0.45], [0.3, 0.2]]))
    labels = np.array([0, 1, 1, 0])
    report = held_out.nli_report(log_probs, log_probs[:, 0], labels, ("yes", "no"), "yes")
    assert report["accuracy"] == 0.75
    assert report["confusion"] == {"yes": {"yes": 2, "no": 0}, "no": {"yes": 1, "no": 1}}
    # (.4, .3) against (.3, .05): three pairs in order, one tie.
    assert report["auc"] == 3.5 / 4
    # Bins: .8 right; .6 wrong, .6 right; .9 right.
    assert report["expected_calibration_error"] == pytest.approx((0.2 + 0.2 + 0.1) / 4)
    assert report["range"][1] <= 0
    histogram = report["histogram"]
    assert {name: sum(counts) for name, counts in histogram["counts"].items()} == {
        "yes": 2,
        "other": 2,
    }
    assert len(histogram["edges"]) == len(histogram["counts"]["yes"]) + 1
    assert histogram["edges"][0] == pytest.approx(np.log(0.05))


def test_nli_report_with_another_label_as_entailment():
    log_probs = np.log(np.array([[0.4, 0.1, 0.5], [0.3, 0.2, 0.5], [0.1, 0.8, 0.1]]))
    report = held_out.nli_report(
        log_probs, log_probs[:, 1], np.array([2, 0, 1]), ("a", "b", "c"), "b"
    )
    assert report["auc"] == 1.0
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert sum(report["histogram"]["counts"]["b"]) == 1


def test_preference_report():
    scores = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [5.0, -5.0]])
    lengths = np.array([[3, 9], [4, 4], [2, 7], [1, 5]])
    report = held_out.preference_report(scores, lengths)
    assert report["accuracy"] == (1 + 0 + 0.5 + 1) / 4
    assert report["longer_is_better"] == 0.5 / 4
    assert report["length_baseline"] == 1 - 0.5 / 4
    pairs = [(b > w) + 0.5 * (b == w) for b in scores[:, 0] for w in scores[:, 1]]
    assert report["auc"] == pytest.approx(np.mean(pairs))

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    # Differences 1 (right), -3 (wrong), 0 (half right), 10 (right): bins .73, .95, .5, .99995.
    errors = [(sigmoid(1) - 1), sigmoid(10) - 1 + sigmoid(3), 0.0]
    expected = sum(map(abs, errors)) / 4
    assert report["expected_calibration_error"] == pytest.approx(expected)


def test_plot(tmp_path):
    report = held_out.preference_report(np.array([[2.0, 1.0], [0.0, 3.0]]), np.ones((2, 2)))
    held_out.plot(report, tmp_path / "scores.png", "a title")
    assert (tmp_path / "scores.png").stat().st_size > 1000
