"""What a run leaves to look at: TensorBoard, JSONL logs and lines on the console."""

import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

# What a progress line shows of the metrics; the logs have them all.
_SHOWN = ("rewards/", "objective/", "rollout/length", "loss/cross_entropy", "accuracy")


class Log:
    """Where a run's metrics go; this one drops them, as all processes but the first do."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes scalars; names are paths such as 'rewards/rouge'."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes a table of sample completions; each row has the same keys."""

    def close(self) -> None:
        """Flushes everything to disk."""


def opened(directory: pathlib.Path, step: int = 0) -> Log:
    """A `MetricsLog`; of several processes, only the first one writes."""
    return MetricsLog(directory, step) if jax.process_index() == 0 else Log()


class MetricsLog(Log):
    """Writes scalars and sample completions of one run.

    Args:
      directory: TensorBoard events, metrics.jsonl and samples.jsonl go here.
      step: the step training goes on from; lines of later steps, left by a run that was killed
        after its last checkpoint, are dropped.
    """

    def __init__(self, directory: pathlib.Path, step: int = 0):
        from clu import metric_writers  # brings TensorFlow, which not every command needs

        directory.mkdir(parents=True, exist_ok=True)
        self._tensorboard = metric_writers.SummaryWriter(str(directory))
        self._metrics = _open_at(directory / "metrics.jsonl", step)
        self._samples_path = directory / "samples.jsonl"
        if self._samples_path.exists():
            _open_at(self._samples_path, step).close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars; names are paths such as 'rewards/rouge'."""
        self._tensorboard.write_scalars(step, dict(values))
        # JSON has no NaN.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._metrics.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        self._metrics.flush()

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a table of sample completions; each row has the same keys."""
        self._tensorboard.write_texts(step, {"samples": markdown_table(rows)})
        with self._samples_path.open("a") as file:
            for row in rows:
                file.write(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Flushes everything to disk."""
        self._tensorboard.close()
        self._metrics.close()


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with equal keys as a Markdown table; numbers to three digits."""
    cells = [[_cell(value) for value in row.values()] for row in rows]
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _open_at(path: pathlib.Path, step: int):
    """Opens a JSONL log for appending, without the lines after `step`."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(kept))
    partial.rename(path)
    return path.open("a")


class Window:
    """Means of the metrics since the last line of the log."""

    def __init__(self):
        self._rows: list[Mapping[str, Any]] = []

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Adds one step's scalars (numbers on the host); steps need not have the same names."""
        self._rows.append(metrics)

    def means(self) -> dict[str, float]:
        """Means in float64, each over the steps that have the name; empties the window.

        In order of first appearance.
        """
        rows, self._rows = self._rows, []
        values: dict[str, list[Any]] = {}
        for row in rows:
            for name, value in row.items():
                values.setdefault(name, []).append(value)
        return {name: float(np.mean(column, dtype=float)) for name, column in values.items()}


class Progress:
    """One line a report on stderr, with speed and time left.

    The first step is left out of both: it is mostly compilation.

    Args:
      what: named in front of each line.
      first_step: where counting starts.
      total_steps: where it ends.
    """

    def __init__(self, what: str, first_step: int, total_steps: int):
        self._what, self._total = what, total_steps
        self._origin_step, self._origin = first_step, 0.0

    def report(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Prints the line for `step` steps done; returns the timing metrics."""
        seconds = time.monotonic() - self._origin
        speed = (step - self._origin_step) / seconds if seconds > 0 else 0.0
        eta = f"{(self._total - step) / speed:.0f} s" if speed else "?"
        shown = [
            f"{name.rpartition('/')[2]} {value:.3g}"
            for name, value in metrics.items()
            if name.startswith(_SHOWN) or (name.startswith("data/truncated") and value)
        ]
        done = f"{step}/{self._total} ({100 * step // max(self._total, 1)} %)"
        say(f"{self._what} {done}  {speed:.1f} steps/s  ETA {eta}  {' '.join(shown)}")
        return {"timing/steps_per_second": speed}

    def started(self, step: int) -> None:
        """Call when the first step is done: timing counts from here."""
        self._origin_step, self._origin = step, time.monotonic()

    def pause(self, seconds: float) -> None:
        """Leaves time spent on something else (evaluation) out of the speed."""
        self._origin += seconds


def say(text: str) -> None:
    """One message to the person at the console: stderr, so that stdout stays for results.

    Of several processes, only the first one speaks.
    """
    if not jax.distributed.is_initialized() or jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)
