"""Two policies' completions compared by a judge: the questions, the paper's win rule, the rates.

Sec. 4.3 and App. D.1. For each article a judge is asked by two criteria, conciseness and
comprehensiveness, which of two summaries is better: that of ours or that of theirs, each policy
steered to the criterion. Every comparison is made in both orders, since judges favour a position.

A comparison prefers a policy if its summary is preferred in both orders; else it prefers neither.
The rule: a policy wins the article if both comparisons prefer it, or if one does and the other
prefers neither. Every other article is a tie.

The paper says it twice. Sec. 4.3: "prefers its summary in both comparisons, or [...] in one case
and was inconsistent in the other". App. D.1: it "wins with both of the swapped pairs on one of the
prompts while at least obtaining a tied result on the other". The paper's judge always names one of
the summaries; a comparison is then won, lost, or inconsistent, the tied result of App. D.1, and the
two wordings say the same. A judge that finds summaries equal in both orders is consistent but
prefers neither: a tied result, so App. D.1's wording decides.

Either way the outcome is the sign of the sum of the two preferences, each in {-1, 0, 1}. What an
answer means that names no summary the paper does not say: an article with one is undecided, and is
left out of the rates.
"""

import dataclasses
import enum
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from clp_jax.evaluation.pareto import Estimate, interval, resampled_means

CONCISENESS = "conciseness"
COMPREHENSIVENESS = "comprehensiveness"
CRITERIA = (CONCISENESS, COMPREHENSIVENESS)

_ORDERS = 2  # ours first, theirs first


class Question(NamedTuple):
    """Which of two summaries of a document is better by a criterion?"""

    criterion: str  # one of CRITERIA
    document: str
    first: str
    second: str
    reference: str = ""  # the reference summary, for rewards that compare with it


class Verdict(enum.StrEnum):
    """What a judge found."""

    FIRST = "first"
    SECOND = "second"
    EQUAL = "equal"  # an answer: neither is better
    NONE = "none"  # no answer: malformed or refused. It is counted, and never guessed


class Answer(NamedTuple):
    """A verdict and the words it was read from."""

    verdict: Verdict
    text: str = ""


class Judge(Protocol):
    """Answers a batch of questions.

    Optional attributes: `batch_size`, questions in a call at most; `identity`, a text that differs
    where answers may differ; `close()`.
    """

    def __call__(self, questions: Sequence[Question]) -> Iterable[Verdict | Answer | str]:
        """One verdict ("first", "second", "equal", "none") for each question, in their order.

        A generator has each answer kept as soon as it is there.
        """


def answered(judge: Judge, questions: Sequence[Question]) -> Iterator[Answer]:
    """The judge's answers, one for each question, as they come.

    Raises:
      ValueError: something that is not a verdict, or another number of them.
    """
    count = 0
    for given in judge(questions):
        count += 1
        if count > len(questions):
            break
        verdict = given.verdict if isinstance(given, Answer) else given
        if not isinstance(verdict, str) or verdict not in set(Verdict):
            raise ValueError(f"the judge answered {given!r}; expected one of {', '.join(Verdict)}")
        yield Answer(Verdict(verdict), given.text if isinstance(given, Answer) else "")
    if count != len(questions):
        more = "more" if count > len(questions) else f"only {count}"
        raise ValueError(f"the judge gave {more} answers to {len(questions)} questions")


def questions(
    documents: Sequence[str],
    ours: Mapping[str, Sequence[str]],
    theirs: Mapping[str, Sequence[str]],
    references: Sequence[str] | None = None,
) -> list[Question]:
    """Every question about P articles.

    Args:
      documents: P articles.
      ours: {criterion: P summaries}, of the policy steered to that criterion.
      theirs: likewise.
      references: P reference summaries, if there are any.

    Returns:
      4P questions: for each article, for each of CRITERIA, ours first and then theirs first.

    Raises:
      ValueError: lists of different lengths.
    """
    references = [""] * len(documents) if references is None else references
    for texts in (references, *ours.values(), *theirs.values()):
        if len(texts) != len(documents):
            raise ValueError(f"{len(texts)} texts for {len(documents)} documents")
    return [
        Question(criterion, document, *pair, references[i])
        for i, document in enumerate(documents)
        for criterion in CRITERIA
        for pair in (
            (ours[criterion][i], theirs[criterion][i]),
            (theirs[criterion][i], ours[criterion][i]),
        )
    ]


def votes(answers: Sequence[Answer]) -> np.ndarray:
    """The answers to `questions`, by policy.

    Args:
      answers: 4P, in the order of the questions.

    Returns:
      [P, 2 criteria, 2 orders]: 1 for ours, -1 for theirs, 0 for equal, NaN for no answer.
    """
    value = {Verdict.FIRST: 1.0, Verdict.SECOND: -1.0, Verdict.EQUAL: 0.0, Verdict.NONE: np.nan}
    first = np.array([value[answer.verdict] for answer in answers], float)
    return first.reshape(-1, len(CRITERIA), _ORDERS) * [1, -1]


