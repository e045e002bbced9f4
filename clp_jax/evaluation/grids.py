"""The weightings that an evaluation walks over."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from clp_jax.algorithm import weighting as weighting_lib
from clp_jax.algorithm.weighting import KLMix

if TYPE_CHECKING:
    from clp_jax.settings.config import Run


# Of the numbers of points on an edge, the one that the paper's plots for two rewards have.
_POINTS = 11


def grid(run: "Run", kl_weights: Sequence[float] | None = None) -> list[tuple[float, np.ndarray]]:
    """The weightings a run is evaluated at: (α, w [m]).

    w walks over `reward_weights_grid`, or over the simplex in equal steps where the run says how
    many points an edge has; it stands still where the run trained on one w alone.

    Args:
      run: says m, Q and how many points there are on an edge.
      kl_weights: None for the run's fixed α, or α_min where α varies; with one reward, for a grid
        of α.

    Raises:
      ValueError: α outside [α_min, 1].
    """
    model, points = run.model, run.evaluation.grid_points
    for kl_weight in kl_weights or ():
        weighting_lib.check_kl_weight(kl_weight, model.kl_mix.kl_weight_min, "--kl_weight")
    match model.reward_weights_sampler:
        case weighting_lib.FixedRewardWeights(reward_weights=fixed) if not model.rewarded_soup:
            weights = np.asarray([fixed])
        case _ if points is None:
            weights = reward_weights_grid(model.num_objectives)
        case _:
            weights = simplex_grid(model.num_objectives, points)
    return [(float(a), w) for a, w in itertools.product(kl_weights or _kl_weights(run), weights)]


def _kl_weights(run: "Run") -> Sequence[float]:
    model, points = run.model, run.evaluation.grid_points or _POINTS
    sampler, logits = model.kl_weight_sampler, run.evaluation.mixing == "logits"
    fixed = sampler.kl_weight if isinstance(sampler, weighting_lib.FixedKLWeight) else None
    if model.num_objectives == 1 and (fixed is None or logits):
        return kl_weight_grid(model.kl_mix, points).tolist()
    return [model.kl_mix.kl_weight_min if fixed is None else fixed]


def reward_weights_grid(num_objectives: int) -> np.ndarray:
    """Reward weights that show a whole front: 11 for two rewards, 13 for three.

    Three rewards: the corners, the midpoints of the edges, the centre, and the six permutations of
    (.6, .2, .2) and (.4, .4, .2). Sec. 4.1.3 has 13 weightings too, and does not say which. More
    rewards: corners, midpoints of the edges and the centre.

    Args:
      num_objectives: m >= 1.

    Returns:
      [n, m]; corners first for m > 2, and from one corner to the other for m = 2.
    """
    if num_objectives <= 2:
        return simplex_grid(num_objectives, _POINTS)
    corners = np.eye(num_objectives)
    edges = np.stack([(a + b) / 2 for a, b in itertools.combinations(corners, 2)])
    centre = np.full((1, num_objectives), 1 / num_objectives)
    parts = [corners, edges, centre]
    if num_objectives == 3:
        parts += [0.2 + 0.4 * corners, 0.4 - 0.2 * corners]
    return np.concatenate(parts)


def simplex_grid(num_objectives: int, points: int = 11) -> np.ndarray:
    """Evenly spaced reward weights, from the first objective's corner to the last one's.

    Args:
      num_objectives: m >= 1.
      points: the number of points on each edge of the simplex, >= 2; 11 gives steps of 0.1.

    Returns:
      [n, m]; for m = 2 the rows are (1, 0), (0.9, 0.1), ..., (0, 1).

    Raises:
      ValueError: points < 2.
    """
    if points < 2:
        raise ValueError(f"a grid needs at least 2 points on an edge, got {points}")
    if num_objectives == 1:
        return np.ones([1, 1])
    steps = points - 1
    rows = [
        (*counts, steps - sum(counts))
        for counts in itertools.product(range(steps, -1, -1), repeat=num_objectives - 1)
        if sum(counts) <= steps
    ]
    return np.asarray(rows, float) / steps


def kl_weight_grid(kl_mix: KLMix, points: int = 11) -> np.ndarray:
    """KL weights evenly spaced in β = f_mix(α), from α_min to 1.

    Returns:
      [points], rising.
    """
    lowest = float(kl_mix(jnp.float32(kl_mix.kl_weight_min)))
    beta = np.linspace(lowest, 1.0, points)
    kl_weights = np.asarray(kl_mix.inverse(jnp.asarray(beta))).astype(float)
    return np.clip(kl_weights, kl_mix.kl_weight_min, 1.0)
