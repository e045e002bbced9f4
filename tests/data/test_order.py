"""An epoch is a permutation of all examples, another one each time; the position is one number."""

import collections

import numpy as np
import pytest

from clp_jax.data.order import Order


def made(count=200, batch_size=8, repeat=True, shuffle=True, seed=0, share=(0, 1)):
    return Order(count, batch_size, repeat=repeat, shuffle=shuffle, seed=seed, share=share)


def drawn(order, batches):
    return np.concatenate([next(order) for _ in range(batches)])


@pytest.mark.parametrize("batch_size", [8, 7, 200, 450])
def test_every_epoch_has_each_example_once(batch_size):
    order = made(batch_size=batch_size)
    stream = drawn(order, 2000 // batch_size + 1)
    epochs = [stream[i : i + 200] for i in range(0, 2000, 200)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(200))
    assert len({tuple(epoch) for epoch in epochs}) == 10


def test_the_order_is_far_from_that_of_the_file():
    # A buffer of 1,000 gives .88 for the first 300 batches of 32 of 20,000 .
    stream = drawn(made(20_000, 32), 300)
    assert abs(np.corrcoef(np.arange(len(stream)), stream)[0, 1]) < 0.04  # 4 / sqrt(9,600)
    late = drawn(made(20_000, 32), 301)[-32:]
    assert late.min() < 5_000 < 15_000 < late.max()


def test_permutations_are_uniform():
    # χ² of the 24 permutations of 4 examples over 4,800 epochs: 23 degrees, P(> 60) < 1e-4.
    stream = drawn(made(4, 4, seed=3), 4800).reshape(-1, 4)
    counts = collections.Counter(map(tuple, stream.tolist()))
    assert len(counts) == 24
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 60


def test_seeds_differ_and_repeat():
    same, other, large = (drawn(made(seed=s), 25).tolist() for s in (0, 1, 2**32))
    assert drawn(made(seed=0), 25).tolist() == same
    assert len({tuple(each) for each in (same, other, large)}) == 3


def test_the_numbers_are_those_of_numpys_frozen_generator():
    # Written down of numpy 2.4: a run that another NumPy goes on with has to see the same.
    epochs = [[1, 7, 5, 2, 6, 0, 4, 3, 9, 8], [4, 3, 2, 1, 6, 5, 7, 8, 0, 9]]
    assert drawn(made(10, 5, seed=7), 4).reshape(2, 10).tolist() == epochs


@pytest.mark.parametrize("readers", [1, 2, 4, 8])
def test_any_number_of_readers_gets_the_same_batches(readers):
    each = [made(share=(i, readers)) for i in range(readers)]
    together = [np.concatenate([next(reader) for reader in each]) for _ in range(60)]
    np.testing.assert_array_equal(np.concatenate(together), drawn(made(), 60))


@pytest.mark.parametrize("readers", [1, 2, 8])
def test_any_number_of_readers_goes_on_exactly(readers):
    order = made(share=(1, 2))
    drawn(order, 40)
    position = order.position()
    assert sum(array.nbytes for array in position.values()) == 8
    each = [made(share=(i, readers)) for i in range(readers)]
    for reader in each:
        reader.restore(position)
    whole = made()
    drawn(whole, 40)
    for _ in range(30):
        batch = np.concatenate([next(reader) for reader in each])
        np.testing.assert_array_equal(batch, next(whole))


def test_once_in_all_and_in_order():
    order = made(10, 4, repeat=False, shuffle=False)
    assert [batch.tolist() for batch in order] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    again = made(10, 4, repeat=True, shuffle=False)
    assert drawn(again, 3).tolist() == [*range(10), 0, 1]


def test_a_position_of_an_earlier_version_begins_anew(capsys):
    order = made()
    order.restore({"0_of_1": {"position": np.zeros(3, np.uint8)}})
    assert "data begin anew" in capsys.readouterr().err
    np.testing.assert_array_equal(next(order), next(made()))
