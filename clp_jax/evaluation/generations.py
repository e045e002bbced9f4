"""Completions side by side: what each run says of the same document at each weighting (D.2)."""

import dataclasses
import html
import re
from collections.abc import Mapping, Sequence

from clp_jax.evaluation.comparison import Comparison
from clp_jax.evaluation.comparison_tables import front_title, numbers, weighting


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt and what every run makes of it.

    Attributes:
      document: the prompt.
      reference: the reference summary; empty where the data have none.
      rows: one a weighting: column -> text; the first column is the weighting, the others are runs.
    """

    document: str
    reference: str
    rows: Sequence[Mapping[str, str]]


def examples(comparison: Comparison, prompts: int) -> list[Example]:
    """The first prompts, with every run's completion at every weighting.

    Args:
      comparison: of runs whose prompts are the same.
      prompts: how many; fewer where there are fewer.
    """
    several = len(comparison.fronts) > 1
    rewards = ", ".join(f"R {name}" for name in comparison.names)
    shown = []
    for p in range(min(prompts, comparison.num_prompts)):
        rows = []
        for front in comparison.fronts:
            for i in range(len(front.weights)):
                at = weighting(front, i) + (f", {front_title(front)}" if several else "")
                row = {f"w ({', '.join(comparison.names)})": at}
                for label, part in front.parts.items():
                    scores = numbers(part.prompt_normalised[i, p])
                    row[label] = f"{part.completions[i, p]}\n({rewards}: {scores})"
                rows.append(row)
        swept = comparison.runs[0].result
        shown.append(Example(str(swept.documents[p]), str(swept.references[p]), rows))
    return shown


def markdown(shown: Sequence[Example]) -> str:
    """generations.md; whatever the texts hold is shown as text."""
    blocks = ["# Generations"]
    for number, example in enumerate(shown):
        blocks.append(f"## Prompt {number}")
        blocks.append(f"Document: {_escaped(example.document)}")
        blocks.append(f"Reference summary: {_escaped(example.reference) or '(none)'}")
        header = [_escaped(name) for name in example.rows[0]]
        lines = [header, ["---"] * len(header)]
        lines += [[_escaped(cell) for cell in row.values()] for row in example.rows]
        blocks.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(blocks) + "\n"


def _escaped(raw: str) -> str:
    """Text in which Markdown finds no markup, on one line."""
    marked = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(raw, quote=False))
    return "<br>".join(marked.splitlines())
