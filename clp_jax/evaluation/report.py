"""What a sweep leaves to read and to look at."""

import json
import pathlib
import shutil

from clp_jax.evaluation import plots
from clp_jax.evaluation.result import PROMPTS, SweepResult
from clp_jax.evaluation.sweep import PARTS
from clp_jax.reporting.metrics_log import markdown_table, say

VALUES = "values.json"


def write(result: SweepResult, folder: pathlib.Path) -> None:
    """Writes prompts.npz, front.png and values.json to `folder`, and prints the table."""
    folder.mkdir(parents=True, exist_ok=True)
    result.save(folder / PROMPTS)
    plots.front(result, folder / "front.png")
    partial = folder / f".{VALUES}.partial"
    partial.write_text(json.dumps(result.to_json(), indent=1))
    partial.rename(folder / VALUES)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    say(markdown_table(result.rows()))
    for front in result.fronts():
        where = f"α {front.kl_weights[0]:g}: " if len(result.fronts()) > 1 else ""
        for name, spread in front.ranges.items():
            say(f"{where}{name}: range {spread:.3f}, Kendall tau {front.controllability[name]:.2f}")
    say(f"over {result.num_prompts} prompts; written to {folder}/{VALUES}, {PROMPTS}, front.png")
    if result.truncated_prompts:
        say(f"{result.truncated_prompts} prompts were longer than the encoder's length: truncated")
