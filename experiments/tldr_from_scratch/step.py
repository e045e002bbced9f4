"""One step of a policy, and one batch of a sweep: pure functions, everything on the device."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from clp_jax.algorithm import losses
from clp_jax.algorithm import train_step as clp_step
from clp_jax.algorithm.rollout import Rollout, repetition_rate
from clp_jax.algorithm.train_step import CLP, Metrics, TrainState
from clp_jax.algorithm.weighting import Weighting
from clp_jax.models.sampling import sample
from experiments.tldr_from_scratch.arrays import rows_of, with_eos, with_weights
from experiments.tldr_from_scratch.rewards import Rewards, normalised

Params = Any


def policy_step(
    clp: CLP,
    rewards: Rewards,
    names: Sequence[str],
    prompting: bool,
    state: TrainState,
    models: Mapping[str, Params],
    ranges: jax.Array,
    data: Mapping[str, jax.Array],
    rows: jax.Array,
    weighting: Weighting,
    key: jax.Array,
) -> tuple[TrainState, Metrics, tuple[jax.Array, jax.Array]]:
    """`train_step.train_step` with everything on the device, and weights in prompts if asked.

    Args:
      clp: what stays fixed.
      rewards: raw scores of a rollout.
      names: of the rewards.
      prompting: whether the policy reads w in front of its prompts; the others never do.
      state: before the step.
      models: {"reference", "nli", "preference"}.
      ranges: raw scores that are mapped to 0 and 1, [m, 2].
      data: the arrays of prepare.py.
      rows: of sft_train, [B] int32.
      weighting: (α, w), leading axis 1.
      key: PRNG key of the step.

    Returns:
      (the state after it, metrics, (completions [B, L], normalised rewards [B, m])).
    """
    documents, summaries, _ = rows_of(data, "sft_train", rows)
    prompts = plain = with_eos(documents)
    if prompting:
        prompts = with_weights(plain, weighting.reward_weights[0], data["weight_prefixes"])
    reference = models["reference"]
    rollout = clp_step.generate(clp, state.params, reference, prompts, weighting, key)
    rollout = dataclasses.replace(rollout, plain_prompts=plain)
    rollout = clp_step.score(clp, reference, rollout)
    scores = normalised(rewards(models, rollout, summaries[:, 0]), ranges)
    state, metrics = clp_step.update(clp, state, reference, rollout, scores, weighting, key)
    means = {f"rewards/{name}": jnp.mean(scores[:, i]) for i, name in enumerate(names)}
    return state, metrics | means, (rollout.completions, scores)


def evaluate(
    clp: CLP,
    rewards: Rewards,
    prompting: bool,
    language_model: Params,
    models: Mapping[str, Params],
    data: Mapping[str, jax.Array],
    rows: jax.Array,
    reward_weights: jax.Array,
    key: jax.Array,
) -> dict[str, jax.Array]:
    """Fields of a sweep for some rows of sft_validation; see `policy_step` for the arguments.

    Args:
      language_model: θ^{α,w}, plain LM parameters.
      reward_weights: w, [m], for prompting.
    """
    documents, summaries, _ = rows_of(data, "sft_validation", rows)
    prompts = plain = with_eos(documents)
    if prompting:
        prompts = with_weights(plain, reward_weights, data["weight_prefixes"])
    keys = jax.random.split(key, len(rows))
    samples = sample(clp.module, language_model, prompts, keys, clp.decoding)
    sampled = Rollout(prompts, samples.tokens, samples.mask, samples.log_probs, plain)
    rollout: Any = clp_step.score(clp, models["reference"], sampled)
    return {
        "prompt_raw": rewards(models, rollout, summaries[:, 0]),
        "prompt_kl": losses.sampled_kl(
            rollout.log_probs, rollout.reference_log_probs, rollout.mask
        ),
        "prompt_length": jnp.sum(rollout.mask, axis=1),
        "prompt_repetition": repetition_rate(rollout.completions, rollout.mask),
        "completions": rollout.completions,
    }
