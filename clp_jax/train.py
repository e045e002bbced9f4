"""Train a conditional language policy (CLP): one model, steered at inference by (α, w).

  python -m clp_jax.train --gin_file=gin/clp_attn.gin --gin_file=gin/briefs.gin

A run that was killed goes on when the same command is given again.
"""

import argparse
import sys
from collections.abc import Sequence


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the resolved run, its shapes and memory, write nothing, and exit",
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    from clp_jax import command_line, host_memory

    host_memory.keep_freed_memory()
    with command_line.errors("clp_jax.train"):
        run, flags = command_line.configured_run("clp_jax.train", __doc__, argv, _add_arguments)
        from clp_jax import training
        from clp_jax.rewards.host import RewardError

        if run.num_partitions > 1:
            raise command_line.ConfigError(
                f"NUM_PARTITIONS={run.num_partitions}: this command runs on one device, "
                "`python -m t5x.train` on several (docs/t5x.md)"
            )
        training.check(run)
        if flags.dry_run:
            training.dry_run(run)
            return
        command_line.claim_model_dir(run.model_dir)
        training.check_checkpoint(run)
    # From here on only a reward's failure is the user's to mend; all else shows its traceback.
    with command_line.errors("clp_jax.train", RewardError):
        training.train(run)


if __name__ == "__main__":
    main(sys.argv[1:])
