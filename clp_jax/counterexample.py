"""Where mixing experts must fail and CLP does not: the counterexample of Sec. 6.2 and Fig. 19.

python -m clp_jax.counterexample

One context, three outputs, rewards (1, 0, 0.75) and (0, 1, 0.75). Prints a table with one line for
each seed: the largest gap to the optimal value over 21 weightings, and p(y3) at w = (0.5, 0.5), of
CLP, of Rewarded Soups and of mixing the same experts' logits. Writes counterexample.json (gaps and
fronts of every seed) and counterexample.png. Takes some ten seconds.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from clp_jax.settings import command_line


def main(argv: Sequence[str]) -> None:
    """The command."""
    flags = command_line.parse(_parser(), argv)
    with command_line.errors("clp_jax.counterexample"):
        from clp_jax.reporting.metrics_log import markdown_table, say
        from clp_jax.theory import counterexample, counterexample_report

        folder = pathlib.Path(flags.output)
        folder.mkdir(parents=True, exist_ok=True)
        result = counterexample.run(range(flags.seeds), flags.kl_weight, flags.steps)
        counterexample_report.write(result, folder)
    print(markdown_table(counterexample_report.rows(result)))
    say(f"written to {folder}/counterexample.json and counterexample.png")


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("clp_jax.counterexample", __doc__)
    parser.add_argument("--seeds", type=int, default=10, help="how many; default: %(default)s")
    parser.add_argument(
        "--kl_weight", type=float, default=0.03, help="α in [0, 1); default: %(default)s"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=2000,
        help="updates of CLP, and of both experts together; default: %(default)s",
    )
    parser.add_argument("--output", default="runs/counterexample", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
