"""Judge two evaluated policies against each other, article by article (Sec. 4.3 of the paper).

  python -m clp_jax.judge runs/clp runs/soup --judge=http://localhost:8000/v1 --judge_model=NAME
  python -m clp_jax.judge runs/clp runs/soup --judge=reward:nli=runs/nli,tldr=runs/tldr
  python -m clp_jax.judge runs/clp runs/soup --judge=my_judges.shorter

Compares the completions of two saved evaluations of the same documents: by conciseness at
--concise_weights, by comprehensiveness at --comprehensive_weights, each in both orders. Writes
judge.json, and every answer as it comes to answers.jsonl: the same command goes on where it was
stopped. Nothing is generated.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence

from clp_jax.settings import command_line


def main(argv: Sequence[str]) -> None:
    """The command."""
    flags = command_line.parse(_parser(), argv)
    with command_line.errors("clp_jax.judge"):
        from clp_jax.evaluation import judge, judges, judging, result

        file = result.find(flags.ours)
        ours = judging.Side(flags.ours, result.load(file))
        theirs = judging.Side(flags.theirs, result.load(result.find(flags.theirs)))
        weights = {
            judge.CONCISENESS: flags.concise_weights,
            judge.COMPREHENSIVENESS: flags.comprehensive_weights,
        }
        alpha, count = flags.kl_weight, flags.num_examples
        asked, alpha = judging.questions(ours, theirs, weights, alpha, count)
        options = ("api_key_env", "concurrency", "timeout", "retries")
        client = {name: getattr(flags, name) for name in options}
        asks = judges.make_judge(flags.judge, flags.judge_model, **client)
        default = file.parent / "judge" / re.sub(r"[^\w.-]+", "_", flags.theirs.strip("/"))
        folder = pathlib.Path(flags.output) if flags.output else default
        answers = judging.answers(asks, asked, folder, flags.judge, flags.malformed_again)
        given = {name: getattr(flags, name) for name in ("ours", "theirs", "judge", "judge_model")}
        settings = {**given, "kl_weight": alpha, "reward_weights": weights}
        judging.write(judge.judgement(judge.votes(answers)), settings, folder)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("clp_jax.judge", __doc__)
    parser.add_argument("ours", metavar="OURS", help="MODEL_DIR, or folder of an evaluation")
    parser.add_argument("theirs", metavar="THEIRS", help="likewise, of the same documents")
    parser.add_argument(
        "--judge",
        required=True,
        metavar="URL|reward:NAME|PATH",
        help="base URL of an OpenAI-compatible API; reward:NAME[=DIR] (or two, for conciseness and "
        "comprehensiveness), named as for clp_jax.score; dotted path of a callable of yours",
    )
    for name, default in (("concise", (0.8, 0.2)), ("comprehensive", (0.2, 0.8))):
        parser.add_argument(
            f"--{name}_weights",
            type=_numbers,
            default=default,
            metavar="W1,W2,...",
            help=f"w of the completions compared by {name}ness; default: "
            + ",".join(map(str, default)),
        )
    parser.add_argument("--kl_weight", type=float, help="α, where the evaluations have several")
    parser.add_argument("--num_examples", type=int, help="the first so many documents alone")
    parser.add_argument("--output", help="folder; default: judge/THEIRS in OURS's evaluation")
    parser.add_argument(
        "--malformed_again", action="store_true", help="ask again where an answer was malformed"
    )
    endpoint = parser.add_argument_group("with a URL")
    endpoint.add_argument("--judge_model", help="the model's name there")
    endpoint.add_argument(
        "--api_key_env", metavar="VARIABLE", help="environment variable that holds the API key"
    )
    endpoint.add_argument(
        "--concurrency", type=int, default=8, help="requests at a time; default: %(default)s"
    )
    endpoint.add_argument(
        "--timeout", type=float, default=60.0, help="seconds; default: %(default)s"
    )
    endpoint.add_argument(
        "--retries", type=int, default=5, help="of a request; default: %(default)s"
    )
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers: W1,W2,...") from None


if __name__ == "__main__":
    main(sys.argv[1:])
