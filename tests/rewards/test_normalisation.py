import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clp_jax.rewards.base import NamedReward
from clp_jax.rewards.normalisation import Mixture, normalise


@given(
    low=st.floats(-1e3, 1e3),
    width=st.floats(1e-3, 1e3),
    a=st.floats(-1e4, 1e4),
    b=st.floats(-1e4, 1e4),
    t=st.floats(-2, 3),
)
def test_normalise_is_affine_and_maps_the_endpoints(low, width, a, b, t):
    bounds = (low, low + width)
    assert normalise(bounds[0], bounds) == 0.0
    assert normalise(bounds[1], bounds) == 1.0
    mixed = normalise((1 - t) * a + t * b, bounds)
    expected = (1 - t) * normalise(a, bounds) + t * normalise(b, bounds)
    scale = (1 + abs(a) + abs(b) + abs(low)) / (bounds[1] - low)
    assert mixed == pytest.approx(expected, rel=1e-9, abs=1e-9 * scale)


def test_the_papers_ranges_without_clipping():
    assert normalise(np.array([-7.0, -3.5, 0.0, 7.0]), (-7, 0)).tolist() == [0, 0.5, 1, 2]
    assert normalise(np.array([19.0, 14.0, 29.0]), (19, 29)).tolist() == [0, -0.5, 1]
    assert float(normalise(jnp.array(0.2), (-1.6, 2))) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "bad", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1), (1,), (0, 1, 2), 3, "01", None]
)
def test_bad_range(bad):
    def reward(prompts, completions):
        return []

    reward.range = bad
    with pytest.raises(ValueError, match=r"range of reward 'mine' is .*low < high"):
        NamedReward.of("mine", reward)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "expected {reward: weight"),
        ([("a", 1.0)], "expected {reward: weight"),
        ({"a": 0.5, "b": 0.4}, r"sum to 0.9; they must sum to 1"),
        ({"a": 0.0}, "sum to 0"),
        ({"a": 1.5, "b": -0.5}, "weight of 'b' is -0.5"),
        ({"a": float("nan")}, "weight of 'a' is nan"),
        ({"a": float("inf")}, "weight of 'a' is inf"),
        ({"a": "1"}, "weight of 'a' is '1'"),
        ({"a": True}, "weight of 'a' is True"),
    ],
)
def test_bad_mixture(weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture(weights)


def test_rounded_mixture_weights_are_taken():
    assert Mixture({"a": 0.3333333, "b": 0.3333333, "c": 0.3333334}).combine(
        {"a": 1.0, "b": 1.0, "c": 1.0}
    ) == pytest.approx(1.0)
