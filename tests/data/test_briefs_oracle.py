"""Briefs: the oracle of the front against rouge_score, enumeration and random summaries."""

import itertools
import math
import random

import numpy as np
import pytest
from rouge_score import rouge_scorer

from clp_jax.data.briefs import corpus, language, oracle, rewards, world
from clp_jax.data.briefs.language import Claims, Core, Facts, Statement

GRID = np.stack([np.linspace(1, 0, 11), np.linspace(0, 1, 11)], axis=1)
SLOT = {slot.name: slot for slot in world.SLOTS}
CORE = Core("mayor", "buys", "boat")
TWO_FACTS = [
    Facts(CORE, {"place": Statement("in Rome", "perhaps"), "reason": Statement("due to rain", h)})
    for h in ("certainly", "supposedly")
] + [
    Facts(
        CORE,
        {
            "companion": Statement("with clerks", "probably"),
            "amount": Statement("for sixty pennies", "reportedly"),
        },
    )
]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return [record["document"] for record in corpus.generate("validation", 150)]


def reference_distribution(facts: Facts) -> list[tuple[str, float]]:
    """Every reference summary of a document with its probability, from the world's definition."""
    per_slot = []
    for name, statement in facts.statements.items():
        slot = SLOT[name]
        outcomes = [({}, 1 - slot.inclusion)]
        for value in slot.values:
            true = world.HEDGES[statement.hedge]
            if value != statement.value:
                true = (1 - true) / (len(slot.values) - 1)
            outcomes.append(({name: value}, slot.inclusion * true * 0.85))
            outcomes.append(({name: slot.hypernym(value)}, slot.inclusion * true * 0.15))
        per_slot.append(outcomes)
    references = []
    for combination in itertools.product(*per_slot):
        details = {name: phrase for part, _ in combination for name, phrase in part.items()}
        text = language.summary_text(Claims(facts.core, details))
        references.append((text, math.prod(p for _, p in combination)))
    return references


def rouge(reference: str, completion: str, use_stemmer: bool) -> float:
    scorer = rouge_scorer.RougeScorer(["rougeLsum"], use_stemmer=use_stemmer)
    return 100.0 * scorer.score(reference, completion)["rougeLsum"].fmeasure


def test_a_document_has_a_candidate_for_every_choice():
    texts = [language.summary_text(claims) for claims in oracle.candidates(TWO_FACTS[0])]
    assert texts == [
        "The mayor bought a boat.",
        "The mayor bought a boat due to rain.",
        "The mayor bought a boat due to bad weather.",
        "The mayor bought a boat in Rome.",
        "The mayor bought a boat in Rome due to rain.",
        "The mayor bought a boat in Rome due to bad weather.",
        "The mayor bought a boat in Italy.",
        "The mayor bought a boat in Italy due to rain.",
        "The mayor bought a boat in Italy due to bad weather.",
    ]
    for index in range(30):
        facts = corpus.draw("train", index).facts
        candidates = oracle.candidates(facts)
        assert len({language.summary_text(c) for c in candidates}) == 3 ** len(facts.statements)


# The closed form adds slots up: that takes words that no two slots, and no slot and core, share.
@pytest.mark.parametrize("use_stemmer", [False, True])
def test_expected_rouge_is_that_of_rouge_score_over_all_references(use_stemmer: bool):
    facts = TWO_FACTS[0] if use_stemmer else TWO_FACTS[2]
    references = reference_distribution(facts)
    assert sum(p for _, p in references) == pytest.approx(1.0)
    exact = [
        sum(p * rouge(text, language.summary_text(claims), use_stemmer) for text, p in references)
        for claims in oracle.candidates(facts)
    ]
    np.testing.assert_allclose(oracle.expected_rouge(facts), exact, rtol=1e-9)


def test_expected_rouge_is_that_of_rouge_score_over_sampled_references():
    facts = next(
        brief.facts
        for brief in (corpus.draw("validation", index) for index in itertools.count())
        if len(brief.facts.statements) == 5
    )
    rng = random.Random(0)
    references = [
        language.summary_text(corpus.draw_reference(facts, corpus.draw_truth(facts, rng), rng))
        for _ in range(400)
    ]
    expected = oracle.expected_rouge(facts)
    candidates = oracle.candidates(facts)
    for index in (0, 40, 121, 200, 242):
        text = language.summary_text(candidates[index])
        sampled = [rouge(reference, text, use_stemmer=True) for reference in references]
        error = np.std(sampled) / math.sqrt(len(sampled))
        assert np.mean(sampled) == pytest.approx(expected[index], abs=4.5 * error)


def test_words_belong_to_one_slot_with_and_without_stemming():
    core = [f"The {agent} x a x" for agent in world.AGENTS]
    core += [f"x {verb} a {thing}" for verb in world.VERBS.values() for thing in world.OBJECTS]
    sources = [core, *(slot.phrases for slot in world.SLOTS)]
    stem = rouge_scorer.tokenizers.DefaultTokenizer(use_stemmer=True).tokenize
    plain = rouge_scorer.tokenizers.DefaultTokenizer(use_stemmer=False).tokenize
    for tokenize in (stem, plain):
        words = [{w for text in texts for w in tokenize(text)} for texts in sources]
        for first, second in itertools.combinations(words, 2):
            assert not first & second
    # Distinct phrases share the same words stemmed or not, so that ROUGE does not depend on it.
    for slot in world.SLOTS:
        for a, b in itertools.combinations(slot.phrases, 2):
            assert oracle.common_subsequence(plain(a), plain(b)) == oracle.common_subsequence(
                stem(a), stem(b)
            )


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [("", "ab", 0), ("abc", "abc", 3), ("abcbdab", "bdcaba", 4), ("ab", "ba", 1)],
)
def test_longest_common_subsequence(a: str, b: str, length: int):
    assert oracle.common_subsequence(a, b) == length


