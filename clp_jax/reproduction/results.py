"""The evaluations of a reproduction's runs, and what is measured of each."""

import functools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from clp_jax.evaluation import pareto
from clp_jax.evaluation import result as result_lib
from clp_jax.evaluation.result import SweepResult
from clp_jax.reproduction.runs import Scale

Measure = Callable[[SweepResult], float]


class Results:
    """The evaluations of finished runs.

    Args:
      output: folder of everything.
      scale: of the runs.
    """

    def __init__(self, output: pathlib.Path, scale: Scale):
        self._output, self.scale, self.seeds = output, scale, scale.seeds
        self._load = functools.cache(result_lib.load)

    def of(self, experiment: str, method: str, step: int | None = None) -> list[SweepResult]:
        """One evaluation for each seed, of one step or of T."""
        found = []
        for seed in self.seeds:
            steps = result_lib.evaluations(self.folder(experiment, method, seed))
            found.append(self._load(steps[max(steps) if step is None else step]))
        return found

    def folder(self, experiment: str, method: str, seed: int) -> pathlib.Path:
        """The MODEL_DIR of one run."""
        return self._output / "runs" / experiment / method / str(seed)


def hypervolume(result: SweepResult) -> float:
    """Of the front, above 0 for each reward."""
    return pareto.hypervolume(result.values, np.zeros(len(result.names)))


def scalarized(result: SweepResult) -> np.ndarray:
    """V_w at each weighting, [n]."""
    return pareto.scalarized(result.values, result.reward_weights)


def rouge_range(result: SweepResult) -> float:
    """max − min over the weightings of the value of ROUGE."""
    return result.ranges["rouge"]


def least_tau(result: SweepResult) -> float:
    """The smallest of the objectives' Kendall's τ-b."""
    return min(result.controllability.values())


def extent(result: SweepResult) -> float:
    """The mean distance between the values at two corners."""
    return pareto.extent(result.reward_weights, result.values)


def each(measure: Measure, results: Sequence[SweepResult]) -> np.ndarray:
    """One number for each seed."""
    return np.array([measure(result) for result in results])
