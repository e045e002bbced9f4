"""The comparison of two policies by a judge: questions, the paper's rule, rates."""

import itertools
import json
import math

import numpy as np
import pytest

from clp_jax.evaluation import judge as judge_lib
from clp_jax.evaluation.judge import (
    COMPREHENSIVENESS,
    CONCISENESS,
    CRITERIA,
    Answer,
    Question,
    Verdict,
    answered,
    judgement,
    outcomes,
    preferences,
    questions,
    votes,
)

FIRST, SECOND, EQUAL, NONE = Verdict
OURS = {CONCISENESS: ["our short 0", "our short 1"], COMPREHENSIVENESS: ["our long 0", "our 1"]}
THEIRS = {CONCISENESS: ["their short 0", "their 1"], COMPREHENSIVENESS: ["their long 0", "theirs"]}


def test_questions_are_every_criterion_in_both_orders():
    asked = questions(["d0", "d1"], OURS, THEIRS, ["r0", "r1"])
    assert asked == [
        Question(CONCISENESS, "d0", "our short 0", "their short 0", "r0"),
        Question(CONCISENESS, "d0", "their short 0", "our short 0", "r0"),
        Question(COMPREHENSIVENESS, "d0", "our long 0", "their long 0", "r0"),
        Question(COMPREHENSIVENESS, "d0", "their long 0", "our long 0", "r0"),
        Question(CONCISENESS, "d1", "our short 1", "their 1", "r1"),
        Question(CONCISENESS, "d1", "their 1", "our short 1", "r1"),
        Question(COMPREHENSIVENESS, "d1", "our 1", "theirs", "r1"),
        Question(COMPREHENSIVENESS, "d1", "theirs", "our 1", "r1"),
    ]
    assert questions(["d0", "d1"], OURS, THEIRS)[0].reference == ""


@pytest.mark.parametrize("wrong", ["documents", "ours", "theirs", "references"])
def test_lists_of_different_lengths_are_refused(wrong):
    given = {"documents": ["d0", "d1"], "ours": OURS, "theirs": THEIRS, "references": ["", ""]}
    short = {CONCISENESS: ["a", "b"], COMPREHENSIVENESS: ["a"]}
    given[wrong] = short if wrong in ("ours", "theirs") else ["d0"]
    with pytest.raises(ValueError, match=r"[12] texts for [12] documents"):
        questions(**given)


def test_votes_are_by_policy_not_by_place():
    given = [FIRST, FIRST, SECOND, SECOND, EQUAL, NONE, SECOND, FIRST]
    np.testing.assert_array_equal(
        votes([Answer(verdict) for verdict in given]),
        [[[1, -1], [-1, 1]], [[0, np.nan], [-1, -1]]],
    )


def as_votes(verdicts):
    """Of one article, from the four verdicts in the order of `questions`."""
    return votes([Answer(verdict) for verdict in verdicts])


def named(order, verdict):
    """Which policy a verdict is for."""
    pair = ("ours", "theirs") if order == 0 else ("theirs", "ours")
    return {FIRST: pair[0], SECOND: pair[1], EQUAL: "neither"}[verdict]


def comparisons(verdicts):
    """[(policy in the first order, in the second)] of the two criteria."""
    return [
        (named(0, verdicts[0]), named(1, verdicts[1])),
        (named(0, verdicts[2]), named(1, verdicts[3])),
    ]


def main_text(verdicts):
    """Sec. 4.3: preferred in both, or in one while the other was inconsistent."""
    pairs = comparisons(verdicts)
    for who, value in (("ours", 1), ("theirs", -1)):
        preferred = [pair == (who, who) for pair in pairs]
        inconsistent = [pair[0] != pair[1] for pair in pairs]
        if all(preferred) or (any(preferred) and any(inconsistent)):
            return value
    return 0


def appendix(verdicts):
    """App. D.1: both swapped pairs of one prompt, and at least a tie on the other."""
    pairs = comparisons(verdicts)
    for who, value in (("ours", 1), ("theirs", -1)):
        other = "theirs" if who == "ours" else "ours"
        for one, two in (pairs, pairs[::-1]):
            if one == (who, who) and two != (other, other):
                return value
    return 0


