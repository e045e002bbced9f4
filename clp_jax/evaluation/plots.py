"""Plots in the paper's form."""

import pathlib
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from clp_jax.evaluation.result import SweepResult

SIZE = (6.0, 4.5)  # inches


def front(result: "SweepResult", path: pathlib.Path) -> None:
    """Writes a figure of `draw_front`.

    Args:
      result: of a sweep.
      path: a file whose ending says the format.
    """
    # Not of pyplot, which would choose a window system: a training machine has no display, and a
    # notebook has chosen.
    figure = Figure(SIZE, layout="constrained")
    draw_front(result, figure.subplots())
    figure.savefig(path, dpi=150)


def draw_front(result: "SweepResult", axes: Axes) -> None:
    """The front: KL-regularised rewards on the axes, points joined in order of w (Fig. 3).

    With one reward: reward against KL, joined in order of α (Fig. 2a). With three or more: every
    objective's value over the weightings.

    Args:
      result: of a sweep.
      axes: drawn into.
    """
    fronts, names = result.fronts(), result.names
    for part in fronts:
        _draw(axes, part, f"α = {part.kl_weights[0]:.3g}" if len(fronts) > 1 else "")
    if len(fronts) > 1 or len(names) > 2:
        axes.legend()
    if len(names) == 2:
        axes.set_title(f"points are labelled with the weight of {names[0]}", fontsize="small")
    axes.grid(alpha=0.3)


def _draw(axes: Axes, part: "SweepResult", label: str) -> None:
    names, values = part.names, part.values
    if len(names) == 1:
        axes.plot(part.kl, part.normalised[:, 0], marker="o")
        _label_points(axes, part.kl, part.normalised[:, 0], part.kl_weights)
        axes.set(xlabel="KL to the reference (nats)", ylabel=f"{names[0]} (normalised)")
    elif len(names) == 2:
        axes.plot(values[:, 0], values[:, 1], marker="o", label=label)
        _label_points(axes, values[:, 0], values[:, 1], part.reward_weights[:, 0])
        axes.set(xlabel=f"$V$ {names[0]}", ylabel=f"$V$ {names[1]}")
    else:
        ticks = [", ".join(f"{w:.2g}" for w in row) for row in part.reward_weights]
        for name, column in zip(names, values.T, strict=True):
            axes.plot(range(len(ticks)), column, marker="o", label=f"{name} {label}")
        axes.set_xticks(range(len(ticks)), ticks, rotation=90, fontsize="x-small")
        axes.set(xlabel=f"w = ({', '.join(names)})", ylabel="$V$")


def _label_points(axes: Axes, xs, ys, labels) -> None:
    for x, y, label in zip(xs, ys, labels, strict=True):
        axes.annotate(f"{label:.2g}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
