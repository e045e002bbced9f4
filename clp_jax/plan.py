"""Say what a training run needs of a TPU slice, before one is rented.

  python -m clp_jax.plan --gin_file=gin/clp_attn.gin --gin_file=gin/briefs.gin --topology=v5e:4x4

Compiles the programs of one training step for the chips, on a CPU host and with libtpu
(`pip install 'clp-jax[tpu]'`), and prints memory per chip, seconds per step and the hours of
TRAIN_STEPS. Takes the arguments of `clp_jax.train`; ACTIVATION_DTYPE, NUM_PARTITIONS and
FULLY_SHARDED matter most. MODEL_DIR, data and checkpoints need not exist. Exit status: 0 if the run
fits, 1 if not, 2 for wrong settings.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from clp_jax.reporting.errors import ConfigError
from clp_jax.settings import command_line


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topology", default="v5e:4x4", metavar="v5e:XxY", help="the slice (default: v5e:4x4)"
    )
    parser.add_argument(
        "--search",
        nargs="?",
        type=int,
        const=4,
        metavar="N",
        help="look for the best NUM_PARTITIONS and FULLY_SHARDED; compiles for N of them at most "
        "(default: 4), those that communicate least first",
    )
    parser.add_argument(
        "--reward_model",
        action="append",
        default=[],
        metavar="NAME=SIZE",
        help="a learned reward whose MODEL_DIR is not here, by its size in gin/models: nli=large; "
        "repeatable",
    )
    parser.add_argument(
        "--without_files",
        action="store_true",
        help="read neither vocabulary nor data, even where the gin files name them",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there")


def _prepare(flags: argparse.Namespace) -> None:
    """Checks the flags, and sets up libtpu before anything uses JAX."""
    from clp_jax.planning import topology

    if flags.search is not None and flags.search < 1:
        raise ValueError(f"--search={flags.search} must be at least 1")
    topology.check(flags.topology)
    topology.prepare()


def _bind(flags: argparse.Namespace) -> None:
    from clp_jax.planning import stand_ins

    stand_ins.bind(flags.reward_model, flags.without_files)


def _hint(error: Exception) -> str:
    """Which flag takes the place of a file that could not be read; nothing for other errors."""
    if found := re.search(r"reward model is needed: set (\w+)_MODEL_DIR", str(error)):
        name = found[1].lower()
        return f"or --reward_model={name}=SIZE, a size of gin/models, for one that is not here"
    # TensorFlow reads vocabularies, also from buckets.
    if "VOCABULARY_FILE=" in str(error) or type(error).__module__.startswith("tensorflow"):
        return "--without_files reads neither vocabulary nor data"
    return ""


def main(argv: Sequence[str]) -> None:
    """The command."""
    with command_line.errors("clp_jax.plan"):
        try:
            run, flags = command_line.configured_run(
                "clp_jax.plan", __doc__, argv, _add_arguments, before=_prepare, loaded=_bind
            )
        except Exception as error:
            if hint := _hint(error):
                message = str(error).strip().splitlines()[0]
                raise ConfigError(f"{message}; {hint}") from error
            raise
        from clp_jax.planning import report

        fits = report.planned(run, flags.topology, flags.search, flags.json)
    raise SystemExit(0 if fits else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
