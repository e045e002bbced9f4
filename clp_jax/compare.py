"""Compare evaluated runs: tables, figures, generations side by side, and one HTML report.

  python -m clp_jax.compare runs/clp rs=runs/rewarded_soup --baseline=rs --output=report/

A run is a MODEL_DIR, the folder of an evaluation or its prompts.npz; LABEL=PATH names it, else its
folder does. Runs are compared at the weightings (alpha, w) that all of them have, on the same
prompts; nothing is generated again. Writes metrics.txt, metrics.csv, metrics.json, fronts.png (two
rewards or more), reward_kl.png, bars.png (two runs or more), progress.png (a MODEL_DIR with several
evaluated steps), generations.md and report.html.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clp_jax.evaluation.comparison import Comparison

_CAPTIONS = {
    "fronts.png": "Fronts, points joined in order of the weighting.",
    "reward_kl.png": "Reward against KL to the reference.",
    "bars.png": "1 − V / V of the baseline at each weighting; lower is better.",
    "progress.png": "Fronts at several training steps.",
}


def main(argv: Sequence[str]) -> None:
    """The command."""
    flags = _parser().parse_args(argv)
    from clp_jax.settings import command_line

    with command_line.errors("clp_jax.compare"):
        from clp_jax.evaluation import alignment, comparison
        from clp_jax.reporting.metrics_log import say

        point = None if flags.reference_point is None else _numbers(flags.reference_point)
        compared = comparison.compare(
            [alignment.read(run) for run in flags.runs],
            baseline=flags.baseline,
            reference_point=point,
            resamples=flags.resamples,
        )
        output = pathlib.Path(flags.output)
        print(write(compared, output, flags.prompts), end="")
        say(f"written to {output / 'report.html'} and beside it")


def write(comparison: "Comparison", output: pathlib.Path, prompts: int) -> str:
    """Writes every file of a report.

    Args:
      comparison: what is reported.
      output: folder; made if missing. Figures of an older report that this one lacks are removed.
      prompts: of how many the generations are shown, from the first.

    Returns:
      metrics.txt.
    """
    from clp_jax.evaluation import comparison_records, comparison_tables, generations

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


def _draw(comparison: "Comparison", output: pathlib.Path) -> list[pathlib.Path]:
    """Writes the figures that the runs give; returns their paths."""
    from clp_jax.evaluation import comparison_plots

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


def _page(comparison: "Comparison", figures: Sequence[pathlib.Path], examples: Sequence) -> str:
    """report.html."""
    from clp_jax.evaluation import comparison_tables, html

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


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"--reference_point={text}: expected numbers between commas, such as 0,0"
        ) from error


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clp_jax.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]PATH", help="runs to compare")
    parser.add_argument("--output", required=True, help="folder of the report; made if missing")
    parser.add_argument("--baseline", metavar="LABEL", help="default: the first run")
    parser.add_argument(
        "--reference_point",
        metavar="X,Y,...",
        help="of the hypervolumes, one number an objective: of normalised, KL-regularised reward; "
        "with one reward, of reward and -KL. Default: 0 each, and for -KL the largest mean KL of "
        "the runs, rounded up and negated. Negative numbers: --reference_point=-1,0",
    )
    parser.add_argument(
        "--prompts",
        type=_count,
        default=3,
        help="of how many prompts the generations are shown, from the first; default: %(default)s",
    )
    parser.add_argument(
        "--resamples",
        type=_count,
        default=1000,
        help="of the bootstrap over prompts, for the intervals; default: %(default)s",
    )
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
