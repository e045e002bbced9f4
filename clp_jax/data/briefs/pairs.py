"""Pairs of briefs from which reward models are learned: hypotheses with a label, and preferences.

A summary claims random details of its document, most of them as a policy would: some of the
stated values, now and then a hypernym. The others are what a reward model must mark down: details
that the document does not state, another core fact, malformed sentences. The analytic rewards
decide: what a learned reward model should come to say is known.
"""

import dataclasses
import math
import random
from collections.abc import Mapping

from clp_jax.data.briefs import corpus
from clp_jax.data.briefs.corpus import choose, shuffled
from clp_jax.data.briefs.language import Claims, Core, Facts, parse_summary, summary_text
from clp_jax.data.briefs.rewards import entailment_score, quality_score
from clp_jax.data.briefs.world import AGENTS, HEDGES, OBJECTS, SLOTS, VERBS

LABELS = ("entailment", "not_entailment")

# Kind of summary -> probability. "stated" claims stated values and their hypernyms only,
# "other_detail" also something that the document does not state, "other_core" another event.
KINDS: Mapping[str, float] = {
    "stated": 0.76,
    "other_detail": 0.16,
    "other_core": 0.04,
    "malformed": 0.04,
}

# Number of stated details that a summary claims -> weight. Hypotheses have few, for about as many
# of them to be entailed as not; what is preferred is decided among summaries of all lengths.
HYPOTHESIS_DETAILS: Mapping[int, float] = {0: 0.06, 1: 0.26, 2: 0.3, 3: 0.22, 4: 0.1, 5: 0.06}
PREFERENCE_DETAILS: Mapping[int, float] = dict.fromkeys(range(6), 1.0)

# Probability that a summary keeps the surest details, as a policy learns to, and not random ones.
SUREST_RATE = 0.5
# Probability that a stated detail is claimed by its hypernym.
HYPERNYM_RATE = 0.2
# Probability that a detail that is not stated is one that a distractor sentence mentions.
DISTRACTOR_RATE = 0.5
# The greater, the rarer a drawn preference for the summary of the lower quality.
PREFERENCE_SCALE = 8.0


def nli(split: str, size: int, seed: int = 0, hard: bool = True) -> list[dict[str, str]]:
    """Documents with a hypothesis each, and whether the document entails it.

    Args:
      split: "train" or "validation", of the documents.
      size: number of examples.
      seed: of the documents and the hypotheses.
      hard: "entailment" iff the hypothesis is true with a probability >= 1/2 given the document;
        else the label is drawn with that probability (so that the logarithm of a calibrated model's
        probability of "entailment" is the analytic entailment reward). The premises and the
        hypotheses are the same for both.

    Returns:
      {"premise", "hypothesis", "label"} of each example, the label one of `LABELS`. The i-th
      depends on the split, the seed, `hard` and i only.

    Raises:
      ValueError: unknown split or a negative size.
    """

    def example(index: int) -> dict[str, str]:
        brief = corpus.draw(split, index, seed)
        rng = random.Random(f"briefs_nli/{seed}/{split}/{index}")
        hypothesis = draw_summary(brief, HYPOTHESIS_DETAILS, rng)
        probability = math.exp(entailment_score(brief.facts, parse_summary(hypothesis)))
        entailed = probability >= 0.5 if hard else rng.random() < probability
        label = LABELS[0] if entailed else LABELS[1]
        return {"premise": brief.document, "hypothesis": hypothesis, "label": label}

    return corpus.examples(example, split, size)


def preferences(split: str, size: int, seed: int = 0, hard: bool = True) -> list[dict[str, str]]:
    """Documents with two different summaries each, the better one first, by the analytic quality.

    Args:
      split: "train" or "validation", of the documents.
      size: number of examples.
      seed: of the documents and the summaries.
      hard: the better summary is of strictly higher quality; else summary 1 is preferred to 2 with
        the probability sigmoid(`PREFERENCE_SCALE` · (quality 1 - quality 2)), as Bradley and Terry
        (1952) have it.

    Returns:
      {"post", "better", "worse"} of each example. The i-th depends on the split, the seed, `hard`
      and i only.

    Raises:
      ValueError: unknown split or a negative size.
    """

    def example(index: int) -> dict[str, str]:
        brief = corpus.draw(split, index, seed)
        rng = random.Random(f"briefs_preferences/{seed}/{split}/{index}")
        while True:
            one, two = (draw_summary(brief, PREFERENCE_DETAILS, rng) for _ in range(2))
            lead = _quality(brief.facts, one) - _quality(brief.facts, two)
            if one != two and not (hard and lead == 0):
                break
        if hard:
            first = lead > 0
        else:
            first = rng.random() < 1 / (1 + math.exp(-PREFERENCE_SCALE * lead))
        better, worse = (one, two) if first else (two, one)
        return {"post": brief.document, "better": better, "worse": worse}

    return corpus.examples(example, split, size)


