"""Briefs: hypotheses and preferences, against the analytic rewards."""

import collections
import math

import numpy as np
import pytest

from clp_jax.data.briefs import corpus, pairs, rewards
from clp_jax.data.briefs.language import parse_document, parse_summary
from clp_jax.data.briefs.world import SLOTS

SLOT = {slot.name: slot for slot in SLOTS}


@pytest.fixture(scope="module")
def hypotheses():
    return pairs.nli("train", 4000)


@pytest.fixture(scope="module")
def drawn():
    return pairs.nli("train", 8000, hard=False)


def probability(row):
    (score,) = rewards.entailment([""], [row["hypothesis"]], document=[row["premise"]])
    return math.exp(score)


def kind(document, summary):
    facts, claims = parse_document(document), parse_summary(summary)
    if claims is None:
        return "malformed"
    if claims.core != facts.core:
        return "other_core"
    for name, phrase in claims.details.items():
        statement = facts.statements.get(name)
        if statement is None or not rewards.detail_credit(SLOT[name], phrase, statement):
            return "other_detail"
    return "stated"


def test_labels_agree_with_the_analytic_probability(hypotheses):
    for row in hypotheses:
        assert (row["label"] == "entailment") == (probability(row) >= 0.5)
    entailed = np.mean([row["label"] == "entailment" for row in hypotheses])
    assert 0.4 < entailed < 0.6
    # All is lost for a model that only looks whether the details are stated.
    stated = [
        row["label"] for row in hypotheses if kind(row["premise"], row["hypothesis"]) == "stated"
    ]
    assert 0.3 < np.mean([label == "not_entailment" for label in stated]) < 0.6


def test_most_hypotheses_are_what_a_policy_would_write(hypotheses):
    kinds = collections.Counter(kind(row["premise"], row["hypothesis"]) for row in hypotheses)
    shares = {name: count / len(hypotheses) for name, count in kinds.items()}
    assert shares == pytest.approx(pairs.KINDS, abs=0.025)
    lengths = collections.Counter(
        len(parse_summary(row["hypothesis"]).details)
        for row in hypotheses
        if kind(row["premise"], row["hypothesis"]) == "stated"
    )
    assert sorted(lengths) == [0, 1, 2, 3, 4, 5]
    assert min(lengths.values()) > 40


def test_drawn_labels_are_calibrated(drawn, hypotheses):
    texts = [(row["premise"], row["hypothesis"]) for row in hypotheses]
    assert [(row["premise"], row["hypothesis"]) for row in drawn[:4000]] == texts
    expected = np.array([probability(row) for row in drawn])
    entailed = np.array([row["label"] == "entailment" for row in drawn])
    bins = np.digitize(expected, [0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 0.95])
    for i in range(8):
        p, hit = expected[bins == i], entailed[bins == i]
        assert len(p) > 150
        assert abs(hit.sum() - p.sum()) <= 4 * math.sqrt((p * (1 - p)).sum())


def test_preferences_go_by_quality():
    rows = pairs.preferences("train", 2000)
    for row in rows:
        post = [row["post"]] * 2
        better, worse = rewards.quality(["", ""], [row["better"], row["worse"]], document=post)
        assert better > worse
    kinds = collections.Counter(kind(row["post"], row[side]) for row in rows for side in row
                                if side != "post")  # fmt: skip
    assert set(kinds) == set(pairs.KINDS)
    assert kinds["stated"] > 0.6 * 4000


def test_drawn_preferences_are_calibrated():
    rows = pairs.preferences("train", 4000, hard=False)
    leads = []
    for row in rows:
        assert row["better"] != row["worse"]
        post = [row["post"]] * 2
        better, worse = rewards.quality(["", ""], [row["better"], row["worse"]], document=post)
        leads.append(better - worse)
    leads = np.array(leads)
    assert (leads == 0).sum() > 40
    # Of the pairs that differ by so much, sigmoid(8 · difference) have the greater quality first.
    sizes = np.digitize(np.abs(leads), [1e-9, 0.1, 0.2, 0.3, 0.5])
    for i in range(1, 6):
        p = 1 / (1 + np.exp(-8 * np.abs(leads[sizes == i])))
        assert len(p) > 100
        spread = math.sqrt((p * (1 - p)).sum())
        assert abs((leads[sizes == i] > 0).sum() - p.sum()) <= 4 * spread + 1


@pytest.mark.parametrize("generate", [pairs.nli, pairs.preferences])
def test_an_example_depends_on_split_seed_and_index_only(generate):
    assert generate("train", 30)[:7] == generate("train", 7)
    assert generate("train", 7, seed=1) != generate("train", 7, seed=2)
    for split in corpus.SPLITS:
        for row in generate(split, 200, seed=4):
            assert corpus.split_of(parse_document(next(iter(row.values())))) == split
    documents = [next(iter(row.values())) for row in generate("validation", 5, seed=6)]
    assert documents == [corpus.draw("validation", i, 6).document for i in range(5)]


@pytest.mark.parametrize("generate", [pairs.nli, pairs.preferences])
def test_bad_generation(generate):
    with pytest.raises(ValueError, match="unknown briefs split 'test'"):
        generate("test", 0)
    with pytest.raises(ValueError, match=r"must be >= 0, got -1"):
        generate("train", -1)
