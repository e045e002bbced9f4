"""Score documents and summaries with a stack of rewards: JSONL in, JSONL with scores out.

  python -m clp_jax.score --rewards=nli=runs/nli,tldr=runs/tldr --input=pairs.jsonl

Each input line is a JSON object with a "document" and a "summary"; ROUGE also needs a reference:
--reference_field names its field. --model_dir takes the rewards and ranges of a training run.
Output lines have "rewards" (normalised) and "rewards_raw" besides; a table goes to standard error.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence

from clp_jax.settings import command_line


def main(argv: Sequence[str]) -> None:
    """The command."""
    flags = command_line.parse(_parser(), argv)
    with command_line.errors("clp_jax.score"):
        from clp_jax.data import tasks
        from clp_jax.reporting.metrics_log import say
        from clp_jax.rewards import scoring

        if flags.model_dir:
            if flags.range:
                raise ValueError("--range goes with --rewards; a run has its own ranges")
            stack = scoring.of_text(command_line.saved_run(flags.model_dir).model.rewards)
        else:
            stack = scoring.make_stack(flags.rewards, flags.range)
        fields = {"document": flags.document_field, "summary": flags.summary_field}
        if flags.reference_field:
            fields["reference"] = flags.reference_field
        records = tasks.read_jsonl(flags.input, fields)
        say(stack.describe())
        output = open(flags.output, "w", encoding="utf-8") if flags.output else None  # noqa: SIM115
        rows = []
        with output or contextlib.nullcontext(sys.stdout) as file:
            for row in scoring.score(stack, records, flags.reference_field and "reference"):
                print(json.dumps(row, ensure_ascii=False), file=file, flush=True)
                rows.append(row)
        say(scoring.table(stack, rows))
        stack.close()


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("clp_jax.score", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--rewards",
        metavar="NAME[=DIR],...",
        help="built-in names, dotted paths of your own, and NAME=DIR of clp_jax.fit_reward",
    )
    source.add_argument("--model_dir", help="MODEL_DIR of a clp_jax.train run: its rewards")
    parser.add_argument(
        "--range",
        action="append",
        default=[],
        metavar="NAME=LOW,HIGH",
        help="raw scores that become 0 and 1, in place of the reward's own; repeatable",
    )
    parser.add_argument("--input", required=True, help="JSONL file")
    parser.add_argument("--output", help="JSONL file; default: standard output")
    parser.add_argument("--document_field", default="document", help="default: %(default)s")
    parser.add_argument(
        "--summary_field", default="summary", help="what is scored; default: %(default)s"
    )
    parser.add_argument("--reference_field", help="the reference summary, for ROUGE")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
