import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clp_jax.policies.prompting import prepend, weight_prefix


def test_the_papers_example():
    expected = "factuality: 0.4 0.4 0.4 0.4 0.4; rouge: 0.6 0.6 0.6 0.6 0.6. "
    assert weight_prefix(("factuality", "rouge"), np.array([0.4, 0.6])) == expected


@pytest.mark.parametrize(
    ("weight", "decimals", "text"),
    [
        (0.4, 2, "0.4"),
        (0.3749, 2, "0.37"),
        (1.0, 2, "1"),
        (0.0, 2, "0"),
        (-0.001, 2, "0"),
        (0.005, 3, "0.005"),
        (10.0, 0, "10"),
    ],
)
def test_numbers(weight, decimals, text):
    assert weight_prefix(["r"], [weight], repetitions=2, decimals=decimals) == f"r: {text} {text}. "


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"names": ("a", "b"), "reward_weights": [1.0]}, "1 for 2 rewards"),
        ({"names": (), "reward_weights": []}, "0 for 0 rewards"),
        ({"names": ("a",), "reward_weights": [float("nan")]}, "finite"),
        ({"names": ("a",), "reward_weights": [1.0], "repetitions": 0}, "repetitions is 0"),
        ({"names": ("a",), "reward_weights": [1.0], "decimals": -1}, "decimals is -1"),
    ],
)
def test_bad_prefix(kwargs, message):
    with pytest.raises(ValueError, match=message):
        weight_prefix(**kwargs)


@given(
    prefix=st.lists(st.integers(1, 99), max_size=4),
    prompts=st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=5),
)
def test_prepend_is_concatenation_cut_at_the_length(prefix, prompts):
    length = 6
    padded = np.array([p + [0] * (length - len(p)) for p in prompts], np.int32)
    tokens, cut = prepend(prefix, padded)
    assert tokens.dtype == np.int32
    full = [prefix + p for p in prompts]
    for row, whole in zip(tokens, full, strict=True):
        assert row.tolist() == (whole + [0] * length)[:length]
    assert cut.tolist() == [len(whole) > length for whole in full]


def test_a_cut_prompt_keeps_its_end_of_sequence():
    prompts = np.array([[5, 6, 7, 1], [5, 6, 7, 8], [1, 0, 0, 0], [0, 0, 0, 0]])
    tokens, cut = prepend([9, 9], prompts, eos_id=1)
    assert tokens.tolist() == [[9, 9, 5, 1], [9, 9, 5, 6], [9, 9, 1, 0], [9, 9, 0, 0]]
    assert cut.tolist() == [True, True, False, False]


def test_prompts_are_not_changed_in_place():
    prompts = np.array([[5, 6, 7, 1]])
    prepend([9], prompts, eos_id=1)
    assert prompts.tolist() == [[5, 6, 7, 1]]


@pytest.mark.parametrize("size", [4, 5])
def test_a_prefix_that_leaves_no_room(size):
    with pytest.raises(ValueError, match=f"has {size} tokens.*encoder length of 4"):
        prepend([3] * size, np.ones((2, 4), np.int32))


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"expected \[P\] and \[B, E\]"):
        prepend([3], np.ones(4, np.int32))
