"""Logits mixed token by token: the mixture itself, DeRa, and multi-objective decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clp_jax.algorithm import subset
from clp_jax.algorithm import train_step as clp_step
from clp_jax.algorithm.conditioning import condition, expert, init_clp_params
from clp_jax.algorithm.rollout import completion_log_probs
from clp_jax.algorithm.weighting import Weighting
from clp_jax.models.decoding import Decoding
from clp_jax.models.sampling import Samples, sample, sample_mixture
from clp_jax.policies.logit_mixing import LogitMixingPolicy
from clp_jax.policies.policy import CLPPolicy

KEY = jax.random.key(3)
CORNERS = [Weighting.of(0.01, w) for w in ([1.0, 0.0], [0.0, 1.0])]


@pytest.fixture(params=[0.0, 1.0], ids=["greedy", "sampled"])
def clp(module, request):
    return clp_step.CLP(module, Decoding(6, temperature=request.param))


@pytest.fixture(scope="module")
def params(reference):
    """φ with two experts that differ from each other and from the reference."""

    @jax.jit
    def moved(reference):
        leaves, tree = jax.tree.flatten(init_clp_params(reference, subset.full(), 2))
        keys = jax.random.split(jax.random.key(1), len(leaves))
        moved = [
            x + 0.3 * jax.random.normal(key, x.shape) * jnp.std(x)
            for x, key in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(tree, moved)

    return moved(reference)


sample_alone = jax.jit(sample, static_argnums=(0, 4))
sample_mixed = jax.jit(sample_mixture, static_argnums=(0, 5))


@functools.partial(jax.jit, static_argnums=0)
def mixed_log_probs(module, models, coefficients, prompts, samples):
    """log-softmax of the weighted sum of teacher-forced logits, [B, L, V]: no cache, no loop."""
    inputs = jnp.pad(samples.tokens, ((0, 0), (1, 0)))[:, :-1]
    logits = [
        module.apply({"params": p}, prompts, inputs, samples.mask, enable_dropout=False)
        for p in models
    ]
    return jax.nn.log_softmax(sum(c * x for c, x in zip(coefficients, logits, strict=True)))


@pytest.mark.parametrize("coefficients", [(0.2, 0.5, 0.3), (1.5, -0.75, 0.25)])
def test_tokens_come_from_the_mixture(clp, params, reference, prompts, coefficients):
    models = [expert(params, 0), expert(params, 1), reference]
    many = jnp.tile(prompts, (8, 1))
    keys = jax.random.split(KEY, len(many))
    samples = sample_mixed(clp.module, models, jnp.array(coefficients), many, keys, clp.decoding)
    expected = mixed_log_probs(clp.module, models, coefficients, many, samples)
    chosen = jnp.take_along_axis(expected, samples.tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(samples.log_probs, chosen * samples.mask, rtol=1e-4, atol=1e-4)
    if clp.decoding.temperature == 0:
        best = jnp.argmax(expected, axis=-1)
        np.testing.assert_array_equal(best * samples.mask, samples.tokens * samples.mask)


def test_sampling_follows_the_mixture_and_not_one_of_its_parts(module, params, reference):
    models, coefficients = [expert(params, 0), expert(params, 1)], jnp.array([0.4, 0.6])
    prompts = jnp.tile(jnp.array([[5, 6, 7, 1]]), (4000, 1))
    decoding = Decoding(1)
    keys = jax.random.split(KEY, len(prompts))
    samples = jax.jit(
        lambda: sample_mixture(module, models, coefficients, prompts, keys, decoding)
    )()
    one = jax.tree.map(lambda x: x[:1], samples)
    log_probs = mixed_log_probs(module, models, coefficients, prompts[:1], one)
    probabilities = np.exp(log_probs)[0, 0]
    seen = np.bincount(samples.tokens[:, 0], minlength=len(probabilities)) / len(prompts)
    np.testing.assert_allclose(seen, probabilities, atol=4 * np.sqrt(0.25 / len(prompts)))


def test_one_model_is_no_mixture(clp, reference, prompts):
    keys = jax.random.split(KEY, len(prompts))
    alone = sample_alone(clp.module, reference, prompts, keys, clp.decoding)
    both = sample_mixed(
        clp.module, [reference, reference], jnp.array([0.25, 0.75]), prompts, keys, clp.decoding
    )
    np.testing.assert_array_equal(alone.tokens, both.tokens)
    np.testing.assert_allclose(alone.log_probs, both.log_probs, rtol=1e-4, atol=1e-5)


def test_dera_ends_at_the_policy_and_at_the_reference(clp, params, reference, prompts):
    dera = LogitMixingPolicy(clp, params, reference, over_experts=False)
    clp_policy = CLPPolicy(clp, params, reference)
    prompts = np.asarray(prompts)
    weights = [0.3, 0.7]
    # At α_min: the policy there.
    ours = clp_policy.generate(Weighting.of(0.01, weights), prompts, KEY)
    theirs = dera.generate(Weighting.of(0.01, weights), prompts, KEY)
    np.testing.assert_array_equal(theirs.completions, ours.completions)
    np.testing.assert_allclose(theirs.log_probs, ours.log_probs, rtol=1e-4, atol=1e-5)
    # At 1: the reference.
    theirs = dera.generate(Weighting.of(1.0, weights), prompts, KEY)
    np.testing.assert_allclose(theirs.log_probs, theirs.reference_log_probs, rtol=1e-4, atol=1e-5)
    # Between: logits of the policy of α_min, not of α, and the reference's, by f_mix(α).
    got = dera.generate(Weighting.of(0.05, weights), prompts, KEY)
    policy = condition(params, reference, Weighting.of(0.01, weights), clp.kl_mix)
    beta = (0.05 - 0.01) / (0.05 * 0.99)  # Eq. 4
    samples = Samples(got.completions, got.mask, got.log_probs)
    expected = mixed_log_probs(
        clp.module, [policy, reference], [1 - beta, beta], jnp.asarray(prompts), samples
    )
    chosen = jnp.take_along_axis(expected, got.completions[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(got.log_probs, chosen * got.mask, rtol=1e-4, atol=1e-4)
    scored = jax.jit(completion_log_probs, static_argnums=0)(
        clp.module, reference, prompts, got.completions, got.mask
    )
    np.testing.assert_allclose(got.reference_log_probs, scored, rtol=1e-4, atol=1e-5)


def test_experts_alone_at_the_corners_and_together_between(clp, params, reference, prompts):
    policy = LogitMixingPolicy(clp, params, reference, over_experts=True)
    keys = jax.random.split(KEY, len(prompts))
    for i, corner in enumerate(CORNERS):
        got = policy.generate(corner, np.asarray(prompts), KEY)
        alone = sample_alone(clp.module, expert(params, i), prompts, keys, clp.decoding)
        np.testing.assert_array_equal(got.completions, alone.tokens)
    models, coefficients = policy._language_models(Weighting.of(0.01, [0.25, 0.75]))
    assert len(models) == 2  # no third pass for a reference that counts for nothing
    np.testing.assert_allclose(coefficients, [0.25, 0.75])
    models, coefficients = policy._language_models(Weighting.of(0.02, [0.25, 0.75]))
    beta = (0.02 - 0.01) / (0.02 * 0.99)
    np.testing.assert_allclose(
        coefficients, [(1 - beta) * 0.25, (1 - beta) * 0.75, beta], rtol=1e-5
    )
    assert models[2] is reference


def test_weightings_do_not_compile_anew(module, params, reference, prompts):
    policy = LogitMixingPolicy(
        clp_step.CLP(module, Decoding(3)), params, reference, over_experts=False
    )
    for alpha in (0.01, 0.2, 0.7, 1.0):
        policy.generate(Weighting.of(alpha, [0.5, 0.5]), np.asarray(prompts), KEY)
    assert policy._generate._cache_size() == 1
    # Other parameters take effect, although the weighting is the same object.
    weighting = Weighting.of(0.01, [0.5, 0.5])
    before = policy.generate(weighting, np.asarray(prompts), KEY).log_probs
    policy.params = init_clp_params(reference, subset.full(), 2)
    after = policy.generate(weighting, np.asarray(prompts), KEY)
    assert not np.allclose(before, after.log_probs)
    np.testing.assert_allclose(after.log_probs, after.reference_log_probs, rtol=1e-4, atol=1e-5)
