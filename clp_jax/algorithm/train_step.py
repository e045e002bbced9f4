"""Algorithm 1 on one page: condition → rollout → rewards → advantage → update.

`generate`, `score` and `update` are pure functions of arrays, each compiled once for all
weightings. The rewards stand between them because some of them run on the host, beside `score`;
where all run on device, `train_step` as a whole can be compiled.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from clp_jax.algorithm import losses
from clp_jax.algorithm import rollout as rollout_lib
from clp_jax.algorithm.conditioning import CLPParams, condition, init_clp_params
from clp_jax.algorithm.optimizers import adafactor, per_objective
from clp_jax.algorithm.rollout import Rollout
from clp_jax.algorithm.subset import Subset
from clp_jax.algorithm.weighting import KLMix, SoftmaxKLMix, Weighting
from clp_jax.models.decoding import Decoding
from clp_jax.models.value import predict_values

Params = Any
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class CLP:
    """What stays fixed over training.

    Attributes:
      module: the network of the policy, the reference and the value function.
      decoding: how completions are sampled.
      kl_mix: f_mix (Eq. 4).
      policy_optimizer: for plain LM parameters; it is applied to each replica on its own.
      value_optimizer: for the value network.
      exact_kl: put the exact per-token KL into the objective and differentiate it, instead of the
        sampled log-ratio. Needs the logits of policy and reference, [B, L, V] each.
      dropout: whether the update runs the policy with dropout. The samples come from the policy
        without dropout, so this makes the gradient an off-policy one.
    """

    module: nn.Module
    decoding: Decoding
    kl_mix: KLMix = SoftmaxKLMix()  # noqa: RUF009
    policy_optimizer: optax.GradientTransformation = adafactor(3e-5)  # noqa: RUF009
    value_optimizer: optax.GradientTransformation = adafactor(1e-4)  # noqa: RUF009
    exact_kl: bool = False
    dropout: bool = False


@flax.struct.dataclass
class TrainState:
    """What training changes. The reference θ_ref is not part of it: it never changes.

    Attributes:
      step: number of updates made, [] int32.
      params: φ.
      policy_optimizer_state: statistics of φ's optimizer, per replica.
      value_params: parameters of the value network, a plain LM tree.
      value_optimizer_state: statistics of its optimizer.
    """

    step: jax.Array
    params: CLPParams
    policy_optimizer_state: Any
    value_params: Params
    value_optimizer_state: Any


def init_train_state(
    clp: CLP, reference: Params, subset: Subset, num_objectives: int
) -> TrainState:
    """φ_0 and a value network, both from the reference (Algorithm 1, line 1; App. B.1)."""
    params = init_clp_params(reference, subset, num_objectives)
    value_params = jax.tree.map(jnp.copy, reference)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        policy_optimizer_state=per_objective(clp.policy_optimizer).init(params),
        value_params=value_params,
        value_optimizer_state=clp.value_optimizer.init(value_params),
    )


def train_step(
    clp: CLP,
    state: TrainState,
    reference: Params,
    prompts: jax.Array,
    weighting: Weighting,
    key: jax.Array,
    rewards: Callable[[Rollout], jax.Array],
) -> tuple[TrainState, Metrics]:
    """One round of Algorithm 1, lines 3-7.

    Args:
      clp: what stays fixed.
      state: φ_t and the rest of what training changes.
      reference: θ_ref, a plain LM tree.
      prompts: x_t, encoder tokens, [B, E] int32.
      weighting: (α_t, w_t), leading axis k; B must be a multiple of k.
      key: PRNG key of this round.
      rewards: R(x, y), a rollout -> normalised rewards [B, m].

    Returns:
      φ_{t+1} with its optimizers, and scalars of this round.

    Raises:
      ValueError: shapes that do not go together, when this is called or traced; names them.
    """
    rollout = generate(clp, state.params, reference, prompts, weighting, key)  # lines 4-5
    rollout = score(clp, reference, rollout)
    return update(clp, state, reference, rollout, rewards(rollout), weighting, key)  # lines 6-7


def generate(
    clp: CLP,
    params: CLPParams,
    reference: Params,
    prompts: jax.Array,
    weighting: Weighting,
    key: jax.Array,
) -> Rollout:
    """Lines 4-5: y_t ~ π(· | x_t; α_t, w_t)."""
    _check_shapes(params, weighting, prompts.shape[0])

    def conditioned(weighting: Weighting) -> Params:
        return condition(params, reference, weighting, clp.kl_mix)

    return rollout_lib.generate(clp.module, conditioned, prompts, weighting, key, clp.decoding)


def score(clp: CLP, reference: Params, rollout: Rollout) -> Rollout:
    """Adds log π_ref(y_t | x_t), the half of line 6 that needs no reward and no gradient."""
    log_probs = rollout_lib.completion_log_probs(
        clp.module, reference, rollout.plain_prompts, rollout.completions, rollout.mask
    )
    return dataclasses.replace(rollout, reference_log_probs=log_probs)


def update(
    clp: CLP,
    state: TrainState,
    reference: Params,
    rollout: Rollout,
    rewards: jax.Array,
    weighting: Weighting,
    key: jax.Array,
) -> tuple[TrainState, Metrics]:
    """Lines 6-7: the objective r_t, its advantage, and one step of policy and value network.

    Args:
      clp: what stays fixed.
      state: before the update.
      reference: θ_ref.
      rollout: x_t, y_t and their log-probabilities.
      rewards: normalised R(x_t, y_t), [B, m].
      weighting: (α_t, w_t), leading axis k.
      key: PRNG key of this round; dropout draws from it.
    """
    policy_grads, value_grads, metrics = gradients(
        clp, state, reference, rollout, rewards, weighting, key
    )
    updates, policy_optimizer_state = per_objective(clp.policy_optimizer).update(
        policy_grads, state.policy_optimizer_state, state.params
    )
    value_updates, value_optimizer_state = clp.value_optimizer.update(
        value_grads, state.value_optimizer_state, state.value_params
    )
    state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        policy_optimizer_state=policy_optimizer_state,
        value_params=optax.apply_updates(state.value_params, value_updates),
        value_optimizer_state=value_optimizer_state,
    )
    tokens, mask = rollout.completions, rollout.mask
    return state, {
        **metrics,
        "gradient/policy_norm": optax.tree.norm(policy_grads),
        "gradient/value_norm": optax.tree.norm(value_grads),
        # What shows a policy that degenerates.
        "rollout/length": jnp.mean(jnp.sum(mask, axis=1)),
        "rollout/repetition": jnp.mean(rollout_lib.repetition_rate(tokens, mask)),
        "rollout/ended": jnp.mean(jnp.any(tokens == clp.decoding.eos_id, axis=1)),
    }


def gradients(
    clp: CLP,
    state: TrainState,
    reference: Params,
    rollout: Rollout,
    rewards: jax.Array,
    weighting: Weighting,
    key: jax.Array,
) -> tuple[CLPParams, Params, Metrics]:
    """The REINFORCE gradient of φ, that of the value network, and means over the batch.

    Args: as of `update`.
    """
    _check_shapes(state.params, weighting, rollout.completions.shape[0], rewards)
    # α and w of each example.
    repeats = rewards.shape[0] // weighting.kl_weight.shape[0]
    each = jax.tree.map(lambda x: jnp.repeat(x, repeats, axis=0), weighting)
    kl_weight, reward_weights = each.kl_weight, each.reward_weights

    # V̂_i(x_t), and its own step towards R_i.
    def value_objective(value_params):
        values = predict_values(clp.module, value_params, rollout.plain_prompts, rewards.shape[1])
        return losses.value_loss(values, rewards), values

    (value_loss, values), value_grads = jax.value_and_grad(value_objective, has_aux=True)(
        state.value_params
    )

    # r_t = (1 − α_t) w_tᵀ R − α_t KL, then A_t = r_t − w_tᵀ V̂, normalised over the batch.
    def policy_objective(params):
        log_probs, kl = _log_probs_and_kl(clp, params, reference, rollout, weighting, key)
        objective = losses.regularized_reward(
            losses.scalarize(rewards, reward_weights), jax.lax.stop_gradient(kl), kl_weight
        )
        baseline = losses.scalarize(values, reward_weights)
        advantages, scale = losses.normalize(objective - baseline)
        loss = losses.reinforce_loss(log_probs, advantages)
        if clp.exact_kl:  # scaled as the advantage is, so that α keeps its meaning
            loss += jnp.mean(kl_weight * kl) / scale
        return loss, (objective, kl)

    (policy_loss, (objective, kl)), policy_grads = jax.value_and_grad(
        policy_objective, has_aux=True
    )(state.params)

    return (
        policy_grads,
        value_grads,
        {
            "objective/scalarized": jnp.mean(losses.scalarize(rewards, reward_weights)),
            "objective/kl": jnp.mean(kl),
            "objective/regularized": jnp.mean(objective),
            "loss/policy": policy_loss,
            "loss/value": value_loss,
        },
    )


def _check_shapes(
    params: CLPParams, weighting: Weighting, batch_size: int, rewards: jax.Array | None = None
) -> None:
    """Raises ValueError unless these are of one m, and k groups divide a batch of two or more."""
    kl_weight, reward_weights = jnp.shape(weighting.kl_weight), jnp.shape(weighting.reward_weights)
    if len(reward_weights) != 2 or kl_weight != reward_weights[:1]:
        raise ValueError(
            f"the weighting has kl_weight {kl_weight} and reward_weights {reward_weights}; valid "
            "are (k,) and (k, m): Weighting.of([α], [w]) has a leading axis"
        )
    k, m = reward_weights
    if other := [x.shape[0] for x in jax.tree.leaves(params.conditioned) if x.shape[0] != m]:
        raise ValueError(f"reward_weights {reward_weights}, but φ has {other[0]} replicas")
    if batch_size < 2 or batch_size % k:
        raise ValueError(
            f"a batch of {batch_size} and k = {k} weightings; B is 2 or more, as the advantage is "
            "normalised over it, and a multiple of k"
        )
    if rewards is not None and jnp.shape(rewards) != (batch_size, m):
        raise ValueError(f"rewards {jnp.shape(rewards)}; valid is (B, m) = {(batch_size, m)}")


def _log_probs_and_kl(clp, params, reference, rollout, weighting, key):
    """log π(y_t | x_t), differentiable, and the KL of line 6: ([B], [B])."""

    def of_group(weighting, rollout, keys):
        policy = condition(params, reference, weighting, clp.kl_mix)
        completions = (rollout.completions, rollout.mask)
        dropout_key = keys[0] if clp.dropout else None
        inputs = (clp.module, policy, rollout.prompts, *completions, dropout_key)
        if clp.exact_kl:
            logits = rollout_lib.completion_logits(*inputs)
            reference_logits = rollout_lib.completion_logits(
                clp.module, reference, rollout.plain_prompts, *completions
            )
            log_probs = losses.token_log_probs(logits, rollout.completions) * rollout.mask
            kl = losses.exact_token_kl(logits, reference_logits, rollout.mask)
        else:
            log_probs = rollout_lib.completion_log_probs(*inputs)
            # The sampled log-ratio; no gradient flows through it. Both sides are teacher-forced
            # where they can be, so that rounding in low precision cancels.
            sampled = rollout.log_probs if clp.dropout else jax.lax.stop_gradient(log_probs)
            kl = losses.sampled_kl(sampled, rollout.reference_log_probs, rollout.mask)
        return jnp.sum(log_probs, axis=1), kl

    keys = jax.random.split(jax.random.fold_in(key, 1), rollout.prompts.shape[0])
    return rollout_lib.over_weightings(of_group, weighting, rollout, keys)
