"""The relative position biases of T5 against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_t5 import brute_force_bucket

from clp_jax.models import layers


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_agree_with_exact_arithmetic(bidirectional):
    distance = np.arange(-2000, 2001)
    expected = [brute_force_bucket(int(d), bidirectional) for d in distance]
    np.testing.assert_array_equal(
        layers.relative_position_bucket(distance, bidirectional), expected
    )
    assert set(expected) == set(range(32)) - ({16} if bidirectional else set())


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (1, 7), (6, 1), (9, 4), (150, 150)])
def test_position_biases_are_those_of_the_buckets(bidirectional, num_queries, num_keys):
    module = layers.RelativePositionBiases(2, bidirectional)
    table = jax.random.normal(jax.random.key(0), (2, 32))
    variables = {"params": {"rel_embedding": table}}
    bias = module.apply(variables, num_queries, num_keys)
    distance = np.arange(num_keys) - np.arange(num_queries)[:, None]
    bucket = np.vectorize(lambda d: brute_force_bucket(d, bidirectional))(distance)
    np.testing.assert_array_equal(bias, table[:, bucket][None])
    if num_queries == num_keys:
        for index in {0, num_keys // 2, num_keys - 1}:
            row = module.apply(variables, jnp.int32(index), num_keys, method="row")
            np.testing.assert_array_equal(row, bias[:, :, index : index + 1])
