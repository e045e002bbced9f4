"""Train a conditional language policy (CLP): one model, steered at inference by (α, w).

  python -m clp_jax.train --gin_file=gin/clp_attn.gin --gin_file=gin/briefs.gin

A run that was killed goes on when the same command is given again. After SIGTERM the step under way
is the last one; it is saved, and the exit status is 75, for whoever started it to try again.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from clp_jax.machine import host_memory
from clp_jax.settings import command_line


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the resolved run, its shapes and memory, write nothing to MODEL_DIR, and exit",
    )
    group = parser.add_argument_group(
        "several hosts", "the same command on each of them; MODEL_DIR must be one they all see"
    )
    group.add_argument(
        "--multihost",
        action="store_true",
        help="meet the other hosts as the environment says (TPU pods, GKE, Slurm)",
    )
    group.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--process_count", type=int, metavar="N", help="how many processes")
    group.add_argument("--process_index", type=int, metavar="I", help="this one: 0 ... N - 1")


def _meet(flags: argparse.Namespace) -> None:
    """Meets the other hosts, if there are to be any."""
    from clp_jax.machine import hosts

    given = (flags.coordinator_address, flags.process_count, flags.process_index)
    if flags.multihost or given != (None, None, None):
        hosts.initialize(*given)


def main(argv: Sequence[str]) -> None:
    """The command."""
    host_memory.keep_freed_memory()
    with command_line.errors("clp_jax.train"):
        run, flags = command_line.configured_run(
            "clp_jax.train", __doc__, argv, _add_arguments, before=_meet
        )
        from clp_jax.machine import hosts
        from clp_jax.reporting.errors import RewardError
        from clp_jax.runs import training

        def check(function: Callable[[], None]) -> None:
            """What one process finds wrong ends all of them."""
            hosts.all_or_none(function, (*command_line.SETTINGS_ERRORS, RewardError))

        check(lambda: training.check(run))
        if flags.dry_run:
            training.dry_run(run)
            return
        check(lambda: command_line.claim_model_dir(run.model_dir, write=hosts.is_main()))
        check(lambda: training.check_checkpoint(run))
    # From here on only these are the user's to mend; all else shows its traceback.
    run_errors = command_line.errors("clp_jax.train", *command_line.RUN_ERRORS)
    with run_errors, hosts.ending_together("clp_jax.train"):
        training.train(run)


if __name__ == "__main__":
    main(sys.argv[1:])
