"""Speed and memory of a rollout: ours, Hugging Face transformers on torch, and t5x."""

import functools
import json
import statistics
import tempfile
from collections.abc import Mapping
from typing import Any

import common
import implementations
import numpy as np
import processes

_DESCRIPTION = f"""{__doc__}

All have the same weights, prompts and lengths, and draw every token from the whole distribution.
Greedy tokens must agree before anything is timed. `t5x-gather` is t5x with its embedding, a product
with one-hot vectors, replaced by a gather. What cannot be imported is skipped.

    python benchmarks/rollout.py --batch_size=8 --batch_size=32 --output=rollout.json

Columns of the table:
  median ms, min ms       of a rollout
  first token ms          median of a rollout of one token: the encoder and one decoding step
  ratio                   median of the rollout / median of ours
  median of round ratios  the same, but the quotient is taken in each round
  GFLOP/s                 by the products that a T5 needs, counted with 2 m n k each
  of peak                 the same as a fraction of what this library does for one large product
  peak MiB                memory of the process during rollouts, compilation left out
  above start MiB         of which not yet held when the parameters were loaded
  greedy equal            share of greedy tokens equal to ours
"""
_LEAST_AGREEMENT = 0.99


class Contestant:
    """One implementation in its process.

    Args:
      settings: of the work, and which implementation.
    """

    def __init__(self, settings: Mapping[str, Any]):
        self._length = settings["completion_length"]
        self._product_size = 128 if settings["tiny"] else 4096
        self._implementation = implementations.IMPLEMENTATIONS[settings["implementation"]](settings)
        self._seed = 0
        common.reset_peak()
        self._start_mib = common.resident_mib()

    def greedy(self) -> list[list[int]]:
        """The most probable tokens."""
        return self._implementation.run(self._length, True, 0).tolist()

    def warm_up(self) -> None:
        """Compiles and runs all that is timed."""
        for _ in range(2):
            self.rollout()
            self.first_token()
        self.product()

    def rollout(self) -> dict[str, float]:
        """Time of one rollout, and memory at its peak."""
        common.reset_peak()
        ms = self._sample(self._length)
        return {"ms": ms, "peak_mib": common.peak_mib()}

    def first_token(self) -> float:
        """Time of a rollout of one token."""
        return self._sample(1)

    def product(self) -> float:
        """GFLOP/s of one large product."""
        ms = self._implementation.multiply(self._product_size)
        return 2 * self._product_size**3 / ms / 1e6

    def start_mib(self) -> float:
        """Memory before the first rollout, parameters loaded."""
        return self._start_mib

    def _sample(self, length: int) -> float:
        self._seed += 1
        return common.milliseconds(lambda: self._implementation.run(length, False, self._seed))


def count_flops(settings: Mapping[str, Any]) -> int:
    """Floating-point operations of the products that a rollout needs, 2 m n k each.

    Keys and values of the prompt are projected once, self-attention reads the tokens so far, and
    looking up an embedding counts as nothing. An implementation may do more.
    """
    model = settings["model"]
    keys, tokens = settings["prompt_length"], settings["completion_length"]
    emb, joined = model["emb_dim"], model["num_heads"] * model["head_dim"]
    projection = 2 * emb * joined
    mlp = 2 * emb * model["mlp_dim"] * (len(model["mlp_activations"]) + 1)
    attention = 4 * joined  # logits and mixing, for each pair of query and key
    encoder = model["num_encoder_layers"] * keys * (4 * projection + attention * keys + mlp)
    projected = model["num_decoder_layers"] * keys * 2 * projection
    decoder = model["num_decoder_layers"] * (
        tokens * (6 * projection + attention * keys + mlp) + attention * tokens * (tokens + 1) // 2
    )
    logits = tokens * 2 * emb * model["vocab_size"]
    return settings["batch_size"] * (encoder + projected + decoder + logits)