def draw_summary(
    brief: corpus.Brief, detail_counts: Mapping[int, float], rng: random.Random
) -> str:
    """A random summary of a document; its kind has the probabilities `KINDS`.

    Args:
      brief: the document; its reference summary and its truth are not read.
      detail_counts: number of stated details that the summary claims -> weight; a document that
        states fewer has all of them claimed.
      rng: the source of randomness.

    Returns:
      A text, well-formed (`language.parse_summary`) unless its kind is "malformed".
    """
    (kind,) = rng.choices(tuple(KINDS), tuple(KINDS.values()))
    core, details = brief.facts.core, stated_details(brief.facts, detail_counts, rng)
    if kind == "other_core":
        core = other_core(core, rng)
    if kind == "other_detail":
        for _ in range(1 if rng.random() < 0.7 else 2):
            details |= other_detail(brief, rng)
    text = summary_text(Claims(core, details))
    return malformed(text, rng) if kind == "malformed" else text


def _quality(facts: Facts, summary: str) -> float:
    return quality_score(facts, parse_summary(summary))


def stated_details(
    facts: Facts, detail_counts: Mapping[int, float], rng: random.Random
) -> dict[str, str]:
    """Slot name -> a claim that the document states, for some of the slots that it reports."""
    (count,) = rng.choices(tuple(detail_counts), tuple(detail_counts.values()))
    order = {name: rng.random() for name in facts.statements}
    if rng.random() < SUREST_RATE:
        order = {name: -HEDGES[s.hedge] for name, s in facts.statements.items()}
    kept = sorted(order, key=order.__getitem__)[:count]
    details = {}
    for slot in SLOTS:
        if slot.name in kept:
            value = facts.statements[slot.name].value
            details[slot.name] = slot.hypernym(value) if rng.random() < HYPERNYM_RATE else value
    return details


def other_detail(brief: corpus.Brief, rng: random.Random) -> dict[str, str]:
    """{slot name: a claim that is neither the stated value nor its hypernym}, of a random slot."""
    slot = choose(SLOTS, rng)
    statement = brief.facts.statements.get(slot.name)
    stated = () if statement is None else (statement.value, slot.hypernym(statement.value))
    others = [phrase for phrase in slot.phrases if phrase not in stated]
    # That a phrase occurs in the document must not be enough for a reward model.
    mentioned = [phrase for phrase in others if phrase in brief.document]
    if mentioned and rng.random() < DISTRACTOR_RATE:
        others = mentioned
    return {slot.name: choose(others, rng)}


def other_core(core: Core, rng: random.Random) -> Core:
    """The core fact with another agent, verb or object."""
    part, words = choose([("agent", AGENTS), ("verb", tuple(VERBS)), ("object", OBJECTS)], rng)
    others = [word for word in words if word != getattr(core, part)]
    return dataclasses.replace(core, **{part: choose(others, rng)})


def malformed(text: str, rng: random.Random) -> str:
    """`text` with words dropped, shuffled or repeated, or without its end, and not well-formed."""
    damaged = text
    # The sentence without "in Paris", say, would be well-formed.
    while parse_summary(damaged) is not None:
        words = text.split()
        damage = choose(("drop", "shuffle", "repeat", "cut"), rng)
        position = int(rng.random() * len(words))
        if damage == "drop":
            words = [word for word in words if rng.random() > 0.2]
        elif damage == "shuffle":
            words = shuffled(words, rng)
        elif damage == "repeat":
            words.insert(position, words[position])
        else:
            words = words[: position + 1]
        damaged = " ".join(words) or text
    return damaged
