import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clp_jax.algorithm import optimizers
from clp_jax.algorithm.conditioning import CLPParams

M = 3


def tree(seed, scale=1.0):
    """Leaves below and above 128, the size from which Adafactor factors its statistics."""
    shapes = {"small": (5, 7), "large": (130, 140), "vector": (9,)}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        n: scale * jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)
    }


def test_replicas_behave_as_separate_models():
    # Replicas and gradients of very different scale, so that anything shared between them shows.
    optimizer = optimizers.adafactor(1e-2)
    models = [tree(i, 10.0**i) for i in range(M)]
    params = CLPParams(jax.tree.map(lambda *x: jnp.stack(x), *models), tree(9))
    lifted = optimizers.per_objective(optimizer)
    state = lifted.init(params)
    states = [optimizer.init(model) for model in models]
    for step in range(4):
        grads = [tree(100 + 10 * step + i, 10.0 ** (2 * i)) for i in range(M)]
        stacked = CLPParams(jax.tree.map(lambda *x: jnp.stack(x), *grads), tree(200 + step))
        updates, state = lifted.update(stacked, state, params)
        params = optax.apply_updates(params, updates)
        for i in range(M):
            updates_i, states[i] = optimizer.update(grads[i], states[i], models[i])
            models[i] = optax.apply_updates(models[i], updates_i)
    for i in range(M):
        jax.tree.map(
            lambda got, expected: np.testing.assert_allclose(got, expected, rtol=2e-6),
            jax.tree.map(lambda x, i=i: x[i], params.conditioned),
            models[i],
        )


def test_plain_adafactor_on_stacked_leaves_would_not():
    # What `per_objective` is for: without it the replicas share their scale.
    optimizer = optimizers.adafactor(1e-2)
    models = [tree(i, 10.0**i) for i in range(M)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *models)
    grads = tree(1)
    updates, _ = optimizer.update(
        jax.tree.map(lambda x: jnp.stack([x] * M), grads), optimizer.init(stacked), stacked
    )
    alone, _ = optimizer.update(grads, optimizer.init(models[0]), models[0])
    assert not np.allclose(updates["small"][0], alone["small"], rtol=0.5)


def test_empty_parts_are_allowed():
    lifted = optimizers.per_objective(optimizers.adafactor(1e-2))
    for params in (CLPParams({}, tree(0)), CLPParams({"x": jnp.ones([2, 3])}, {})):
        updates, _ = lifted.update(params, lifted.init(params), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_cosine_schedule_ends_at_zero():
    optimizer = optimizers.adam_with_cosine_decay(0.1, total_steps=20)
    params = {"x": jnp.ones([2])}
    state, sizes = optimizer.init(params), []
    for _ in range(21):
        updates, state = optimizer.update({"x": jnp.ones([2])}, state)
        sizes.append(float(jnp.abs(updates["x"][0])))
    assert max(sizes) == pytest.approx(0.1, rel=1e-3)
    assert sizes[0] == 0
    assert sizes[-1] == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize(
    "make", [optimizers.adafactor, lambda rate: optimizers.adam_with_cosine_decay(rate, 5)]
)
@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_bad_learning_rate(make, rate):
    with pytest.raises(ValueError, match="must be positive"):
        make(rate)
