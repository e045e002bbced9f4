"""A CLP policy steered at inference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clp_jax.algorithm import subset
from clp_jax.algorithm import train_step as clp_step
from clp_jax.algorithm.conditioning import condition, init_clp_params
from clp_jax.algorithm.rollout import completion_log_probs
from clp_jax.algorithm.weighting import Weighting
from clp_jax.models.decoding import Decoding
from clp_jax.policies import policy as policy_lib

WEIGHTINGS = [Weighting.of(0.05, w) for w in ([1.0, 0.0], [0.25, 0.75])]


@pytest.fixture
def clp(module):
    return clp_step.CLP(module, Decoding(6, temperature=0.0))


@pytest.fixture
def params(reference):
    params = init_clp_params(reference, subset.attention(), 2)
    noise = jax.random.normal(jax.random.key(1), (2,))
    moved = jax.tree.map(
        lambda x: x * (1 + noise.reshape(2, *(1,) * (x.ndim - 1))), params.conditioned
    )
    return params.replace(conditioned=moved)


@pytest.fixture
def steered(clp, params, reference, monkeypatch):
    """The policy, and the list of weightings it mixed at."""
    policy, mixed = policy_lib.CLPPolicy(clp, params, reference), []
    mix = policy._mix
    policy._mix = lambda p, r, w: mixed.append(float(w.reward_weights[0])) or mix(p, r, w)
    return policy, mixed


def test_it_generates_what_the_mixed_model_does(clp, params, reference, steered, prompts):
    policy, _ = steered
    completions = []
    for weighting in WEIGHTINGS:
        rollout = policy.generate(weighting, np.asarray(prompts), jax.random.key(0))
        model = condition(params, reference, weighting, clp.kl_mix)
        scored = (prompts, rollout.completions, rollout.mask)
        for got, source in (
            (rollout.log_probs, model),
            (rollout.reference_log_probs, reference),
        ):
            expected = completion_log_probs(clp.module, source, *scored)
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        completions.append(np.asarray(rollout.completions))
    assert (completions[0] != completions[1]).any()


def test_it_mixes_once_for_a_weighting_and_anew_for_other_parameters(steered, params, prompts):
    policy, mixed = steered

    def generate(weighting):
        return policy.generate(weighting, np.asarray(prompts), jax.random.key(0)).completions

    first = generate(WEIGHTINGS[0])
    generate(WEIGHTINGS[0])
    generate(WEIGHTINGS[1])
    assert mixed == [1.0, 0.25]
    policy.params = jax.tree.map(jnp.zeros_like, params)
    generate(WEIGHTINGS[1])
    policy.params = params
    np.testing.assert_array_equal(generate(WEIGHTINGS[0]), first)
    policy.release()
    generate(WEIGHTINGS[0])
    assert mixed == [1.0, 0.25, 0.25, 1.0, 1.0]


def test_the_reference_reads_prompts_without_weights(clp, params, reference, prompts):
    def prompter(plain, reward_weights):
        del reward_weights
        return np.concatenate([np.full((len(plain), 2), 3, np.int32), plain], axis=1), None

    policy = policy_lib.CLPPolicy(clp, params, reference, prompter)
    rollout = policy.generate(WEIGHTINGS[0], np.asarray(prompts), jax.random.key(0))
    assert rollout.prompts.shape == (4, prompts.shape[1] + 2)
    scored = (rollout.completions, rollout.mask)
    model = condition(params, reference, WEIGHTINGS[0], clp.kl_mix)
    for got, source, read in (
        (rollout.log_probs, model, rollout.prompts),
        (rollout.reference_log_probs, reference, prompts),
    ):
        expected = completion_log_probs(clp.module, source, read, *scored)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_kl_weight_below_alpha_min_is_refused(steered, prompts):
    # f_mix would be negative there, and the mixture beyond the policy.
    policy, mixed = steered
    with pytest.raises(ValueError, match=r"kl_weight=0.005 is outside \[0.01, 1\]"):
        policy.generate(Weighting.of(0.005, [1, 0]), prompts, jax.random.key(0))
    assert mixed == []
    policy.generate(Weighting.of(0.01, [1, 0]), prompts, jax.random.key(0))
