"""The best attainable front of briefs without KL, computed exactly.

A document's candidate summaries state each reported detail not at all, by its stated value, or by
the hypernym of that value: at most 3^5. Any other claim (another value or its hypernym, an
unreported detail) has, in every reward, a lower expectation than one of these three. For a
weighting w the oracle takes the candidate of the greatest w·E[R]; entailment and quality depend on
the document only, and the expectation of ROUGE is over the reference given the document.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from clp_jax.data.briefs.language import Claims, Facts, Statement, parse_document, summary_text
from clp_jax.data.briefs.rewards import (
    ENTAILMENT_RANGE,
    QUALITY_RANGE,
    ROUGE_RANGE,
    claim_probability,
    entailment_score,
    quality_score,
)
from clp_jax.data.briefs.world import HYPERNYM_RATE, SLOTS, Slot
from clp_jax.reporting.errors import unknown_name

# Raw scores that are normalised to 0 and 1.
RANGES: Mapping[str, tuple[float, float]] = {
    "entailment": ENTAILMENT_RANGE,
    "rouge": ROUGE_RANGE,
    "quality": QUALITY_RANGE,
}

# "The <agent> <verb> a <object>": the words that every summary of a document shares.
CORE_WORDS = 5


def front(
    documents: Sequence[str],
    reward_weights: np.ndarray,
    rewards: Sequence[str] = ("entailment", "rouge"),
) -> np.ndarray:
    """Expected rewards of the best summaries, at each weighting.

    Args:
      documents: N documents of briefs.
      reward_weights: [W, m], each row on the simplex.
      rewards: m names among "entailment", "rouge", "quality".

    Returns:
      [W, m] normalised expected rewards, averaged over the documents. Row k maximises
      reward_weights[k] · value over all policies.

    Raises:
      ValueError: no documents, an unknown reward, or reward_weights of another shape.
    """
    weights = np.asarray(reward_weights, np.float64)
    if weights.ndim != 2 or weights.shape[1] != len(rewards):
        raise ValueError(
            f"reward_weights must have shape [weightings, {len(rewards)}] for rewards "
            f"{tuple(rewards)}, got {weights.shape}"
        )
    if not documents:
        raise ValueError("the oracle front needs at least one document, got none")
    total = np.zeros(weights.shape)
    for document in documents:
        values = expected_rewards(parse_document(document), rewards)
        total += values[np.argmax(weights @ values.T, axis=1)]
    return total / len(documents)


def best_summary(
    document: str,
    reward_weights: Sequence[float],
    rewards: Sequence[str] = ("entailment", "rouge"),
) -> str:
    """The summary of the greatest w·E[R], of those of least detail if several are."""
    facts = parse_document(document)
    values = expected_rewards(facts, rewards) @ np.asarray(reward_weights, np.float64)
    return summary_text(candidates(facts)[int(np.argmax(values))])


def candidates(facts: Facts) -> list[Claims]:
    """The candidate summaries of a document: 3^k for k reported details, the core fact first."""
    options = [_options(_slot(name), s) for name, s in facts.statements.items()]
    return [
        Claims(
            facts.core,
            {name: p for name, p in zip(facts.statements, phrases, strict=True) if p},
        )
        for phrases in itertools.product(*options)
    ]


def expected_rewards(
    facts: Facts,
    rewards: Sequence[str] = ("entailment", "rouge"),
) -> np.ndarray:
    """Normalised expected rewards of every candidate.

    Args:
      facts: what a document says.
      rewards: m names among "entailment", "rouge", "quality".

    Returns:
      [C, m], rows in the order of `candidates`.

    Raises:
      ValueError: an unknown reward.
    """
    columns = []
    for name in rewards:
        if name == "rouge":
            raw = expected_rouge(facts)
        elif name in _EXACT:
            raw = np.array([_EXACT[name](facts, claims) for claims in candidates(facts)])
        else:
            raise ValueError(unknown_name("reward of the briefs oracle", name, RANGES))
        low, high = RANGES[name]
        columns.append((raw - low) / (high - low))
    return np.stack(columns, axis=1)


def expected_rouge(facts: Facts) -> np.ndarray:
    """Expected ROUGE-L F-measure of every candidate, over the references of the document.

    With c core words, a candidate of K words, and a reference of R words that shares M detail
    words with it, F = 200 (c + M) / (K + R). Slots have disjoint words in a fixed order, so that
    M and R are sums over independent slots, and linearity in M gives

      E[F] = 200 Σ_r (c P(R=r) + Σ_s E[M_s; R=r]) / (K + r).

    Args:
      facts: what a document says.

    Returns:
      [C] scores in the order of `candidates`. range: [0, 100]
    """
    tables = [_reference_table(name, s) for name, s in facts.statements.items()]
    convolve = functools.partial(functools.reduce, np.convolve)
    # P(R = r), with and without each slot.
    length = convolve([table[0] for table in tables], np.ones(1))
    shape = tuple(len(table[1]) for table in tables)
    words = np.full(shape, float(CORE_WORDS))  # K
    shared = np.zeros((*shape, len(length)))  # Σ_s E[M_s; R=r]
    for s, (_, matches, option_words) in enumerate(tables):
        others = convolve([table[0] for i, table in enumerate(tables) if i != s], np.ones(1))
        axes = [1] * len(tables)
        axes[s] = len(option_words)
        words = words + np.reshape(option_words, axes)
        terms = np.stack([np.convolve(others, match) for match in matches])
        shared = shared + np.reshape(terms, (*axes, len(length)))
    reference_words = CORE_WORDS + np.arange(len(length))
    scores = (CORE_WORDS * length + shared) / (words[..., None] + reference_words)
    return 200.0 * scores.sum(-1).reshape(-1)


_EXACT = {"entailment": entailment_score, "quality": quality_score}


def _slot(name: str) -> Slot:
    return next(slot for slot in SLOTS if slot.name == name)


def _options(slot: Slot, statement: Statement) -> tuple[str, str, str]:
    return "", statement.value, slot.hypernym(statement.value)


@functools.lru_cache(maxsize=4096)
def _reference_table(name: str, statement: Statement) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What one slot adds to a reference, jointly with what it shares with each option.

    Returns:
      (P(words = r) [r], E[shared words; words = r] [option, r], words of each option [option]).
    """
    slot = _slot(name)
    options = _options(slot, statement)
    outcomes = _reference_outcomes(slot, statement)
    size = 1 + max(len(phrase.split()) for phrase in outcomes)
    length = np.zeros(size)
    matches = np.zeros((len(options), size))
    for phrase, probability in outcomes.items():
        words = phrase.lower().split()
        length[len(words)] += probability
        for i, option in enumerate(options):
            common = common_subsequence(words, option.lower().split())
            matches[i, len(words)] += probability * common
    return length, matches, np.array([len(option.split()) for option in options])


def _reference_outcomes(slot: Slot, statement: Statement) -> dict[str, float]:
    """Phrase of the slot in a reference ("" where it has none) -> probability."""
    outcomes = dict.fromkeys(("", *slot.phrases), 0.0)
    outcomes[""] = 1.0 - slot.inclusion
    for value in slot.values:
        true = claim_probability(slot, value, statement)
        outcomes[value] += slot.inclusion * true * (1.0 - HYPERNYM_RATE)
        outcomes[slot.hypernym(value)] += slot.inclusion * true * HYPERNYM_RATE
    return outcomes


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence of two lists of words."""
    row = [0] * (len(b) + 1)
    for word in a:
        previous = row
        row = [0]
        for j, other in enumerate(b):
            row.append(previous[j] + 1 if word == other else max(previous[j + 1], row[j]))
    return row[-1]