def measure(settings: Mapping[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """The rows of one batch size; the first of `names` is what the others are compared to.

    Raises:
      RuntimeError: an implementation ended, or its greedy tokens are not ours.
    """
    workers = {}
    try:
        for name in names:
            workers[name] = processes.Worker(__file__, {**settings, "implementation": name})
        greedy = {name: np.array(worker.ask("greedy")) for name, worker in workers.items()}
        agreement = {name: float(np.mean(greedy[name] == greedy[names[0]])) for name in names}
        for name, share in agreement.items():
            if share < _LEAST_AGREEMENT:
                raise RuntimeError(
                    f"{share:.3f} of the greedy tokens of {name} are those of {names[0]}; at least "
                    f"{_LEAST_AGREEMENT} have to be, so they do not run the same model"
                )
        for worker in workers.values():
            worker.ask("warm_up")
        measured = {
            what: processes.interleave(
                {name: functools.partial(workers[name].ask, what) for name in names},
                settings["rounds"],
            )
            for what in ("rollout", "first_token", "product")
        }
        start = {name: worker.ask("start_mib") for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    return [
        _row(settings, name, names[0], measured, start[name], agreement[name]) for name in names
    ]


def _row(
    settings: Mapping[str, Any],
    name: str,
    base: str,
    measured: Mapping[str, Mapping[str, list[Any]]],
    start_mib: float,
    agreement: float,
) -> dict[str, Any]:
    turns, base_turns = measured["rollout"][name], measured["rollout"][base]
    times = common.compare([turn["ms"] for turn in turns], [turn["ms"] for turn in base_turns])
    flops, product = count_flops(settings), max(measured["product"][name])
    gflops = flops / times["median_ms"] / 1e6
    peak = max(turn["peak_mib"] for turn in turns)
    return {
        "implementation": name,
        "batch_size": settings["batch_size"],
        **times,
        "first_token_ms": statistics.median(measured["first_token"][name]),
        "first_token_times_ms": measured["first_token"][name],
        "tokens/s": 1e3
        * settings["batch_size"]
        * settings["completion_length"]
        / times["median_ms"],
        "flops": flops,
        "GFLOP/s": gflops,
        "product_GFLOP/s": product,
        "of_peak": gflops / product,
        "peak_MiB": peak,
        "above_start_MiB": peak - start_mib,
        "greedy_equal": agreement,
    }


_COLUMNS = {
    "implementation": "s",
    "median_ms": ".1f",
    "min_ms": ".1f",
    "first_token_ms": ".1f",
    "tokens/s": ".0f",
    "ratio": ".3f",
    "median_of_round_ratios": ".3f",
    "GFLOP/s": ".1f",
    "product_GFLOP/s": ".1f",
    "of_peak": ".3f",
    "peak_MiB": ".0f",
    "above_start_MiB": ".0f",
    "greedy_equal": ".4f",
}


def main() -> None:
    """The command."""
    parser = common.parser(_DESCRIPTION, batch_size=32)
    parser.add_argument(
        "--implementation",
        action="append",
        choices=list(implementations.IMPLEMENTATIONS),
        help="what to measure; may be given several times, and all but the first are compared to "
        "the first (default: all that can be imported)",
    )
    arguments = parser.parse_args()
    if arguments.worker:
        settings = json.loads(arguments.worker)
        common.limit_threads(settings["threads"])
        processes.serve(lambda: Contestant(settings))
        return

    names, skipped = [], {}
    for name in dict.fromkeys(arguments.implementation or implementations.IMPLEMENTATIONS):
        missing = [
            module for module in implementations.NEEDS[name] if not common.importable(module)
        ]
        if missing:
            skipped[name] = f"{missing[0]} is not importable: skipped"
            print(f"{name}: {skipped[name]}")
        else:
            names.append(name)
    if not names:
        raise SystemExit("nothing to measure")

    def measure_and_show(settings: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
        with tempfile.TemporaryDirectory() as folder:
            _write_weights(settings, folder)
            rows = measure({**settings, "weights": folder}, names)
        return rows, common.table(rows, _COLUMNS)

    common.report("rollout", arguments, measure_and_show, skipped=skipped)


def _write_weights(settings: Mapping[str, Any], folder: str) -> None:
    from clp_jax.models import hf_checkpoints

    module = common.make_module(settings)
    hf_checkpoints.save(folder, common.make_params(module), module.config)


if __name__ == "__main__":
    main()
