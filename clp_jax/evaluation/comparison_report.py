"""What a comparison leaves: tables, figures, generations, and a page of them all."""

import pathlib
from collections.abc import Sequence

from clp_jax.evaluation import (
    comparison_plots,
    comparison_records,
    comparison_tables,
    generations,
    html,
)
from clp_jax.evaluation.comparison import Comparison

_CAPTIONS = {
    "fronts.png": "Fronts, points joined in order of the weighting.",
    "reward_kl.png": "Reward against KL to the reference.",
    "bars.png": "1 − V / V of the baseline at each weighting; lower is better.",
    "progress.png": "Fronts at several training steps.",
}


def write(comparison: Comparison, output: pathlib.Path, prompts: int) -> str:
    """Writes every file of a report.

    Args:
      comparison: what is reported.
      output: folder; made if missing. Figures of an older report that this one lacks are removed.
      prompts: of how many the generations are shown, from the first.

    Returns:
      metrics.txt.
    """
    output.mkdir(parents=True, exist_ok=True)
    text = comparison_tables.text(comparison)
    examples = generations.examples(comparison, prompts)
    figures = _draw(comparison, output)
    for name, content in {
        "metrics.txt": text,
        "metrics.csv": comparison_records.csv_text(comparison),
        "metrics.json": comparison_records.json_text(comparison),
        "generations.md": generations.markdown(examples),
        "report.html": _page(comparison, figures, examples),
    }.items():
        (output / name).write_text(content, encoding="utf-8")
    return text


def _draw(comparison: Comparison, output: pathlib.Path) -> list[pathlib.Path]:
    """Writes the figures that the runs give; returns their paths."""
    draw = {"reward_kl.png": comparison_plots.reward_kl}
    if len(comparison.names) > 1:  # else reward against KL is the front
        draw = {"fronts.png": comparison_plots.fronts} | draw
    if comparison.others:
        draw["bars.png"] = comparison_plots.bars
    if any(len(run.steps) > 1 for run in comparison.runs):
        draw["progress.png"] = comparison_plots.progress
    for name in _CAPTIONS:
        if name in draw:
            draw[name](comparison, output / name)
        else:
            (output / name).unlink(missing_ok=True)
    return [output / name for name in draw]


def _page(comparison: Comparison, figures: Sequence[pathlib.Path], examples: Sequence) -> str:
    """report.html."""
    blocks = [html.lines(comparison_tables.summary(comparison))]
    blocks += [html.figure(path, _CAPTIONS[path.name]) for path in figures]
    for table in comparison_tables.tables(comparison):
        blocks += [html.heading(table.title), html.table(table.rows)]
    if examples:
        blocks.append(html.heading("Generations"))
    for number, example in enumerate(examples):
        blocks += [html.heading(f"Prompt {number}", 3), html.quotation(example.document)]
        blocks.append(html.lines([f"Reference summary: {example.reference or '(none)'}"]))
        blocks.append(html.table(example.rows))
    return html.page("Comparison of " + ", ".join(r.label for r in comparison.runs), blocks)