def test_exact_rewards_of_candidates_are_the_normalised_rewards():
    for index in range(5):
        brief = corpus.draw("validation", index)
        texts = [language.summary_text(c) for c in oracle.candidates(brief.facts)]
        columns = {"document": [brief.document] * len(texts)}
        values = oracle.expected_rewards(brief.facts, ("quality", "entailment"))
        np.testing.assert_allclose(values[:, 0], rewards.quality(texts, texts, **columns))
        scores = np.array(rewards.entailment(texts, texts, **columns))
        np.testing.assert_allclose(values[:, 1], 1 + scores / 2.25)


def test_the_front_is_the_mean_of_the_best_candidates(documents):
    expected = np.zeros(2)
    for document in documents[:20]:
        values = oracle.expected_rewards(language.parse_document(document))
        expected += max(values, key=lambda value: 0.3 * value[0] + 0.7 * value[1]) / 20
    front = oracle.front(documents[:20], np.array([[0.3, 0.7]]))
    np.testing.assert_allclose(front, [expected])
    best = oracle.best_summary(documents[0], (0.3, 0.7))
    texts = [
        language.summary_text(c) for c in oracle.candidates(language.parse_document(documents[0]))
    ]
    values = oracle.expected_rewards(language.parse_document(documents[0])) @ [0.3, 0.7]
    assert values[texts.index(best)] == values.max()


@pytest.mark.parametrize("pair", [("entailment", "rouge"), ("entailment", "quality")])
def test_the_front_is_a_wide_concave_trade_off(documents, pair):
    front = oracle.front(documents, GRID, pair)
    assert np.all(np.diff(front[:, 0]) <= 1e-12)
    assert np.all(np.diff(front[:, 1]) >= -1e-12)
    assert np.all(front[0] - front[-1] >= [0.75, -2.0])
    assert np.all(front[-1] - front[0] >= [-2.0, 0.75])
    assert np.all((front >= -0.01) & (front <= 1.01))
    # At least eight different summaries, each above the chord of the ends.
    distinct = np.unique(front.round(6), axis=0)
    assert len(distinct) >= 8
    chord = np.interp(distinct[:, 0], front[::-1, 0][[0, -1]], front[::-1, 1][[0, -1]])
    assert np.all(distinct[1:-1, 1] > chord[1:-1] + 0.03)
    # Each point is the best of all points at its own weighting.
    values = GRID @ front.T
    np.testing.assert_allclose(np.diag(values), values.max(axis=1))


def test_the_ends_of_the_front(documents):
    facts = language.parse_document(documents[0])
    everything = {name: statement.value for name, statement in facts.statements.items()}
    core = language.summary_text(Claims(facts.core, {}))
    assert oracle.best_summary(documents[0], (1.0, 0.0)) == core
    full = language.summary_text(Claims(facts.core, everything))
    assert oracle.best_summary(documents[0], (0.0, 1.0), ("entailment", "quality")) == full


# Candidates are only some of the things that a summary can say: nothing else does better.
def test_no_claims_beat_the_oracle():
    rng = np.random.default_rng(0)
    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [1, 3, 1]], float)
    weights /= weights.sum(axis=1, keepdims=True)
    names = ("entailment", "rouge", "quality")
    for facts in TWO_FACTS:
        best = (weights @ oracle.expected_rewards(facts, names).T).max(axis=1)
        references = [(text[:-1].lower().split(), p) for text, p in reference_distribution(facts)]
        for _ in range(40):
            details = {
                slot.name: str(rng.choice(slot.phrases))
                for slot in world.SLOTS
                if rng.random() < (0.7 if slot.name in facts.statements else 0.1)
            }
            claims = Claims(facts.core, details)
            words = language.summary_text(claims)[:-1].lower().split()
            expected_rouge = sum(
                200 * p * oracle.common_subsequence(words, text) / (len(words) + len(text))
                for text, p in references
            )
            value = [
                1 + rewards.entailment_score(facts, claims) / 2.25,
                (expected_rouge - 52) / 32,
                rewards.quality_score(facts, claims),
            ]
            assert np.all(weights @ value <= best + 1e-9)


def test_more_details_mean_more_rouge():
    scores = []
    for index in range(50):
        facts = corpus.draw("validation", index).facts
        by_count = [[] for _ in range(6)]
        for claims, score in zip(
            oracle.candidates(facts), oracle.expected_rouge(facts), strict=True
        ):
            if all(claims.details[n] == facts.statements[n].value for n in claims.details):
                by_count[len(claims.details)].append(score)
        means = [np.mean(group) for group in by_count if group]
        assert np.all(np.diff(means) > 0)
        scores.append((means[0], means[-1]))
    # The normalising range spans what reasonable summaries get.
    low, high = np.mean(scores, axis=0)
    assert 52 < low < 58
    assert 78 < high < 84


def test_bad_arguments_are_refused(documents):
    with pytest.raises(ValueError, match=r"shape \[weightings, 2\].*got \(11, 3\)"):
        oracle.front(documents, np.ones((11, 3)) / 3)
    with pytest.raises(ValueError, match="at least one document"):
        oracle.front([], GRID)
    with pytest.raises(ValueError, match="unknown reward of the briefs oracle 'ruge'"):
        oracle.front(documents, GRID, ("entailment", "ruge"))