@pytest.mark.parametrize("verdicts", list(itertools.product((FIRST, SECOND), repeat=4)))
def test_both_wordings_of_the_rule_for_a_judge_that_names_one(verdicts):
    assert main_text(verdicts) == appendix(verdicts)
    assert outcomes(as_votes(verdicts)).tolist() == [main_text(verdicts)]


def test_equal_in_both_orders_is_a_tied_result():
    for verdicts in itertools.product((FIRST, SECOND, EQUAL), repeat=4):
        assert outcomes(as_votes(verdicts)).tolist() == [appendix(verdicts)]
    assert outcomes(as_votes([FIRST, SECOND, EQUAL, EQUAL])).tolist() == [1]


def test_an_article_without_an_answer_is_undecided():
    for verdicts in itertools.product((FIRST, SECOND, EQUAL, NONE), repeat=4):
        assert np.isnan(outcomes(as_votes(verdicts))[0]) == (NONE in verdicts)
        missing = [NONE in verdicts[:2], NONE in verdicts[2:]]
        np.testing.assert_array_equal(np.isnan(preferences(as_votes(verdicts)))[0], missing)


def test_a_judge_that_always_names_the_first_prefers_nobody():
    biased = as_votes([FIRST] * 4 * 7)
    assert preferences(biased).tolist() == [[0, 0]] * 7
    made = judgement(biased)
    assert (made.win.value, made.loss.value, made.tie.value) == (0, 0, 1)
    for rates in made.criteria.values():
        assert (rates.consistent.value, rates.first) == (0, 1)


# Ten: won by both criteria, by one and inconsistent, one each, inconsistent, lost, lost, undecided.
ARTICLES = (
    [[FIRST, SECOND, FIRST, SECOND]] * 3
    + [[FIRST, FIRST, FIRST, SECOND]]
    + [[FIRST, SECOND, SECOND, FIRST]] * 2
    + [[FIRST, FIRST, SECOND, SECOND]]
    + [[SECOND, FIRST, SECOND, FIRST]]
    + [[EQUAL, EQUAL, SECOND, FIRST]]
    + [[FIRST, SECOND, NONE, NONE]]
)  # fmt: skip


def made_of(articles):
    return judgement(as_votes([verdict for article in articles for verdict in article]))


def test_rates_by_hand():
    made = made_of(ARTICLES)
    assert (made.num_articles, made.undecided) == (10, 1)
    assert made.win.value == pytest.approx(4 / 9)
    assert made.loss.value == pytest.approx(2 / 9)
    assert made.tie.value == pytest.approx(3 / 9)
    assert made.lead.value == pytest.approx(2 / 9)
    concise, comprehensive = (made.criteria[name] for name in CRITERIA)
    assert [concise.ours.value, concise.theirs.value, concise.consistent.value] == pytest.approx(
        [6 / 10, 1 / 10, 8 / 10]
    )
    assert (concise.first, concise.malformed) == (pytest.approx(11 / 18), 0)
    assert [comprehensive.ours.value, comprehensive.theirs.value] == pytest.approx([4 / 9, 4 / 9])
    assert comprehensive.consistent.value == pytest.approx(8 / 9)
    assert (comprehensive.first, comprehensive.malformed) == (pytest.approx(8 / 18), 2)


def test_swapping_the_policies_swaps_the_rates():
    swapped = [[b, a, d, c] for a, b, c, d in ARTICLES]
    one, other = made_of(ARTICLES), made_of(swapped)
    assert one.win == other.loss
    assert one.loss == other.win
    assert one.tie == other.tie
    assert one.lead.value == -other.lead.value
    assert (one.lead.low, one.lead.high) == pytest.approx((-other.lead.high, -other.lead.low))
    for name in CRITERIA:
        assert one.criteria[name].ours == other.criteria[name].theirs
        assert one.criteria[name].consistent == other.criteria[name].consistent


