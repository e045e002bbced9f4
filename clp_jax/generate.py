"""Generate with a trained policy at one weighting: JSONL in, JSONL with completions out.

  python -m clp_jax.generate --model_dir=runs/briefs --reward_weights=0.8,0.2 --input=a.jsonl

Each input line is a JSON object with a "document"; --input=- reads standard input.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from clp_jax.machine import host_memory
from clp_jax.settings import command_line


def main(argv: Sequence[str]) -> None:
    """The command."""
    flags = command_line.parse(_parser(), argv)
    host_memory.keep_freed_memory()
    with command_line.errors("clp_jax.generate"):
        run = command_line.saved_run(flags.model_dir)
        from clp_jax.runs import generation

        weighting = generation.weighting(run, flags.reward_weights, flags.kl_weight)
        generator = generation.Generator(
            run, weighting, flags.temperature, flags.seed, flags.step, flags.mixing
        )
        records = list(_records(flags.input, flags.document_field))
        if not records:
            raise ValueError(f"--input={flags.input} is empty")
        if flags.batch_size < 1:
            raise ValueError(f"--batch_size={flags.batch_size} must be at least 1")
        output = open(flags.output, "w", encoding="utf-8") if flags.output else None  # noqa: SIM115
    completions = generator([record["document"] for record in records], flags.batch_size)
    run_errors = command_line.errors("clp_jax.generate", *command_line.RUN_ERRORS, OSError)
    with run_errors, output or contextlib.nullcontext(sys.stdout) as file:
        for record, completion in zip(records, completions, strict=True):
            row = {"document": record["document"], "completion": completion, **generator.weights}
            print(json.dumps(row, ensure_ascii=False), file=file, flush=True)


def _records(path: str, field: str) -> Iterable[Mapping[str, str]]:
    from clp_jax.data import tasks

    if path != "-":
        return tasks.read_jsonl(path, {"document": field})
    return _parsed(sys.stdin, field)


def _parsed(lines: Iterable[str], field: str) -> Iterator[Mapping[str, str]]:
    from clp_jax.data import tasks

    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield tasks.parse_line(line, {"document": field}, f"standard input:{number}")


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("clp_jax.generate", __doc__)
    parser.add_argument("--model_dir", required=True, help="MODEL_DIR of a clp_jax.train run")
    parser.add_argument(
        "--reward_weights",
        required=True,
        metavar="W1,W2,...",
        help="w, in the order of REWARDS; they sum to 1",
    )
    parser.add_argument("--kl_weight", type=float, help="α in [α_min, 1]; default: α_min")
    parser.add_argument("--input", required=True, help="JSONL file, or - for standard input")
    parser.add_argument("--output", help="JSONL file; default: standard output")
    parser.add_argument("--document_field", default="document", help="default: %(default)s")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 is greedy, 1 samples as in training; default: %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling; default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--step", type=int, help="checkpoint; default: the latest")
    command_line.add_mixing_argument(parser)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
