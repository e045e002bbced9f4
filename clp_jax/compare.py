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

from clp_jax.settings import command_line


def main(argv: Sequence[str]) -> None:
    """The command."""
    flags = command_line.parse(_parser(), argv)
    with command_line.errors("clp_jax.compare"):
        from clp_jax.evaluation import alignment, comparison, comparison_report
        from clp_jax.reporting.metrics_log import say

        point = None if flags.reference_point is None else _numbers(flags.reference_point)
        compared = comparison.compare(
            [alignment.read(run) for run in flags.runs],
            baseline=flags.baseline,
            reference_point=point,
            resamples=flags.resamples,
        )
        output = pathlib.Path(flags.output)
        print(comparison_report.write(compared, output, flags.prompts), end="")
        say(f"written to {output / 'report.html'} and beside it")


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
    parser = command_line.parser("clp_jax.compare", __doc__)
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
