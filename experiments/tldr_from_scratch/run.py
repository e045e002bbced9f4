"""The comparison on posts of Reddit, from scratch; two commands, one after the other.

  RUN="python -m experiments.tldr_from_scratch.run"
  $RUN reward_models_and_reference --arrays=arrays/ --output=out/
  $RUN policies --arrays=arrays/ --output=out/

The first fits the reference policy and the reward models of entailment and quality, and proposes
the rewards' ranges. The second trains full-CLP, attn-CLP, Rewarded Soups and prompting for the same
number of steps and sweeps each over 13 weightings. Needs jax, flax, optax, orbax-checkpoint and
numpy; `clp_jax.compare` reads out/results/METHOD elsewhere.
"""

import argparse
import sys
import time
from collections.abc import Sequence

_STARTED = time.monotonic()  # the budget counts the imports too

COMMANDS = ("reward_models_and_reference", "policies")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = _parser()
    flags = parser.parse_args(argv)
    if flags.minutes <= 0 or min(flags.batch_size, flags.prompts, flags.steps or 1) < 1:
        parser.error("--minutes, --steps, --batch_size and --prompts must be positive")
    if flags.steps == 0:
        parser.error("--steps=0 trains nothing")
    from experiments.tldr_from_scratch import fits, policies, setting

    started = _STARTED if argv is None else time.monotonic()
    commands = (fits.reward_models_and_reference, policies.policies)
    try:
        dict(zip(COMMANDS, commands, strict=True))[flags.command](setting.make(flags, started))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tldr_from_scratch.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--arrays", required=True, metavar="DIR", help="what prepare.py wrote")
    parser.add_argument("--output", required=True, metavar="DIR", help="of both commands")
    parser.add_argument(
        "--minutes", type=float, default=9, help="wall-clock budget; default: %(default)s"
    )
    parser.add_argument("--steps", type=int, help="of each part, in place of a budget")
    parser.add_argument(
        "--size", choices=("small", "tiny"), default="small", help="default: %(default)s"
    )
    for name, default, text in (
        ("batch_size", 64, "examples of a step"),
        (
            "prompts",
            512,
            "posts that are swept over, scored for the ranges, and validated on, at most",
        ),
        ("seed", 0, "of parameters, data and sampling"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text}; default: {default}"
        )
    for name, rate, text in (
        ("learning_rate", 5e-4, "Adam's, of the reference and the reward models"),
        ("policy_learning_rate", 3e-4, "Adafactor's, of the policies"),
        ("value_learning_rate", 1e-3, "Adafactor's, of the value network"),
    ):
        parser.add_argument(f"--{name}", type=float, default=rate, help=f"{text}; default: {rate}")
    return parser


if __name__ == "__main__":
    main()
