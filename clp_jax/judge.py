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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clp_jax.evaluation.judge import Judge, Judgement, Question
    from clp_jax.evaluation.result import SweepResult

JUDGEMENT = "judge.json"


def main(argv: Sequence[str]) -> None:
    """The command."""
    from clp_jax.settings import command_line

    flags = _parser().parse_args(argv)
    with command_line.errors("clp_jax.judge"):
        from clp_jax.evaluation import judge as judge_lib
        from clp_jax.evaluation import result

        file = result.find(flags.ours)
        ours, theirs = result.load(file), result.load(result.find(flags.theirs))
        questions, kl_weight = _questions(ours, theirs, flags)
        judge = _judge(flags)
        default = file.parent / "judge" / re.sub(r"[^\w.-]+", "_", flags.theirs.strip("/"))
        folder = pathlib.Path(flags.output) if flags.output else default
        try:
            answers = _answers(judge, questions, folder, flags)
        finally:
            if hasattr(judge, "close"):
                judge.close()
        judgement = judge_lib.judgement(judge_lib.votes(answers))
        settings = {
            "ours": flags.ours,
            "theirs": flags.theirs,
            "judge": flags.judge,
            "judge_model": flags.judge_model,
            "kl_weight": kl_weight,
            "reward_weights": _weights(flags),
        }
        _write(judgement, settings, folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clp_jax.judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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


def _weights(flags: argparse.Namespace) -> dict[str, tuple[float, ...]]:
    """Criterion -> w."""
    from clp_jax.evaluation.judge import COMPREHENSIVENESS, CONCISENESS

    return {
        CONCISENESS: flags.concise_weights,
        COMPREHENSIVENESS: flags.comprehensive_weights,
    }


def _judge(flags: argparse.Namespace) -> "Judge":
    from clp_jax.evaluation import judges

    return judges.make_judge(
        flags.judge,
        flags.judge_model,
        api_key_env=flags.api_key_env,
        concurrency=flags.concurrency,
        timeout=flags.timeout,
        retries=flags.retries,
    )


def _questions(
    ours: "SweepResult", theirs: "SweepResult", flags: argparse.Namespace
) -> tuple[list["Question"], float]:
    """(the questions, α).

    Raises:
      ValueError: the evaluations cannot be compared, or lack a weighting.
    """
    from clp_jax.evaluation import judge as judge_lib

    if ours.names != theirs.names:
        raise ValueError(
            f"{flags.ours} and {flags.theirs} cannot be compared: their objectives are "
            f"{', '.join(ours.names)} and {', '.join(theirs.names)}"
        )
    documents = _documents(ours, theirs, flags)
    weights = _weights(flags)
    kl_weight = _kl_weight(ours, flags) if flags.kl_weight is None else flags.kl_weight

    def completions(swept: "SweepResult", where: str) -> dict[str, list[str]]:
        return {
            criterion: completions_at(swept, w, kl_weight, where)[: len(documents)]
            for criterion, w in weights.items()
        }

    references = ours.references.tolist()[: len(documents)]
    texts = completions(ours, flags.ours), completions(theirs, flags.theirs)
    return judge_lib.questions(documents, *texts, references), kl_weight


def _documents(ours: "SweepResult", theirs: "SweepResult", flags: argparse.Namespace) -> list[str]:
    """Those that are compared."""
    texts = [ours.documents.tolist(), theirs.documents.tolist()]
    counts = f"{flags.ours} was evaluated on {len(texts[0])} documents, {flags.theirs} on "
    counts += str(len(texts[1]))
    if flags.num_examples is not None:
        if not 1 <= flags.num_examples <= min(map(len, texts)):
            raise ValueError(f"--num_examples={flags.num_examples}: {counts}")
        texts = [documents[: flags.num_examples] for documents in texts]
    differ = [i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b]
    if differ:
        raise ValueError(
            f"{flags.ours} and {flags.theirs} were evaluated on different documents; the first "
            f"that differs is document {differ[0]}: {texts[0][differ[0]][:60]!r} and "
            f"{texts[1][differ[0]][:60]!r}"
        )
    if len(texts[0]) != len(texts[1]):
        fewer = min(map(len, texts))
        raise ValueError(f"{counts}; --num_examples={fewer} compares those that both have")
    return texts[0]


def _kl_weight(swept: "SweepResult", flags: argparse.Namespace) -> float:
    """The α of ours, where there is only one."""
    values = sorted(set(swept.kl_weights.tolist()))
    if len(values) > 1:
        shown = ", ".join(f"{value:g}" for value in values)
        raise ValueError(f"{flags.ours} has several KL weights: give --kl_weight, one of {shown}")
    return values[0]


def completions_at(
    swept: "SweepResult", reward_weights: Sequence[float], kl_weight: float, where: str
) -> list[str]:
    """The P completions of a sweep at one weighting.

    Args:
      swept: at n weightings of m objectives.
      reward_weights: w, m numbers.
      kl_weight: α.
      where: names the sweep in messages.

    Raises:
      ValueError: another number of weights, or no such weighting; names those that are there.
    """
    import numpy as np

    from clp_jax.evaluation import alignment

    if len(reward_weights) != len(swept.names):
        raise ValueError(
            f"w = {_shown(reward_weights)} has {len(reward_weights)} weights, but {where} has "
            f"{len(swept.names)} objectives: {', '.join(swept.names)}; give --concise_weights and "
            "--comprehensive_weights"
        )
    row = alignment.rows(swept, np.array([[kl_weight, *reward_weights]]))[0]
    if row < 0:
        by_alpha: dict[float, list[str]] = {}
        for alpha, weights in zip(swept.kl_weights, swept.reward_weights, strict=True):
            by_alpha.setdefault(float(alpha), []).append(_shown(weights))
        there = "; ".join(f"w = {', '.join(w)} at α = {a:g}" for a, w in by_alpha.items())
        raise ValueError(
            f"{where} has no completions at w = {_shown(reward_weights)}, α = {kl_weight:g}; "
            f"it has {there}"
        )
    return swept.completions[row].tolist()


def _shown(weights: Sequence[float]) -> str:
    return f"({', '.join(f'{weight:g}' for weight in weights)})"


def _answers(
    judge: "Judge", questions: Sequence["Question"], folder: pathlib.Path, flags: argparse.Namespace
):
    from clp_jax.evaluation import judges
    from clp_jax.evaluation.answers import ANSWERS, Remembering

    folder.mkdir(parents=True, exist_ok=True)
    identity = judges.identity(judge, flags.judge)
    return Remembering(judge, folder / ANSWERS, identity, flags.malformed_again)(questions)


def _write(judgement: "Judgement", settings: dict[str, Any], folder: pathlib.Path) -> None:
    """Writes judge.json and prints the tables."""
    import json

    from clp_jax.reporting.metrics_log import markdown_table, say

    partial = folder / f".{JUDGEMENT}.partial"
    partial.write_text(json.dumps({**settings, **judgement.to_json()}, indent=1) + "\n")
    partial.rename(folder / JUDGEMENT)
    say(markdown_table(judgement.rows()))
    say("")
    say(markdown_table(judgement.criterion_rows()))
    say(
        f"over {judgement.num_articles - judgement.undecided} of {judgement.num_articles} "
        f"articles, with 95 % intervals; written to {folder / JUDGEMENT}"
    )
    if judgement.undecided:
        say(f"{judgement.undecided} articles lack an answer (malformed) and are left out")


if __name__ == "__main__":
    main(sys.argv[1:])
