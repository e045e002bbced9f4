"""What the benchmarks share: sizes of models, times and memory, reports.

Nothing here imports jax or torch before a function needs them.
"""

import argparse
import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# An id that no vocabulary has. As the end of a completion it lets all run to their full length.
NO_EOS = 2**30

# The sizes of t5x's T5 1.1 small but for the number of heads: 70,664,704 parameters.
SMALL = {
    "vocab_size": 32128,
    "emb_dim": 512,
    "num_heads": 8,
    "num_encoder_layers": 6,
    "num_decoder_layers": 6,
    "head_dim": 64,
    "mlp_dim": 1024,
    "mlp_activations": ("gelu", "linear"),
    "dropout_rate": 0.0,
    "logits_via_embedding": False,
}
TINY = SMALL | {
    "vocab_size": 96,
    "emb_dim": 16,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "head_dim": 8,
    "mlp_dim": 32,
}

_MEBIBYTE = 2**20


# ------------------------------------------------------------------------------------------------
# Command lines
# ------------------------------------------------------------------------------------------------


def parser(description: str, batch_size: int) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks have.

    Args:
      description: what --help says of the script, as it stands.
      batch_size: the default.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--batch_size",
        type=_positive,
        action="append",
        help=f"prompts per batch; may be given several times (default: {batch_size})",
    )
    made.add_argument(
        "--rounds",
        type=_positive,
        default=7,
        help="timed turns of each contestant; medians are over these (default: %(default)s)",
    )
    made.add_argument(
        "--prompt_length",
        type=_positive,
        default=256,
        help="encoder tokens of each prompt, none of them padding (default: %(default)s)",
    )
    made.add_argument(
        "--completion_length",
        type=_positive,
        default=32,
        help="tokens sampled for each prompt; none is taken as EOS (default: %(default)s)",
    )
    made.add_argument(
        "--threads",
        type=_positive,
        default=2,
        help="processor cores to use, if there are as many (default: %(default)s)",
    )
    made.add_argument(
        "--tiny",
        action="store_true",
        help="a model of some thousand parameters in place of one of T5-small size, to try the "
        "script itself; its times mean nothing",
    )
    made.add_argument("--output", type=pathlib.Path, help="file to write the results to, as JSON")
    made.add_argument("--worker", help=argparse.SUPPRESS)
    made.set_defaults(default_batch_size=batch_size)
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not an integer >= 1")
    return value


def settings_of(arguments: argparse.Namespace, batch_size: int) -> dict[str, Any]:
    """What determines the work, as a dict that survives JSON."""
    return {
        "batch_size": batch_size,
        "prompt_length": arguments.prompt_length,
        "completion_length": arguments.completion_length,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "tiny": arguments.tiny,
        "dtype": "float32",
        "model": TINY if arguments.tiny else SMALL,
    }


# ------------------------------------------------------------------------------------------------
# Model and data
# ------------------------------------------------------------------------------------------------


def make_module(settings: Mapping[str, Any]) -> Any:
    """Our T5 of the benchmark's size."""
    from clp_jax.models import t5

    return t5.Transformer(t5.T5Config(**settings["model"]))


def make_params(module: Any) -> Any:
    """Random parameters of `module`, the same at each call."""
    import jax

    return jax.jit(_initialise(module))()


def param_shapes(module: Any) -> Any:
    """The tree of shapes of the parameters of `module`."""
    import jax

    return jax.eval_shape(_initialise(module))


def _initialise(module: Any) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    def initialise() -> Any:
        tokens = jnp.ones((1, 2), jnp.int32)
        return module.init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False)[
            "params"
        ]

    return initialise


def make_prompts(settings: Mapping[str, Any]) -> Any:
    """Random prompts of full length, [B, K] int32 on the host."""
    import numpy as np

    shape = (settings["batch_size"], settings["prompt_length"])
    vocab_size = settings["model"]["vocab_size"]
    return np.random.default_rng(0).integers(2, vocab_size, shape).astype(np.int32)


# ------------------------------------------------------------------------------------------------
# Time and memory
# ------------------------------------------------------------------------------------------------


def limit_threads(threads: int) -> int:
    """Binds the process to this many cores, or to all where there are fewer; returns how many.

    To be called before a library makes its pool of threads.
    """
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    return len(cores)


def milliseconds(function: Callable[[], Any]) -> float:
    """How long a call takes; it has to wait for its result by itself."""
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def resident_mib() -> float:
    """Memory the process holds now, in MiB; its peak where the system does not say."""
    return _memory("VmRSS")


def peak_mib() -> float:
    """The most memory the process held since `reset_peak`, in MiB."""
    return _memory("VmHWM")


def reset_peak() -> None:
    """Starts `peak_mib` anew, where the system can (Linux); returns freed memory to it first."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        pass  # `peak_mib` is then the peak of the process


def _memory(field: str) -> float:
    # Not ru_maxrss, which a process inherits from the one that started it.
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        found = next(line for line in lines if line.startswith(f"{field}:"))
        return int(found.split()[1]) * 1024 / _MEBIBYTE
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / _MEBIBYTE


def compare(times: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Times in ms, and what they are as a multiple of the times of another in the same rounds."""
    return {
        "median_ms": statistics.median(times),
        "min_ms": min(times),
        "times_ms": list(times),
        "ratio": statistics.median(times) / statistics.median(base),
        "median_of_round_ratios": statistics.median(
            ours / theirs for ours, theirs in zip(times, base, strict=True)
        ),
    }


# ------------------------------------------------------------------------------------------------
# Reports
# ------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """What the results depend on beside the code: versions and machine."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


def _title(settings: Mapping[str, Any]) -> str:
    """The line above a table: what was measured."""
    return (
        f"\n{'tiny' if settings['tiny'] else 'T5-small size'}, batch {settings['batch_size']}, "
        f"prompts of {settings['prompt_length']} tokens, {settings['completion_length']} sampled "
        f"tokens, {settings['dtype']}, {settings['threads']} threads, {settings['rounds']} rounds"
    )


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Aligned text.

    Args:
      rows: one dict per line.
      columns: key -> format specification; keys are the head of the table too. A value that is
        missing or None is shown as '-'.
    """

    def cell(row: Mapping[str, Any], key: str) -> str:
        value = row.get(key)
        return "-" if value is None else format(value, columns[key])

    lines = [[key.replace("_", " ") for key in columns]]
    lines += [[cell(row, key) for key in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def report(
    benchmark: str,
    arguments: argparse.Namespace,
    measure: Callable[[dict[str, Any]], tuple[list[dict[str, Any]], str]],
    **more: Any,
) -> None:
    """Measures each batch size, prints a table of each and writes the JSON, if it has a file.

    Args:
      benchmark: its name.
      arguments: of the command line.
      measure: settings -> (rows, what is printed of them).
      **more: for the JSON.
    """
    threads = limit_threads(arguments.threads)
    made: dict[str, Any] = {"benchmark": benchmark, "environment": environment(), **more}
    made["settings"], made["results"] = [], []
    for batch_size in arguments.batch_size or [arguments.default_batch_size]:
        settings = settings_of(arguments, batch_size) | {"threads": threads}
        rows, printed = measure(settings)
        made["settings"].append(settings)
        made["results"] += rows
        print(_title(settings))
        print(printed, flush=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(made, indent=2) + "\n")


def importable(module: str) -> bool:
    """Whether there is a module of this name; does not import it."""
    return importlib.util.find_spec(module) is not None
