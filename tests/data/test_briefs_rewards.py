"""Briefs: the analytic rewards against hand-derived values and a simulation of the world."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clp_jax.data.briefs import corpus, language, rewards, world
from clp_jax.data.briefs.language import Claims, Facts, Statement

DOCUMENT = (
    "A goat sleeps during May. The mayor buys a boat. It perhaps happens in Paris and certainly "
    "with cousins. It supposedly happens for forty pounds."
)
SLOT = {slot.name: slot for slot in world.SLOTS}

MALFORMED = [
    "",
    "The mayor bought a boat",
    "the mayor bought a boat.",
    "The mayor buys a boat.",
    "The mayor bought a boat in Paris in Paris.",
    "The mayor bought a boat in Paris in France.",
    "The mayor bought a boat in Paris with cousins.",
    "The mayor bought a boat. The mayor bought a boat.",
    "The mayor bought a boat perhaps in Paris.",
    "The mayor bought a boat in Oslo.",
    "in Paris.",
]
WRONG_CORE = [
    "The farmer bought a boat.",
    "The mayor sold a boat.",
    "The mayor bought a barn.",
    "The mayor bought a barn with cousins in Paris.",
]


def entailment(completion: str, document: str = DOCUMENT) -> float:
    (score,) = rewards.entailment(["prompt"], [completion], document=[document])
    return score


def quality(completion: str, document: str = DOCUMENT) -> float:
    (score,) = rewards.quality(["prompt"], [completion], document=[document])
    return score


# 9 companions in threes, 12 places in threes, 12 months in threes, 8 amounts in fours.
@pytest.mark.parametrize(
    ("completion", "probability"),
    [
        ("The mayor bought a boat.", 1.0),
        ("The mayor bought a boat in Paris.", 0.55),
        ("The mayor bought a boat in France.", 0.55 + 2 * 0.45 / 11),
        ("The mayor bought a boat in Rome.", 0.45 / 11),
        ("The mayor bought a boat in Italy.", 3 * 0.45 / 11),
        ("The mayor bought a boat for large sums.", 0.4 + 3 * 0.6 / 7),
        ("The mayor bought a boat with cousins in Paris.", 0.97 * 0.55),
        ("The mayor bought a boat with cousins for forty pounds in Paris.", 0.97 * 0.4 * 0.55),
        # What the goat does is not what happened to the boat: unreported.
        ("The mayor bought a boat during May.", 0.05 / 12),
        ("The mayor bought a boat during spring.", 0.05 * 3 / 12),
        ("  The mayor bought a boat in Paris.\n", 0.55),
    ],
)
def test_entailment_is_the_log_probability_of_the_claims(completion: str, probability: float):
    assert entailment(completion) == pytest.approx(math.log(probability), abs=1e-12)


@pytest.mark.parametrize("completion", MALFORMED + WRONG_CORE)
def test_malformed_completions_and_wrong_cores_get_the_floor(completion: str):
    assert entailment(completion) == -7.0
    assert quality(completion) == 0.0


def test_entailment_has_a_floor():
    claims = "The mayor bought a boat with pupils for sixty pounds in Rome during May due to rain."
    assert entailment(claims) == -7.0


def simulate(facts: Facts, draws: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What is true in each of many worlds in which the document was written: value indices."""
    truth = {}
    for slot in world.SLOTS:
        count = len(slot.values)
        if slot.name in facts.statements:
            statement = facts.statements[slot.name]
            stated = slot.values.index(statement.value)
            shift = rng.integers(1, count, draws)
            false = rng.random(draws) >= world.HEDGES[statement.hedge]
            truth[slot.name] = (stated + shift * false) % count
        else:
            present = rng.random(draws) < world.UNREPORTED
            truth[slot.name] = np.where(present, rng.integers(0, count, draws), -1)
    return truth


def test_entailment_equals_the_frequency_in_a_simulated_world():
    rng = np.random.default_rng(0)
    draws = 100_000
    for index in range(12):
        facts = corpus.draw("validation", index).facts
        truth = simulate(facts, draws, rng)
        for _ in range(12):
            # Mostly what the document states, or its hypernym, so that it is true often enough.
            details = {}
            for slot in world.SLOTS:
                options = list(rng.choice(slot.phrases, 1))
                if slot.name in facts.statements:
                    value = facts.statements[slot.name].value
                    options += 3 * [value, slot.hypernym(value)]
                if rng.random() < 0.4:
                    details[slot.name] = str(rng.choice(options))
            holds = np.ones(draws, bool)
            for name, phrase in details.items():
                covered = [SLOT[name].values.index(v) for v in SLOT[name].covered(phrase)]
                holds &= np.isin(truth[name], covered)
            score = rewards.entailment_score(facts, Claims(facts.core, details))
            if score > rewards.ENTAILMENT_FLOOR:
                p = math.exp(score)
                assert holds.mean() == pytest.approx(p, abs=5 * math.sqrt(p / draws))


