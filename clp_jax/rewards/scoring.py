"""Scores of documents and summaries from any source, by a stack of rewards."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clp_jax.rewards import registry, saved
from clp_jax.rewards.base import NamedReward, RewardStack

Record = Mapping[str, Any]

_BATCH_SIZE = 256


def make_stack(rewards: str, ranges: Sequence[str] = ()) -> RewardStack:
    """The stack that a command line asks for.

    Args:
      rewards: "rouge,nli=runs/nli,my_rewards.brevity": built-in names, dotted paths, and names with
        the directory of a reward model behind them.
      ranges: "nli=-5,0" each: raw scores that become 0 and 1.

    Raises:
      ValueError: see `registry.make_reward_stack` and `saved.load`; a malformed range.
    """
    items = [item.strip() for item in rewards.split(",")]
    names, components = [], {}
    for item in items:
        name, _, directory = item.partition("=")
        names.append(name)
        if directory:
            kind = saved.kind_of(directory)
            components[name] = {"nli": saved.NLI, "preference": saved.Preference}[kind](directory)
    parsed = dict(_parsed_range(text) for text in ranges)
    stack = registry.make_reward_stack(names, parsed, components=components, source="--rewards")
    assert stack is not None
    return stack


def _parsed_range(text: str) -> tuple[str, Any]:
    name, _, numbers = text.partition("=")
    try:
        return name, tuple(float(number) for number in numbers.split(","))
    except ValueError:
        raise ValueError(f"--range={text} is not NAME=LOW,HIGH") from None


def of_text(stack: RewardStack) -> RewardStack:
    """The same rewards, those that read the policy's tokens reading text instead.

    Raises:
      ValueError: a reward that can only read tokens.
    """

    def reading_text(entry: NamedReward) -> NamedReward:
        if not entry.on_device:
            return entry
        if not callable(entry.reward):
            raise ValueError(f"reward {entry.name!r} reads tokens of a policy; it has no __call__")
        reward = copy.copy(entry.reward)
        reward.on_device = False
        return NamedReward(entry.name, reward, entry.range)

    return RewardStack(
        [reading_text(entry) for entry in stack.rewards],
        [reading_text(entry) for entry in stack.components],
    )


def score(
    stack: RewardStack, records: Sequence[Record], reference_field: str | None = None
) -> Iterator[dict[str, Any]]:
    """Each record with its scores.

    Args:
      stack: of rewards that read text.
      records: each has "document" and "summary"; the summary is what is scored.
      reference_field: the field with the reference summary, which ROUGE compares with.

    Yields:
      The record, and "rewards" and "rewards_raw", {name: score} each.

    Raises:
      ValueError: a field that a reward needs is missing.
      RewardError: a reward failed.
    """
    common = set(records[0]).intersection(*records) - {"summary"}
    if reference_field is not None:
        common.add("summary")
    source = "the input" if reference_field else "the input; --reference_field names ROUGE's"
    stack.check_columns(common, source)
    for start in range(0, len(records), _BATCH_SIZE):
        rows = records[start : start + _BATCH_SIZE]
        columns = {name: [row[name] for row in rows] for name in common - {"summary"}}
        if reference_field is not None:
            columns["summary"] = [row[reference_field] for row in rows]
        summaries = [row["summary"] for row in rows]
        scores = stack([row["document"] for row in rows], summaries, columns)
        for i, row in enumerate(rows):
            yield {
                **row,
                "rewards": _named(stack, scores.normalised[i]),
                "rewards_raw": _named(stack, scores.raw[i]),
            }


def _named(stack: RewardStack, scores: np.ndarray) -> dict[str, float]:
    return {name: round(float(s), 6) for name, s in zip(stack.names, scores, strict=True)}


def table(stack: RewardStack, rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean and quantiles of each reward's raw scores, and its range, as aligned text."""
    lines: list[tuple[str, ...]] = [
        ("reward", "mean", "5 %", "median", "95 %", "range", "mean, normalised")
    ]
    for name, (low, high) in stack.ranges.items():
        raw = np.asarray([row["rewards_raw"][name] for row in rows])
        normalised = np.mean([row["rewards"][name] for row in rows])
        figures = [raw.mean(), *np.percentile(raw, [5, 50, 95])]
        shown = [f"{figure:.4g}" for figure in figures]
        lines.append((name, *shown, f"{low:g}, {high:g}", f"{normalised:.4g}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
