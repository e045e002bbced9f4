"""What the counterexample leaves: a table, its figures as JSON, and Fig. 19."""

import json
import pathlib
from typing import Any

from matplotlib.figure import Figure

from clp_jax.theory.counterexample import Counterexample


def rows(result: Counterexample) -> list[dict[str, Any]]:
    """A line for each seed and one of the worst: the largest gaps and p(y3 | w = ½) by method.

    CLP's worst p(y3) is the least; that of the others, which should be small, is the largest.
    """
    table: list[dict[str, Any]] = [{"seed": str(seed)} for seed in (*result.seeds, "worst")]
    for method in result.methods:
        ours = method is result.clp
        worst_gap = method.largest_gaps.max() if ours else method.largest_gaps.min()
        worst_share = method.compromise.min() if ours else method.compromise.max()
        columns = {
            f"{method.name}: largest gap": (*method.largest_gaps, worst_gap),
            f"{method.name}: p(y3)": (*method.compromise, worst_share),
        }
        for name, column in columns.items():
            for row, number in zip(table, column, strict=True):
                row[name] = f"{number:.4f}"
    return table


def write(result: Counterexample, folder: pathlib.Path) -> None:
    """Writes counterexample.json and counterexample.png to a folder that exists."""
    plot(result, folder / "counterexample.png")
    partial = folder / ".counterexample.json.partial"
    partial.write_text(json.dumps(to_json(result), indent=1))
    partial.rename(folder / "counterexample.json")


def to_json(result: Counterexample) -> dict[str, Any]:
    """Settings, and of each method: gaps [S, n], p(y3) [S] and fronts [S, n, 2]."""
    return {
        "kl_weight": result.optimal.kl_weight,
        "steps": result.steps,
        "seeds": list(result.seeds),
        "reward_weights": result.optimal.reward_weights.tolist(),
        "methods": {
            method.name: {
                "largest_gaps": method.largest_gaps.tolist(),
                "compromise": method.compromise.tolist(),
                "gaps": method.gaps.tolist(),
                "values": method.values.tolist(),
            }
            for method in (result.optimal, *result.methods)
        },
    }


def plot(result: Counterexample, path: pathlib.Path) -> None:
    """Fig. 19: the fronts in (V_{α,R1}, V_{α,R2}), one line for each seed, and the optimal one.

    Args:
      result: of `run`.
      path: a file whose ending says the format.
    """
    figure = Figure((6, 4.5), layout="constrained")  # not of pyplot, which wants a display
    axes = figure.subplots()
    styles = (
        (result.logit_mixing, "C2", "x"),
        (result.rewarded_soups, "C1", "s"),
        (result.clp, "C0", "o"),
    )
    for method, color, marker in styles:
        lines = axes.plot(
            *method.values.T, color=color, marker=marker, markersize=3, linewidth=0.8, alpha=0.5
        )
        lines[0].set_label(method.name)
    axes.plot(*result.optimal.values[0].T, color="black", linestyle="--", label="optimal")
    axes.set(xlabel="$V$ of $R_1$", ylabel="$V$ of $R_2$")
    axes.set_title(f"α = {result.optimal.kl_weight:g}, {len(result.seeds)} seeds", fontsize="small")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
