"""The value network's predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clp_jax.models import t5, value

PROMPTS = jnp.array([[5, 2, 3, 4, 1], [3, 1, 0, 0, 0], [2, 2, 5, 1, 0]])


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def module_and_params(request):
    module = t5.Transformer(
        t5.T5Config(
            vocab_size=7,
            dtype="bfloat16" if request.param else "float32",
            emb_dim=16,
            num_heads=2,
            num_encoder_layers=1,
            num_decoder_layers=1,
            head_dim=8,
            mlp_dim=24,
            logits_via_embedding=request.param,
        )
    )
    tokens = jnp.ones((1, 2), jnp.int32)
    init = jax.jit(lambda key: module.init(key, tokens, tokens, tokens, enable_dropout=False))
    return module, init(jax.random.key(0))["params"]


@pytest.mark.parametrize("num_objectives", [1, 7])
def test_values_are_the_first_logits_of_the_first_position(module_and_params, num_objectives):
    module, params = module_and_params
    inputs = jnp.array([[0, 4, 2], [0, 6, 6], [0, 1, 3]])

    @jax.jit
    def both(params):
        targets = jnp.ones_like(inputs)
        logits = module.apply({"params": params}, PROMPTS, inputs, targets, enable_dropout=False)
        return logits, value.predict_values(module, params, PROMPTS, num_objectives)

    logits, values = both(params)
    assert values.shape == (3, num_objectives)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, logits[:, 0, :num_objectives], rtol=0, atol=1e-6)


def test_values_are_learned_from(module_and_params):
    module, params = module_and_params

    def loss(params):
        return jnp.mean((value.predict_values(module, params, PROMPTS, 2) - 1.0) ** 2)

    before, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradient))
    lower = jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)
    assert jax.jit(loss)(lower) < before


@pytest.mark.parametrize("num_objectives", [0, -1, 8])
def test_the_number_of_objectives_must_fit(module_and_params, num_objectives):
    module, params = module_and_params
    with pytest.raises(ValueError, match=rf"is {num_objectives}; .* \[1, 7\]"):
        jax.eval_shape(lambda p: value.predict_values(module, p, PROMPTS, num_objectives), params)