def test_intervals_are_those_of_shares():
    articles = (ARTICLES[0:1] * 300 + ARTICLES[7:8] * 200 + ARTICLES[4:5] * 500) * 2
    made = made_of(articles)
    for estimate, variance in (
        (made.win, 0.3 * 0.7),
        (made.loss, 0.2 * 0.8),
        (made.tie, 0.5 * 0.5),
        (made.lead, 0.3 + 0.2 - 0.1**2),  # of a number that is 1, -1 or 0
        (made.criteria[CONCISENESS].ours, 0.8 * 0.2),
    ):
        half = 1.96 * math.sqrt(variance / 2000)
        assert estimate.low == pytest.approx(estimate.value - half, abs=0.15 * half)
        assert estimate.high == pytest.approx(estimate.value + half, abs=0.15 * half)
    everything_won = made_of(ARTICLES[:3])
    assert (everything_won.win.low, everything_won.win.high) == (1, 1)


def test_json_and_tables_hold_the_rates():
    made = made_of(ARTICLES)
    fields = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert fields["win"] == {
        "value": made.win.value, "low": made.win.low, "high": made.win.high
    }  # fmt: skip
    assert set(fields) == {
        "win", "loss", "tie", "lead", "criteria", "num_articles", "undecided"
    }  # fmt: skip
    assert fields["criteria"][COMPREHENSIVENESS]["malformed"] == 2
    assert fields["criteria"][CONCISENESS]["first"] == pytest.approx(11 / 18)
    win, loss, tie, lead = made.rows()
    assert win["article"] == "ours wins"
    assert win["share"] == f"0.444 [{made.win.low:.3f}, {made.win.high:.3f}]"
    assert [row["share"][:5] for row in (loss, tie, lead)] == ["0.222", "0.333", "0.222"]
    concise, comprehensive = made.criterion_rows()
    assert concise["criterion"] == CONCISENESS
    assert concise["ours preferred"].startswith("0.600 [")
    assert concise["theirs preferred"].startswith("0.100 [")
    assert concise["consistent"].startswith("0.800 [")
    assert concise["first preferred"] == "0.611"
    assert comprehensive["malformed"] == "2 of 20"


def test_a_judge_that_finds_all_equal_has_no_position_bias_to_measure():
    made = made_of([[EQUAL] * 4] * 2)
    assert made.tie.value == 1
    assert math.isnan(made.criteria[CONCISENESS].first)
    assert made.to_json()["criteria"][CONCISENESS]["first"] is None
    assert made.criteria[CONCISENESS].consistent.value == 1


def test_nothing_decided_is_an_error():
    with pytest.raises(ValueError, match="none of 2 articles was decided"):
        made_of([[NONE, FIRST, FIRST, FIRST], [FIRST, FIRST, NONE, FIRST]])


ASKED = questions(["d0", "d1"], OURS, THEIRS)[:3]


def test_verdicts_may_be_words_and_come_with_text():
    given = list(answered(lambda _: ["first", Verdict.NONE, Answer("second", "why")], ASKED))
    assert given == [Answer(FIRST), Answer(NONE), Answer(SECOND, "why")]
    assert all(type(answer.verdict) is Verdict for answer in given)


def test_answers_come_as_the_judge_gives_them():
    given = []

    def judge(asked):
        for question in asked:
            given.append(question)
            yield FIRST

    answers = answered(judge, ASKED)
    next(answers)
    assert given == ASKED[:1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["first", "FIRST", "first"], r"answered 'FIRST'; expected one of first, second, equal,"),
        (["first", None, "first"], r"answered None"),
        ([1, 2, 1], r"answered 1;"),
        (["first", "second"], r"only 2 answers to 3 questions"),
        (["first"] * 4, r"more answers to 3 questions"),
        ([], r"only 0 answers"),
    ],
)
def test_what_is_no_verdict_is_an_error(given, message):
    with pytest.raises(ValueError, match=message):
        list(judge_lib.answered(lambda _: given, ASKED))