@pytest.mark.parametrize("slot", world.SLOTS, ids=lambda slot: slot.name)
@pytest.mark.parametrize("hedge", [*world.HEDGES, None])
def test_claim_probabilities_are_a_distribution(slot: world.Slot, hedge: str | None):
    statement = None if hedge is None else Statement(slot.values[1], hedge)

    def p(phrase: str) -> float:
        return rewards.claim_probability(slot, phrase, statement)

    total = world.UNREPORTED if hedge is None else 1.0
    assert sum(map(p, slot.values)) == pytest.approx(total)
    assert sum(map(p, slot.groups)) == pytest.approx(total)
    for value in slot.values:
        assert 0 < p(value) <= p(slot.hypernym(value)) < 1


# Salience: companion 3, amount 2, place 1; the document has no time and no reason.
@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("The mayor bought a boat.", 0.0),
        ("The mayor bought a boat with cousins.", 3 / 6),
        ("The mayor bought a boat with relatives.", 1.5 / 6),
        ("The mayor bought a boat with pupils.", 0.0),
        ("The mayor bought a boat with youngsters.", 0.0),
        ("The mayor bought a boat for forty pounds in Paris.", 3 / 6),
        ("The mayor bought a boat during May.", 0.0),
        ("The mayor bought a boat with cousins for forty pounds in Paris during May.", 1.0),
    ],
)
def test_quality_is_the_salience_covered(completion: str, expected: float):
    assert quality(completion) == pytest.approx(expected)


@given(st.integers(0, 10_000), st.data())
@settings(max_examples=50)
def test_stating_more_raises_quality_and_lowers_entailment(index: int, data: st.DataObject):
    facts = corpus.draw("train", index).facts
    details = {name: s.value for name, s in facts.statements.items()}
    fewer = dict(details)
    del fewer[data.draw(st.sampled_from(sorted(details)))]
    more, less = Claims(facts.core, details), Claims(facts.core, fewer)
    assert rewards.quality_score(facts, more) == pytest.approx(1.0)
    assert rewards.quality_score(facts, less) < 1.0
    assert rewards.entailment_score(facts, less) > rewards.entailment_score(facts, more)


# The reference of a document without details is nothing but the core fact.
def test_a_document_without_details_is_covered_by_its_core():
    assert quality("The mayor bought a boat.", "The mayor buys a boat.") == 1.0


def test_a_batch_is_scored_in_order_and_prefixes_of_the_prompt_do_not_matter():
    briefs = [corpus.draw("validation", index) for index in range(20)]
    documents = [brief.document for brief in briefs]
    summaries = [brief.summary for brief in briefs]
    prompts = [f"entailment: 0.4 0.4; rouge: 0.6 0.6. summarize: {d}" for d in documents]
    for reward in (rewards.entailment, rewards.quality):
        scores = reward(prompts, summaries, document=documents, summary=summaries, weight=None)
        one_by_one = [
            reward([""], [s], document=[d])[0] for s, d in zip(summaries, documents, strict=True)
        ]
        assert scores == one_by_one
        assert all(isinstance(score, float) for score in scores)


def test_rewards_declare_what_they_read_and_their_range():
    for reward, score_range in ((rewards.entailment, (-2.25, 0.0)), (rewards.quality, (0.0, 1.0))):
        assert reward.columns == ("document",)
        assert reward.range == score_range


def test_bad_columns_are_refused():
    for reward in (rewards.entailment, rewards.quality):
        with pytest.raises(ValueError, match="not a sentence of a briefs document"):
            reward([""], ["x"], document=["Some other text."])
        with pytest.raises(ValueError, match="zip"):
            reward(["", ""], ["x", "y"], document=[DOCUMENT])


# No wording of one and the same set of claims scores better than another.
def test_only_the_canonical_order_is_read():
    phrases = ["with cousins", "for forty pounds", "in Paris"]
    scores = [
        entailment(f"The mayor bought a boat {' '.join(order)}.")
        for order in itertools.permutations(phrases)
    ]
    assert scores[0] > -7.0
    assert scores[1:] == [-7.0] * 5
    assert language.parse_summary("The mayor bought a boat in Paris with cousins.") is None
