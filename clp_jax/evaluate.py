"""Evaluate a trained policy over a grid of weightings: values, completions, a plot and a table.

python -m clp_jax.evaluate --model_dir=runs/briefs
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from clp_jax.machine import host_memory
from clp_jax.settings import command_line


def main(argv: Sequence[str]) -> None:
    """The command."""
    flags = command_line.parse(_parser(), argv)
    host_memory.keep_freed_memory()
    with command_line.errors("clp_jax.evaluate"):
        run = command_line.saved_run(flags.model_dir)
        run = command_line.with_evaluation(run, flags.grid_points, flags.num_examples, flags.mixing)
        from clp_jax.evaluation import grids, report, sweep
        from clp_jax.runs import restoring, training

        policy, step = restoring.restore_policy(run, flags.step, flags.mixing)
        weightings = grids.grid(run, flags.kl_weight)
    # The training run's own evaluation is kept when another one is asked for.
    custom = any((flags.grid_points, flags.num_examples, flags.kl_weight))
    name = "-".join(filter(None, (str(step), flags.mixing, "custom" if custom else None)))
    folder = pathlib.Path(flags.output or pathlib.Path(flags.model_dir, "evaluation", name))
    what = f"step {step}, {flags.mixing or run.evaluation.mixing}"
    run_errors = command_line.errors("clp_jax.evaluate", *command_line.RUN_ERRORS, OSError)
    with run_errors, training.closing_rewards(run):
        report.write(sweep.sweep(policy, run, weightings, folder, what), folder)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("clp_jax.evaluate", __doc__)
    parser.add_argument("--model_dir", required=True, help="MODEL_DIR of a clp_jax.train run")
    parser.add_argument("--step", type=int, help="checkpoint to evaluate; default: the latest")
    parser.add_argument("--grid_points", type=int, help="weightings on each edge of the simplex")
    parser.add_argument("--num_examples", type=int, help="how many validation prompts")
    parser.add_argument(
        "--kl_weight", type=float, action="append", help="α in [α_min, 1]; repeatable"
    )
    command_line.add_mixing_argument(parser)
    parser.add_argument("--output", help="folder; default: in MODEL_DIR/evaluation")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
