"""Exact rewards of briefs: what a completion claims, scored against what its document says.

Both are host rewards, `reward(prompts, completions, **columns) -> scores`. They read the document
from the column "document", since the prompt may have a prefix. `columns` names what they read and
`range` is the affine range that maps a raw score to about [0, 1], without clipping.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from clp_jax.data.briefs.language import Claims, Facts, Statement, parse_document, parse_summary
from clp_jax.data.briefs.world import HEDGES, SLOTS, UNREPORTED, Slot

# Raw entailment of a malformed completion, and the least of a well-formed one. nats
ENTAILMENT_FLOOR = -7.0
# Part of a slot's salience that its hypernym earns.
HYPERNYM_CREDIT = 0.5

# Raw score ranges that map to [0, 1]. The best summaries of all weightings span most of them.
ENTAILMENT_RANGE = (-2.25, 0.0)  # nats
QUALITY_RANGE = (0.0, 1.0)
ROUGE_RANGE = (52.0, 84.0)  # ROUGE-Lsum F-measure on the 0-100 scale


@dataclass(frozen=True)
class ExactReward:
    """A host reward of briefs.

    Attributes:
      score: (what a document says, what a completion claims or None if malformed) -> score.
      range: raw scores that are mapped to 0 and 1.
    """

    score: Callable[[Facts, Claims | None], float]
    range: tuple[float, float]
    columns: ClassVar = ("document",)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        document: Sequence[str],
        **columns: Any,
    ) -> list[float]:
        """Scores completions against their documents.

        Args:
          prompts: not read.
          completions: texts to score.
          document: one document of briefs for each completion.
          **columns: not read.

        Returns:
          One score for each completion.

        Raises:
          ValueError: a document is not one of briefs, or the counts differ.
        """
        return [
            self.score(parse_document(text), parse_summary(completion))
            for text, completion in zip(document, completions, strict=True)
        ]


def entailment_score(facts: Facts, claims: Claims | None) -> float:
    """Σ log p over the claims, at least `ENTAILMENT_FLOOR`; None stands for malformed."""
    if claims is None or claims.core != facts.core:
        return ENTAILMENT_FLOOR
    total = 0.0
    for slot in SLOTS:
        if slot.name in claims.details:
            statement = facts.statements.get(slot.name)
            total += math.log(claim_probability(slot, claims.details[slot.name], statement))
    return max(total, ENTAILMENT_FLOOR)


def quality_score(facts: Facts, claims: Claims | None) -> float:
    """Salience stated / salience of all that the document states; None stands for malformed."""
    if claims is None or claims.core != facts.core:
        return 0.0
    stated = possible = 0.0
    for slot in SLOTS:
        if slot.name in facts.statements:
            possible += slot.salience
            stated += slot.salience * detail_credit(
                slot, claims.details.get(slot.name), facts.statements[slot.name]
            )
    return stated / possible if possible else 1.0


def detail_credit(slot: Slot, phrase: str | None, statement: Statement) -> float:
    """What a claim earns of its slot's salience.

    Args:
      slot: the slot of the claim.
      phrase: the claim, or None if the summary claims nothing there.
      statement: what the document states there.

    Returns:
      1 for the stated value, `HYPERNYM_CREDIT` for its hypernym, else 0.
    """
    if phrase == statement.value:
        return 1.0
    return HYPERNYM_CREDIT if phrase == slot.hypernym(statement.value) else 0.0


def claim_probability(slot: Slot, phrase: str, statement: Statement | None) -> float:
    """The probability that a claim is true, given the document.

    Args:
      slot: the slot of the claim.
      phrase: the claim, a phrase of `slot`.
      statement: what the document states in that slot, or None if it states nothing there.

    Returns:
      A probability, in (0, 1). A hypernym of the stated value is likelier than that value; a
      contradiction gets its share of what the hedge leaves to the slot's other values; an
      unreported detail gets its share of `UNREPORTED`.
    """
    covered = slot.covered(phrase)
    if statement is None:
        return UNREPORTED * len(covered) / len(slot.values)
    stated = HEDGES[statement.hedge]
    other = (1.0 - stated) / (len(slot.values) - 1)
    return sum(stated if value == statement.value else other for value in covered)


# Log-probability that all that a completion claims is true, given its document, in nats.
# range: [-7, 0]. Malformed completions, and those with another core fact, get -7.
entailment = ExactReward(entailment_score, ENTAILMENT_RANGE)
# Share of the document's details that a completion states, weighted by salience.
# range: [0, 1]. Malformed completions, and those with another core fact, get 0.
quality = ExactReward(quality_score, QUALITY_RANGE)
