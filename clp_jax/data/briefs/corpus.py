"""Documents and reference summaries of briefs, drawn deterministically.

A reference states the core fact and a random subset of the document's details, with their true
values: where a hedged statement was false, the reference contradicts the document. More details
therefore mean more ROUGE and more quality, but less entailment.

The facts of a document decide its split, by a hash: no document, and no two documents that say
the same of their event, can occur in two splits, whatever the seeds and the sizes.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from clp_jax.data.briefs.language import (
    Claims,
    Core,
    Facts,
    Statement,
    core_sentence,
    detail_sentence,
    distractor_sentence,
    summary_text,
)
from clp_jax.data.briefs.world import (
    AGENTS,
    BYSTANDERS,
    HEDGES,
    HYPERNYM_RATE,
    OBJECTS,
    PASTIMES,
    SLOTS,
    STATEMENT_COUNTS,
    STATEMENTS_AND_DISTRACTORS,
    VERBS,
)
from clp_jax.reporting.errors import unknown_name

SPLITS = ("train", "validation")

# One in so many facts belongs to validation.
VALIDATION_DIVISOR = 4

T = TypeVar("T")


@dataclass(frozen=True)
class Brief:
    """One example.

    Attributes:
      document: a few short sentences, the input.
      summary: the reference, one sentence.
      facts: what the document says.
      truth: slot name -> true value phrase, of the slots that the document reports.
    """

    document: str
    summary: str
    facts: Facts
    truth: Mapping[str, str]


def generate(split: str, size: int, seed: int = 0) -> list[dict[str, str]]:
    """The first `size` examples of a split as records.

    Args:
      split: "train" or "validation".
      size: number of examples.
      seed: of the whole corpus; other seeds give other examples of the same splits.

    Returns:
      {"document": ..., "summary": ...} of each example. The i-th depends on the split, the seed
      and i only.

    Raises:
      ValueError: unknown split or a negative size.
    """

    def example(index: int) -> dict[str, str]:
        brief = draw(split, index, seed)
        return {"document": brief.document, "summary": brief.summary}

    return examples(example, split, size)


def examples(
    example: Callable[[int], dict[str, str]], split: str, size: int
) -> list[dict[str, str]]:
    """The first `size` records of a split, each made by `example` of its index; see `generate`."""
    if split not in SPLITS:
        raise ValueError(unknown_name("briefs split", split, SPLITS))
    if size < 0:
        raise ValueError(f"the size of a briefs split must be >= 0, got {size}")
    return [example(index) for index in range(size)]


def draw(split: str, index: int, seed: int = 0) -> Brief:
    """Example `index` of a split, with what the world model knows of it; see `generate`."""
    if split not in SPLITS:
        raise ValueError(unknown_name("briefs split", split, SPLITS))
    # Python fixes the sequence of random() for a seed for good, which numpy does not promise.
    rng = random.Random(f"briefs/{seed}/{split}/{index}")
    facts = _draw_facts(rng)
    while split_of(facts) != split:
        facts = _draw_facts(rng)
    truth = draw_truth(facts, rng)
    summary = summary_text(draw_reference(facts, truth, rng))
    return Brief(_document(facts, rng), summary, facts, truth)


def split_of(facts: Facts) -> str:
    """The split to which every document with these facts belongs."""
    core = facts.core
    words = [core.agent, core.verb, core.object]
    words += [f"{s.hedge} {s.value}" for s in facts.statements.values()]
    digest = hashlib.sha256("|".join(words).encode()).digest()
    held_out = int.from_bytes(digest[:8], "big") % VALIDATION_DIVISOR == 0
    return "validation" if held_out else "train"


def draw_truth(facts: Facts, rng: random.Random) -> dict[str, str]:
    """The true values of the reported slots, given what the document states."""
    truth = {}
    for slot in SLOTS:
        statement = facts.statements.get(slot.name)
        if statement is None:
            continue
        if rng.random() < HEDGES[statement.hedge]:
            truth[slot.name] = statement.value
        else:
            others = [value for value in slot.values if value != statement.value]
            truth[slot.name] = choose(others, rng)
    return truth


def draw_reference(facts: Facts, truth: Mapping[str, str], rng: random.Random) -> Claims:
    """What a reference summary claims, given the truth."""
    details = {}
    for slot in SLOTS:
        if slot.name in truth and rng.random() < slot.inclusion:
            value = truth[slot.name]
            details[slot.name] = slot.hypernym(value) if rng.random() < HYPERNYM_RATE else value
    return Claims(facts.core, details)


def _draw_facts(rng: random.Random) -> Facts:
    core = Core(choose(AGENTS, rng), choose(tuple(VERBS), rng), choose(OBJECTS, rng))
    (count,) = rng.choices(tuple(STATEMENT_COUNTS), tuple(STATEMENT_COUNTS.values()))
    reported = sorted(shuffled(range(len(SLOTS)), rng)[:count])
    # Each hedge at most once, so that every document has a trade-off.
    hedges = shuffled(tuple(HEDGES), rng)
    return Facts(
        core,
        {
            SLOTS[i].name: Statement(choose(SLOTS[i].values, rng), hedge)
            for i, hedge in zip(reported, hedges, strict=False)
        },
    )


def _document(facts: Facts, rng: random.Random) -> str:
    """Core fact, then its details; distractors before and after, never between."""
    statements = shuffled(tuple(facts.statements.values()), rng)
    pairs = [statements[i : i + 2] for i in range(0, len(statements), 2)]
    event = [core_sentence(facts.core), *map(detail_sentence, pairs)]
    before: list[str] = []
    after: list[str] = []
    for _ in range(STATEMENTS_AND_DISTRACTORS - len(statements)):
        slot = choose(SLOTS, rng)
        sentence = distractor_sentence(
            choose(BYSTANDERS, rng), choose(PASTIMES, rng), choose(slot.values, rng)
        )
        (before if rng.random() < 0.5 else after).append(sentence)
    return " ".join(before + event + after)


def choose(items: Sequence[T], rng: random.Random) -> T:
    """One of the items, each equally likely."""
    return items[int(rng.random() * len(items))]


def shuffled(items: Sequence[T], rng: random.Random) -> list[T]:
    """The items in a random order."""
    return sorted(items, key=lambda _: rng.random())