def preferences(votes: np.ndarray) -> np.ndarray:
    """What each comparison prefers: a policy that both orders prefer, or neither.

    Args:
      votes: see `votes`.

    Returns:
      [P, 2 criteria]: 1 for ours, -1 for theirs, 0 for neither; NaN where an answer is missing.
    """
    agreed = np.where(votes[..., 0] == votes[..., 1], votes[..., 0], 0.0)
    return np.where(np.isnan(votes).any(axis=-1), np.nan, agreed)


def outcomes(votes: np.ndarray) -> np.ndarray:
    """Who wins each article, by the rule at the top of this file (Sec. 4.3, App. D.1).

    Args:
      votes: see `votes`.

    Returns:
      [P]: 1 for ours, -1 for theirs, 0 for a tie; NaN (undecided) where an answer is missing.
    """
    return np.sign(preferences(votes).sum(axis=-1))


@dataclasses.dataclass(frozen=True)
class CriterionRates:
    """The comparisons by one criterion; shares in [0, 1], with 95 % intervals.

    Attributes:
      ours: share that prefers ours, of the comparisons that have both answers.
      theirs: likewise.
      consistent: share in which both orders agree; 1 less position bias and chance.
      first: share of "first" among the answers that name a summary; 0.5 without position bias.
        NaN if none does.
      malformed: how many of the 2P answers are none.
    """

    ours: Estimate
    theirs: Estimate
    consistent: Estimate
    first: float
    malformed: int


@dataclasses.dataclass(frozen=True)
class Judgement:
    """How often ours wins, over the articles that were decided; 95 % intervals over articles.

    Attributes:
      win: share of articles that ours wins.
      loss: share that theirs wins.
      tie: the rest.
      lead: win - loss, in [-1, 1].
      criteria: {criterion: its rates}.
      num_articles: P.
      undecided: articles that lack an answer; in none of win, loss, tie and lead.
    """

    win: Estimate
    loss: Estimate
    tie: Estimate
    lead: Estimate
    criteria: Mapping[str, CriterionRates]
    num_articles: int
    undecided: int

    def rows(self) -> list[dict[str, Any]]:
        """The rates, for a table."""
        named = {
            "ours wins": self.win,
            "theirs wins": self.loss,
            "tie": self.tie,
            "ours - theirs": self.lead,
        }
        return [{"article": name, "share": _cell(rate)} for name, rate in named.items()]

    def criterion_rows(self) -> list[dict[str, Any]]:
        """The criteria, for a table."""
        return [
            {
                "criterion": name,
                "ours preferred": _cell(rates.ours),
                "theirs preferred": _cell(rates.theirs),
                "consistent": _cell(rates.consistent),
                "first preferred": f"{rates.first:.3f}",
                "malformed": f"{rates.malformed} of {_ORDERS * self.num_articles}",
            }
            for name, rates in self.criteria.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """All of it, as plain values; NaN as None."""
        fields = dataclasses.asdict(self)
        for rates in fields["criteria"].values():
            rates["first"] = None if math.isnan(rates["first"]) else rates["first"]
        return fields


def judgement(votes: np.ndarray) -> Judgement:
    """The rates and their intervals, by a bootstrap over articles.

    Articles with a missing answer are left out of the wins, and comparisons with one out of the
    criterion's rates.

    Args:
      votes: see `votes`.

    Raises:
      ValueError: no article was decided.
    """
    decided = outcomes(votes)
    decided = decided[~np.isnan(decided)]
    if not len(decided):
        raise ValueError(
            f"none of {len(votes)} articles was decided: each lacks an answer that names a summary"
        )
    columns = np.stack([decided == 1, decided == -1, decided == 0, decided], axis=1)
    win, loss, tie, lead = _estimates(columns)
    return Judgement(
        win=win,
        loss=loss,
        tie=tie,
        lead=lead,
        criteria={name: _criterion(votes[:, i]) for i, name in enumerate(CRITERIA)},
        num_articles=len(votes),
        undecided=len(votes) - len(decided),
    )


def _criterion(votes: np.ndarray) -> CriterionRates:
    """The rates of one criterion; votes [P, 2 orders]."""
    missing = np.isnan(votes)
    whole = votes[~missing.any(axis=1)]
    prefers = preferences(whole)
    columns = np.stack([prefers == 1, prefers == -1, whole[:, 0] == whole[:, 1]], axis=1)
    first = votes * [1, -1]
    named = np.abs(first) == 1
    ours, theirs, consistent = _estimates(columns)
    return CriterionRates(
        ours=ours,
        theirs=theirs,
        consistent=consistent,
        first=float((first[named] == 1).mean()) if named.any() else float("nan"),
        malformed=int(missing.sum()),
    )


def _estimates(columns: np.ndarray) -> list[Estimate]:
    """The mean of each column of [P, k] over the articles, with its interval."""
    columns = columns.astype(float)
    low, high = interval(resampled_means(columns[None])[:, 0])
    means = columns.mean(axis=0)
    return [Estimate(*map(float, row)) for row in zip(means, low, high, strict=True)]


def _cell(rate: Estimate) -> str:
    return f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
