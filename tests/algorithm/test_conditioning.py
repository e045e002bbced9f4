import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from clp_jax.algorithm import conditioning, subset
from clp_jax.algorithm.weighting import LinearKLMix, SoftmaxKLMix, Weighting

ALPHA_MIN = 0.01
MIX = SoftmaxKLMix(ALPHA_MIN)


def small_tree(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "layers_0": {"attention": {"query": {"kernel": jax.random.normal(keys[0], (3, 4))}}},
        "mlp": {"kernel": jax.random.normal(keys[1], (4, 2))},
        "scale": jax.random.normal(keys[2], (4,)),
    }


def distinct_params(reference, chosen, m, seed=7):
    """φ whose replicas and shared leaves all differ from the reference."""
    params = conditioning.init_clp_params(reference, chosen, m)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, [x + n for x, n in zip(leaves, noise, strict=True)])


def weighting(alpha, w):
    return Weighting(jnp.float32(alpha), jnp.asarray(w, jnp.float32))


def assert_trees_equal(a, b, atol=0.0):
    flat_a, flat_b = traverse_util.flatten_dict(a), traverse_util.flatten_dict(b)
    assert flat_a.keys() == flat_b.keys()
    for path, leaf in flat_a.items():
        np.testing.assert_allclose(leaf, flat_b[path], atol=atol, rtol=0)


@pytest.mark.parametrize("chosen", [subset.full(), subset.attention(), subset.none()])
@pytest.mark.parametrize("w", [(1.0, 0.0), (0.3, 0.7)])
def test_initial_policy_is_the_reference(chosen, w):
    reference = small_tree(0)
    params = conditioning.init_clp_params(reference, chosen, 2)
    assert_trees_equal(
        conditioning.condition(params, reference, weighting(0.2, w), MIX), reference, atol=1e-6
    )


@pytest.mark.parametrize("i", [0, 1, 2])
def test_corner_at_alpha_min_is_the_expert(i):
    reference = small_tree(0)
    params = distinct_params(reference, subset.attention(), 3)
    conditioned = conditioning.condition(params, reference, weighting(ALPHA_MIN, np.eye(3)[i]), MIX)
    assert_trees_equal(conditioned, conditioning.expert(params, i))
    query = conditioned["layers_0"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(
        query, params.conditioned["layers_0"]["attention"]["query"]["kernel"][i]
    )


def test_alpha_one_is_the_reference_on_s_and_only_there():
    reference = small_tree(0)
    params = distinct_params(reference, subset.attention(), 2)
    conditioned = conditioning.condition(params, reference, weighting(1.0, (0.4, 0.6)), MIX)
    expected = subset.merge(subset.split(reference, subset.attention())[0], params.shared)
    assert_trees_equal(conditioned, expected)


@settings(max_examples=25, deadline=None)
@given(
    st.floats(ALPHA_MIN, 1.0),
    st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
    st.sampled_from([MIX, LinearKLMix()]),
)
def test_condition_is_equation_3(alpha, raw, mix):
    w = np.asarray(raw) / np.sum(raw)
    reference = small_tree(1)
    params = distinct_params(reference, subset.matching("kernel"), 3)
    conditioned = conditioning.condition(params, reference, weighting(alpha, w), mix)
    beta = mix(alpha)
    replicas = np.asarray(params.conditioned["mlp"]["kernel"], np.float64)
    expected = (1 - beta) * np.tensordot(w, replicas, axes=1) + beta * np.asarray(
        reference["mlp"]["kernel"]
    )
    np.testing.assert_allclose(conditioned["mlp"]["kernel"], expected, atol=1e-5)
    np.testing.assert_array_equal(conditioned["scale"], params.shared["scale"])


@pytest.mark.parametrize("chosen", [subset.full(), subset.attention(), subset.matching("mlp")])
def test_gradient_is_the_closed_form_of_appendix_a3(chosen):
    reference, alpha, w = small_tree(0), 0.05, np.asarray([0.2, 0.5, 0.3])
    params = distinct_params(reference, chosen, 3)

    def loss(theta):
        return sum(jnp.sum(jnp.sin(x) * x) for x in jax.tree.leaves(theta))

    at = weighting(alpha, w)
    theta = conditioning.condition(params, reference, at, MIX)
    gamma = traverse_util.flatten_dict(jax.grad(loss)(theta))
    grads = jax.grad(lambda p: loss(conditioning.condition(p, reference, at, MIX)))(params)

    for path, grad in traverse_util.flatten_dict(grads.conditioned).items():
        for i in range(3):
            np.testing.assert_allclose(
                grad[i], (1 - MIX(alpha)) * w[i] * gamma[path], atol=1e-6, rtol=0
            )
    for path, grad in traverse_util.flatten_dict(grads.shared).items():
        np.testing.assert_allclose(grad, gamma[path], atol=1e-6, rtol=0)


def test_mixing_is_in_float32_and_returns_the_stored_dtype():
    reference = {"x": jnp.asarray([1.0], jnp.bfloat16)}
    # In bfloat16, 256 + 1 is 256: a mean taken there would lose the 1.
    params = conditioning.CLPParams({"x": jnp.asarray([[256.0], [258.0]], jnp.bfloat16)}, {})
    mixed = conditioning.condition(params, reference, weighting(ALPHA_MIN, (0.25, 0.75)), MIX)["x"]
    assert mixed.dtype == jnp.bfloat16
    assert mixed[0] == jnp.bfloat16(257.5)


def test_parameter_count():
    reference = small_tree(0)
    params = conditioning.init_clp_params(reference, subset.attention(), 3)
    count = conditioning.count_parameters(params, 3)
    assert (count.conditioned, count.shared) == (12, 12)
    assert (count.total, count.language_model) == (3 * 12 + 12, 24)
    assert count.fraction == 0.5
    assert count.bytes == 48 * 4
    shapes = jax.eval_shape(lambda: conditioning.init_clp_params(reference, subset.attention(), 3))
    assert conditioning.count_parameters(shapes, 3) == count


def test_initial_parameters_do_not_alias_the_reference():
    # The trainer donates φ: a shared buffer would take the reference with it.
    reference = small_tree(0)
    params = conditioning.init_clp_params(reference, subset.attention(), 2)
    pointers = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(reference)}
    assert not pointers & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(params)}


def test_low_precision_is_mixed_in_float32():
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), small_tree(0))
    params = distinct_params(low, subset.full(), 2)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    got = conditioning.condition(params, low, weighting(0.012, (0.3, 0.7)), MIX)
    beta, kept = float(MIX(jnp.float32(0.012))), traverse_util.flatten_dict(low)
    for path, replicas in traverse_util.flatten_dict(params.conditioned).items():
        first, second = np.asarray(replicas, np.float64)
        learned = np.float32(0.3) * first + np.float32(0.7) * second
        exact = (1 - beta) * learned + beta * np.asarray(kept[path], np.float64)
        leaf = traverse_util.flatten_dict(got)[path]
        assert leaf.dtype == jnp.bfloat16
        # Rounded once: by half of the last of 8 bits, and no more.
        error = np.abs(np.asarray(leaf, np.float64) - exact)
        assert (error <= 1.01 * 2.0**-8 * np.exp2(np.floor(np.log2(np.abs(exact))))).all()


def test_bytes_are_those_of_the_stored_type():
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), small_tree(0))
    params = conditioning.init_clp_params(low, subset.attention(), 3)
    assert conditioning.count_parameters(params, 3).bytes == 2 * (3 * 12 + 8 + 4)
