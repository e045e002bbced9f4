"""Figures of several runs in the paper's form."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from clp_jax.evaluation.comparison import Comparison
from clp_jax.evaluation.comparison_tables import front_title
from clp_jax.evaluation.result import SweepResult

_PANEL = (6.0, 4.5)  # inches
_DPI = 120


def fronts(comparison: Comparison, path: pathlib.Path) -> None:
    """The fronts of all runs over one another, a panel for each α.

    Two rewards: KL-regularised rewards on the axes, points joined in order of w (Fig. 3); the
    square is the point of the largest weight on the first reward. One reward: reward against KL.
    Three or more, which no plane holds: V at each weighting.
    """
    _each_front(comparison, _front, path)


def reward_kl(comparison: Comparison, path: pathlib.Path) -> None:
    """Reward against KL, points joined in order of α or w, a panel for each α (Fig. 2a).

    With several rewards, their weighted sum w · R is on the axis; with three or more, w has no
    order, and the points are not joined.
    """
    _each_front(comparison, _reward_kl, path)


def bars(comparison: Comparison, path: pathlib.Path) -> None:
    """1 − V / V of the baseline at each weighting, lower is better; a panel for each α (Fig. 4).

    The weights stand below each other under their bars. Whiskers are 95 % intervals. There is no
    bar where the baseline's V is not above 0.
    """
    n = max(len(front.weights) for front in comparison.fronts)
    width = max(_PANEL[0], 0.25 * n * (len(comparison.others) + 1))
    figure, panels = _panels(len(comparison.fronts), 1, (width, _PANEL[1]))
    for axes, front in zip(panels[:, 0], comparison.fronts, strict=True):
        thickness = 0.8 / len(front.shortfall)
        for index, (label, shortfall) in enumerate(front.shortfall.items()):
            style = _style(comparison, label)
            places = np.arange(len(front.weights)) + (index + 0.5) * thickness - 0.4
            # A skewed statistic may lie outside its percentile interval.
            below = np.maximum(shortfall.value - shortfall.low, 0)
            above = np.maximum(shortfall.high - shortfall.value, 0)
            axes.bar(
                places, shortfall.value, thickness, yerr=[below, above], capsize=2,
                color=style["color"], label=style["label"], error_kw={"elinewidth": 0.8},
            )  # fmt: skip
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel(f"$1 - V / V$ of {_plain(comparison.baseline)} (lower is better)")
        _weighting_axis(axes, front.any_part)
        _finish(axes, front_title(front))
    figure.savefig(path, dpi=_DPI)


def progress(comparison: Comparison, path: pathlib.Path) -> None:
    """The fronts of each run at several training steps; runs side by side (Fig. 5).

    Only runs that were evaluated at more than one step are shown; there must be one.
    """
    runs = [run for run in comparison.runs if len(run.steps) > 1]
    figure, panels = _panels(len(comparison.fronts), len(runs), share="row")
    for column, run in enumerate(runs):
        colours = colormaps["viridis"](np.linspace(0.9, 0, len(run.steps)))
        for (step, swept), colour in zip(run.steps.items(), colours, strict=True):
            for axes, rows in zip(panels[:, column], swept.front_rows(), strict=True):
                _front(axes, swept.part(rows), color=colour, label=f"step {step:,}", marker="o")
        for axes, front in zip(panels[:, column], comparison.fronts, strict=True):
            _finish(axes, ", ".join(filter(None, [_plain(run.label), front_title(front)])))
    figure.savefig(path, dpi=_DPI)


def _each_front(comparison: Comparison, draw: Callable[..., None], path: pathlib.Path) -> None:
    """A panel for each α, in which `draw` adds one run after the other."""
    figure, panels = _panels(1, len(comparison.fronts))
    for axes, front in zip(panels[0], comparison.fronts, strict=True):
        for label, part in front.parts.items():
            draw(axes, part, **_style(comparison, label))
        _finish(axes, front_title(front))
    figure.savefig(path, dpi=_DPI)


def _front(axes, part: SweepResult, **style) -> None:
    names, values = part.names, part.values
    if len(names) == 1:
        _reward_kl(axes, part, **style)
    elif len(names) == 2:
        axes.plot(values[:, 0], values[:, 1], **style)
        axes.plot(values[:1, 0], values[:1, 1], marker="s", markersize=9, color=style["color"])
        axes.set(xlabel=f"$V$ {_plain(names[0])}", ylabel=f"$V$ {_plain(names[1])}")
    else:
        axes.plot((values * part.reward_weights).sum(axis=1), **style | _unordered(part))
        axes.set_ylabel("$V$")
        _weighting_axis(axes, part)


def _reward_kl(axes, part: SweepResult, **style) -> None:
    reward = (part.normalised * part.reward_weights).sum(axis=1)
    axes.plot(part.kl, reward, **style | _unordered(part))
    name = _plain(part.names[0]) if len(part.names) == 1 else "$w$ · $R$"
    axes.set(xlabel="KL to the reference (nats)", ylabel=f"{name} (normalised)")


def _unordered(part: SweepResult) -> dict[str, str]:
    """Three weights or more have no order in which their points could be joined."""
    return {"linestyle": "none"} if len(part.names) > 2 else {}


def _weighting_axis(axes, part: SweepResult) -> None:
    """Writes each weighting under its place, one weight a line; α where that is what varies."""
    if len(part.names) == 1:
        ticks = [f"{kl_weight:.2g}" for kl_weight in part.kl_weights]
        axes.set_xlabel("α")
    else:
        ticks = ["\n".join(f"{w:.2g}" for w in row) for row in part.reward_weights]
        axes.set_xlabel(f"w, from above: {_plain(', '.join(part.names))}")
    axes.set_xticks(range(len(ticks)), ticks, fontsize="x-small")
    axes.set_xlim(-0.6, len(ticks) - 0.4)


def _style(comparison: Comparison, label: str) -> dict[str, Any]:
    """One colour a run in every figure; the baseline is dashed and grey."""
    common: dict[str, Any] = {"marker": "o", "markersize": 4, "label": _plain(label)}
    if label == comparison.baseline and comparison.others:
        return common | {"color": "0.35", "linestyle": "--"}
    labels: Sequence[str] = comparison.others or (label,)
    return common | {"color": colormaps["tab10"](labels.index(label) % 10), "linestyle": "-"}


def _plain(text: str) -> str:
    """Text in which matplotlib finds neither mathematics nor a label to hide."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def _panels(rows: int, columns: int, size: tuple[float, float] = _PANEL, share="none"):
    # Not of pyplot, which would choose a window system: a training machine has no display.
    figure = Figure((size[0] * columns, size[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)


def _finish(axes, title: str) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize="small")
    if title:
        axes.set_title(title)
