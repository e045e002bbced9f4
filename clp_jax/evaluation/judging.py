"""Two saved evaluations before a judge: what is asked, and what is left of the answers."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clp_jax.evaluation import alignment, judges
from clp_jax.evaluation import judge as judge_lib
from clp_jax.evaluation.answers import ANSWERS, Remembering
from clp_jax.evaluation.judge import Answer, Judge, Judgement, Question
from clp_jax.evaluation.result import SweepResult
from clp_jax.reporting.metrics_log import markdown_table, say

JUDGEMENT = "judge.json"


class Side(NamedTuple):
    """One of the two policies."""

    name: str  # for messages: the path that was given
    swept: SweepResult


def questions(
    ours: Side,
    theirs: Side,
    reward_weights: Mapping[str, Sequence[float]],
    kl_weight: float | None = None,
    num_examples: int | None = None,
) -> tuple[list[Question], float]:
    """What the judge is asked.

    Args:
      ours: one policy.
      theirs: the other.
      reward_weights: criterion -> w [m] of the completions that are compared by it.
      kl_weight: α; None where ours has only one.
      num_examples: the first so many documents alone; None for all.

    Returns:
      (the questions, α).

    Raises:
      ValueError: the evaluations cannot be compared, or lack a weighting.
    """
    if ours.swept.names != theirs.swept.names:
        raise ValueError(
            f"{ours.name} and {theirs.name} cannot be compared: their objectives are "
            f"{', '.join(ours.swept.names)} and {', '.join(theirs.swept.names)}"
        )
    documents = _documents(ours, theirs, num_examples)
    kl_weight = _kl_weight(ours) if kl_weight is None else kl_weight

    def completions(side: Side) -> dict[str, list[str]]:
        return {
            criterion: completions_at(side, w, kl_weight)[: len(documents)]
            for criterion, w in reward_weights.items()
        }

    references = ours.swept.references.tolist()[: len(documents)]
    asked = judge_lib.questions(documents, completions(ours), completions(theirs), references)
    return asked, kl_weight


def _documents(ours: Side, theirs: Side, num_examples: int | None) -> list[str]:
    """Those that are compared."""
    texts = [side.swept.documents.tolist() for side in (ours, theirs)]
    counts = f"{ours.name} was evaluated on {len(texts[0])} documents, {theirs.name} on "
    counts += str(len(texts[1]))
    if num_examples is not None:
        if not 1 <= num_examples <= min(map(len, texts)):
            raise ValueError(f"--num_examples={num_examples}: {counts}")
        texts = [documents[:num_examples] for documents in texts]
    differ = [i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b]
    if differ:
        raise ValueError(
            f"{ours.name} and {theirs.name} were evaluated on different documents; the first "
            f"that differs is document {differ[0]}: {texts[0][differ[0]][:60]!r} and "
            f"{texts[1][differ[0]][:60]!r}"
        )
    if len(texts[0]) != len(texts[1]):
        fewer = min(map(len, texts))
        raise ValueError(f"{counts}; --num_examples={fewer} compares those that both have")
    return texts[0]


def _kl_weight(side: Side) -> float:
    """The α of a policy that was evaluated at only one."""
    values = sorted(set(side.swept.kl_weights.tolist()))
    if len(values) > 1:
        shown = ", ".join(f"{value:g}" for value in values)
        raise ValueError(f"{side.name} has several KL weights: give --kl_weight, one of {shown}")
    return values[0]


def completions_at(side: Side, reward_weights: Sequence[float], kl_weight: float) -> list[str]:
    """The P completions of a sweep at one weighting.

    Args:
      side: swept at n weightings of m objectives.
      reward_weights: w, m numbers.
      kl_weight: α.

    Raises:
      ValueError: another number of weights, or no such weighting; names those that are there.
    """
    where, swept = side
    if len(reward_weights) != len(swept.names):
        raise ValueError(
            f"w = {_shown(reward_weights)} has {len(reward_weights)} weights, but {where} has "
            f"{len(swept.names)} objectives: {', '.join(swept.names)}; give --concise_weights and "
            "--comprehensive_weights"
        )
    row = alignment.rows(swept, np.array([[kl_weight, *reward_weights]]))[0]
    if row < 0:
        by_alpha: dict[float, list[str]] = {}
        for alpha, weights in zip(swept.kl_weights, swept.reward_weights, strict=True):
            by_alpha.setdefault(float(alpha), []).append(_shown(weights))
        there = "; ".join(f"w = {', '.join(w)} at α = {a:g}" for a, w in by_alpha.items())
        raise ValueError(
            f"{where} has no completions at w = {_shown(reward_weights)}, α = {kl_weight:g}; "
            f"it has {there}"
        )
    return swept.completions[row].tolist()


def _shown(weights: Sequence[float]) -> str:
    return f"({', '.join(f'{weight:g}' for weight in weights)})"


def answers(
    judge: Judge, asked: Sequence[Question], folder: pathlib.Path, name: str, malformed_again: bool
) -> list[Answer]:
    """The judge's answers, those of answers.jsonl in `folder` first; closes the judge.

    Args:
      judge: who is asked.
      asked: the questions.
      folder: made if missing.
      name: --judge, which says whose answers the file has.
      malformed_again: ask again where an answer was malformed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        identity = judges.identity(judge, name)
        return Remembering(judge, folder / ANSWERS, identity, malformed_again)(asked)
    finally:
        if hasattr(judge, "close"):
            judge.close()


def write(judgement: Judgement, settings: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes judge.json and prints the tables."""
    partial = folder / f".{JUDGEMENT}.partial"
    partial.write_text(json.dumps({**settings, **judgement.to_json()}, indent=1) + "\n")
    partial.rename(folder / JUDGEMENT)
    say(markdown_table(judgement.rows()))
    say("")
    say(markdown_table(judgement.criterion_rows()))
    say(
        f"over {judgement.num_articles - judgement.undecided} of {judgement.num_articles} "
        f"articles, with 95 % intervals; written to {folder / JUDGEMENT}"
    )
    if judgement.undecided:
        say(f"{judgement.undecided} articles lack an answer (malformed) and are left out")
