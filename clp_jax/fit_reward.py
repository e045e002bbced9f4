"""Fit a reward model: natural language inference, or preferences between summaries.

  python -m clp_jax.fit_reward --gin_file=gin/rewards/nli.gin --gin_file=gin/rewards/briefs_nli.gin

Writes the reward model to NLI_MODEL_DIR (TLDR_MODEL_DIR for preferences), where a CLP run finds it,
and what it is worth on held-out examples. A fit that was killed goes on when the same command is
given again.
"""

import argparse
import sys
from collections.abc import Sequence

from clp_jax.machine import host_memory
from clp_jax.settings import command_line


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the resolved run, write nothing, and exit",
    )


def _configured() -> type:
    from clp_jax.reward_fitting.fit_config import FitRun

    return FitRun


def main(argv: Sequence[str]) -> None:
    """The command."""
    host_memory.keep_freed_memory()
    with command_line.errors("clp_jax.fit_reward"):
        run, flags = command_line.configured_run(
            "clp_jax.fit_reward", __doc__, argv, _add_arguments, _configured, "gin/rewards/nli.gin"
        )
        from clp_jax.reporting.metrics_log import say
        from clp_jax.reward_fitting import fitting

        fitting.check(run)
        if flags.dry_run:
            say(fitting.describe(run))
            return
        command_line.claim_model_dir(run.model_dir, ("NLI_MODEL_DIR", "TLDR_MODEL_DIR"))
    with command_line.errors("clp_jax.fit_reward", *command_line.RUN_ERRORS):
        fitting.fit(run)


if __name__ == "__main__":
    main(sys.argv[1:])
