import itertools

import numpy as np
import pytest
import smoke
from hypothesis import given
from hypothesis import strategies as st

from clp_jax.algorithm.weighting import SoftmaxKLMix
from clp_jax.evaluation import grids


@given(st.integers(1, 4), st.integers(2, 6))
def test_simplex_grid_is_every_point_of_the_simplex(m, points):
    grid = grids.simplex_grid(m, points)
    counts = np.round(grid * (points - 1)).astype(int)
    expected = {c for c in np.ndindex(*[points] * m) if sum(c) == points - 1}  # brute force
    assert {tuple(row) for row in counts} == (expected if m > 1 else {(points - 1,)})
    assert len(grid) == len(expected)


def test_two_reward_grid_goes_from_the_first_reward_to_the_second():
    np.testing.assert_allclose(grids.simplex_grid(2, 11)[:, 0], np.linspace(1, 0, 11), atol=1e-12)


def test_kl_grid_is_even_in_beta():
    mix = SoftmaxKLMix(0.01)
    grid = grids.kl_weight_grid(mix, 5)
    np.testing.assert_allclose(mix(grid), [0, 0.25, 0.5, 0.75, 1], atol=1e-4)


def test_three_rewards_have_thirteen_weightings_that_treat_them_alike():
    grid = grids.reward_weights_grid(3)
    assert grid.shape == (13, 3)
    np.testing.assert_allclose(grid.sum(axis=1), 1)
    rows = {tuple(np.round(row, 9)) for row in grid}
    assert len(rows) == 13
    for row in rows:  # whatever is asked of one reward is asked of each
        assert set(itertools.permutations(row)) <= rows
    zeros = (grid == 0).sum(axis=1)
    assert [(zeros == k).sum() for k in (2, 1, 0)] == [3, 3, 7]  # corners, edges, inside


@pytest.mark.parametrize(("m", "points"), [(1, 1), (2, 11), (4, 11), (5, 16)])
def test_other_numbers_of_rewards(m, points):
    grid = grids.reward_weights_grid(m)
    assert grid.shape == (points, m)
    np.testing.assert_allclose(grid.sum(axis=1), 1)
    if m > 1:
        assert {tuple(row) for row in np.eye(m)} <= {tuple(row) for row in grid}


def test_grids(tmp_path):
    def grid(*bindings):
        return grids.grid(smoke.configured(tmp_path, "EVAL_GRID_POINTS=3", *bindings))

    assert [(a, tuple(w)) for a, w in grid()] == [
        (0.01, (1, 0)),
        (0.01, (0.5, 0.5)),
        (0.01, (0, 1)),
    ]
    assert len(grid("REWARDS=('entailment', 'rouge', 'quality')")) == 6
    inverse = "KL_WEIGHT_SAMPLER=@weighting.InverseCDFKLWeight()"
    assert {a for a, _ in grid(inverse)} == {0.01}
    multi = grid(inverse, "REWARDS=('entailment',)")
    np.testing.assert_allclose([a for a, _ in multi], [0.01, 2 * 0.01 / 1.01, 1.0], rtol=1e-5)


def test_a_run_of_one_weighting_is_evaluated_at_it(tmp_path):
    files = ["gin/single_objective.gin", "gin/briefs.gin", "gin/smoke.gin"]
    run = smoke.configured(tmp_path, "REWARD_WEIGHTS=(0.3, 0.7)", files=files)
    assert [(a, w.tolist()) for a, w in grids.grid(run)] == [(0.01, [0.3, 0.7])]


def test_mixing_logits_is_evaluated_over_the_kl_weight(tmp_path):
    files = ["gin/dera.gin", "gin/briefs.gin", "gin/smoke.gin"]
    run = smoke.configured(tmp_path, "REWARDS=('entailment',)", "EVAL_GRID_POINTS=3", files=files)
    alphas = [a for a, _ in grids.grid(run)]
    np.testing.assert_allclose(alphas, [0.01, 2 * 0.01 / 1.01, 1.0], rtol=1e-5)
