"""Briefs: generation, and text read back."""

import collections
import hashlib
import json
import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clp_jax.data.briefs import corpus, language, world
from clp_jax.data.briefs.language import Claims, Core, Facts, Statement

CORES = st.builds(
    Core,
    st.sampled_from(world.AGENTS),
    st.sampled_from(sorted(world.VERBS)),
    st.sampled_from(world.OBJECTS),
)
DETAILS = st.fixed_dictionaries(
    {}, optional={slot.name: st.sampled_from(slot.phrases) for slot in world.SLOTS}
)
CLAIMS = st.builds(Claims, CORES, DETAILS)


@pytest.fixture(scope="module")
def briefs() -> list[corpus.Brief]:
    return [corpus.draw("train", index) for index in range(4000)]


def assert_binomial(successes: int, trials: int, probability: float) -> None:
    spread = math.sqrt(trials * probability * (1 - probability))
    assert abs(successes - trials * probability) <= 4.5 * spread


# Pinned so that a change of the corpus is noticed: published figures depend on it.
def test_the_corpus_is_the_published_one():
    texts = json.dumps([corpus.generate(split, 50, seed=0) for split in corpus.SPLITS])
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "eab58e6ee218f1c8"


def test_an_example_depends_on_split_seed_and_index_only():
    assert corpus.generate("train", 30)[:7] == corpus.generate("train", 7)
    assert corpus.generate("train", 7, seed=1) != corpus.generate("train", 7, seed=2)
    assert corpus.generate("validation", 7) != corpus.generate("train", 7)
    brief = corpus.draw("validation", 3, seed=5)
    assert corpus.generate("validation", 4, seed=5)[3] == {
        "document": brief.document,
        "summary": brief.summary,
    }


# No two seeds, sizes or orders of sentences can bring the same facts into both splits.
def test_facts_decide_the_split():
    for split in corpus.SPLITS:
        for seed in (0, 1):
            for record in corpus.generate(split, 500, seed):
                facts = language.parse_document(record["document"])
                assert corpus.split_of(facts) == split


def test_documents_of_train_and_validation_are_disjoint():
    train = {r["document"] for r in corpus.generate("train", 3000)}
    validation = {r["document"] for r in corpus.generate("validation", 1000)}
    assert len(train) == 3000
    assert len(validation) == 1000
    assert not train & validation


def test_validation_is_a_quarter_of_the_facts(briefs):
    rng = random.Random(0)
    splits = [corpus.split_of(corpus._draw_facts(rng)) for _ in range(4000)]
    assert_binomial(splits.count("validation"), 4000, 0.25)


def test_hedged_statements_are_true_as_often_as_they_say(briefs):
    true = collections.Counter()
    stated = collections.Counter()
    for brief in briefs:
        for name, statement in brief.facts.statements.items():
            stated[statement.hedge] += 1
            true[statement.hedge] += brief.truth[name] == statement.value
    assert set(stated) == set(world.HEDGES)
    for hedge, probability in world.HEDGES.items():
        assert_binomial(true[hedge], stated[hedge], probability)


def test_the_truth_behind_a_false_statement_is_uniform_over_the_other_values():
    (place,) = [slot for slot in world.SLOTS if slot.name == "place"]
    facts = Facts(Core("mayor", "buys", "boat"), {"place": Statement("in Rome", "supposedly")})
    rng = random.Random(0)
    truths = collections.Counter(corpus.draw_truth(facts, rng)["place"] for _ in range(20_000))
    assert set(truths) == set(place.values)
    for value in place.values:
        assert_binomial(truths[value], 20_000, 0.4 if value == "in Rome" else 0.6 / 11)


def test_references_state_true_values_or_their_hypernyms(briefs):
    included = collections.Counter()
    reported = collections.Counter()
    hypernyms = details = 0
    for brief in briefs:
        claims = language.parse_summary(brief.summary)
        assert claims is not None
        assert claims.core == brief.facts.core
        assert set(claims.details) <= set(brief.facts.statements)
        for slot in world.SLOTS:
            reported[slot.name] += slot.name in brief.truth
            if slot.name in claims.details:
                included[slot.name] += 1
                details += 1
                truth = brief.truth[slot.name]
                assert truth in slot.covered(claims.details[slot.name])
                hypernyms += claims.details[slot.name] != truth
    for slot in world.SLOTS:
        assert_binomial(included[slot.name], reported[slot.name], slot.inclusion)
    assert_binomial(hypernyms, details, world.HYPERNYM_RATE)


def test_documents_have_up_to_five_details_each_with_its_own_hedge(briefs):
    counts = collections.Counter()
    for brief in briefs:
        hedges = [statement.hedge for statement in brief.facts.statements.values()]
        assert len(set(hedges)) == len(hedges)
        counts[len(hedges)] += 1
        assert len(hedges) + brief.document.count("A ") == world.STATEMENTS_AND_DISTRACTORS
    for count, probability in world.STATEMENT_COUNTS.items():
        assert_binomial(counts[count], len(briefs), probability)


def test_the_text_is_short(briefs):
    def words(text: str) -> int:
        return len(re.findall(r"\w+|\.", text))

    assert max(words(brief.document) for brief in briefs) <= 47
    assert max(words(brief.summary) for brief in briefs) <= 24
    vocabulary = {w for b in briefs for w in re.findall(r"\w+", b.document + b.summary)}
    assert 150 <= len(vocabulary) <= 350


def test_documents_are_read_back(briefs):
    for brief in briefs[:1000]:
        assert language.parse_document(brief.document) == brief.facts
        assert list(language.parse_document(brief.document).statements) == list(
            brief.facts.statements
        )


def test_tense_differs_between_document_and_summary():
    brief = corpus.draw("train", 0)
    verb = brief.facts.core.verb
    assert f" {verb} a " in brief.document
    assert f" {world.VERBS[verb]} a " in brief.summary
    assert not set(world.VERBS) & set(world.VERBS.values())


@given(CLAIMS)
def test_claims_survive_the_round_trip_through_text(claims: Claims):
    assert language.parse_summary(language.summary_text(claims)) == claims


@given(CLAIMS, st.data())
@settings(max_examples=200)
def test_what_is_read_as_a_summary_is_written_the_same_way(claims: Claims, data: st.DataObject):
    words = language.summary_text(claims).split()
    first = data.draw(st.integers(0, len(words) - 1))
    second = data.draw(st.integers(0, len(words) - 1))
    for broken in (
        [*words[:first], words[second], *words[first:]],
        [*words[:first], *words[first + 1 :]],
        [*words[:first], words[second], *words[first + 1 :]],
    ):
        text = " ".join(broken)
        parsed = language.parse_summary(text)
        assert parsed is None or language.summary_text(parsed) == text


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "one core fact, found 0"),
        ("The mayor buys a boat. The mayor buys a boat.", "one core fact, found 2"),
        ("The mayor buys a boat. It rains.", "not a sentence of a briefs document: 'It rains.'"),
        ("summarize: The mayor buys a boat.", "not a sentence"),
        ("The mayor buys a boat", "not a sentence"),
    ],
)
def test_other_documents_are_refused(document: str, message: str):
    with pytest.raises(ValueError, match=message):
        language.parse_document(document)


def test_bad_splits_and_sizes_are_refused():
    with pytest.raises(ValueError, match="unknown briefs split 'valid'; nearest: validation"):
        corpus.generate("valid", 1)
    with pytest.raises(ValueError, match="must be >= 0, got -1"):
        corpus.generate("train", -1)
