"""The maths of the policy-gradient step (Algorithm 1, lines 6-7; App. B.1), on plain arrays.

Shapes: B examples, L completion tokens, V vocabulary, m objectives. Masks are 1.0 on the tokens up
to and including the first EOS and 0.0 behind it, so EOS counts in log-probabilities and in the KL.
"""

import jax
import jax.numpy as jnp


def token_log_probs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """log softmax of `logits` [..., V] at `tokens` [...], in float32: [...]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def sampled_kl(
    policy_log_probs: jax.Array, reference_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    """The log-ratio of the sampled completion, an unbiased estimate of KL(π ‖ π_ref) at x.

    Args:
      policy_log_probs: log π(y_t | x, y_<t), [B, L].
      reference_log_probs: log π_ref(y_t | x, y_<t), [B, L].
      mask: [B, L].

    Returns:
      [B], in nats, summed over tokens; single values may be negative.
    """
    return jnp.sum((policy_log_probs - reference_log_probs) * mask, axis=-1)


def exact_token_kl(
    policy_logits: jax.Array, reference_logits: jax.Array, mask: jax.Array
) -> jax.Array:
    """Σ_t KL(π(· | x, y_<t) ‖ π_ref(· | x, y_<t)) along the sampled prefixes.

    Args:
      policy_logits: [B, L, V].
      reference_logits: [B, L, V].
      mask: [B, L].

    Returns:
      [B], in nats, non-negative.
    """
    policy = jax.nn.log_softmax(policy_logits.astype(jnp.float32))
    reference = jax.nn.log_softmax(reference_logits.astype(jnp.float32))
    kl = jnp.sum(jnp.exp(policy) * (policy - reference), axis=-1)
    return jnp.sum(kl * mask, axis=-1)


def scalarize(rewards: jax.Array, reward_weights: jax.Array) -> jax.Array:
    """wᵀR: rewards [B, m] and reward_weights [B, m] -> [B]."""
    return jnp.sum(rewards * reward_weights, axis=-1)


def regularized_reward(scalarized: jax.Array, kl: jax.Array, kl_weight: jax.Array) -> jax.Array:
    """r = (1 − α) wᵀR − α KL (Algorithm 1, line 6); all arguments and the result are [B]."""
    return (1 - kl_weight) * scalarized - kl_weight * kl


def normalize(advantages: jax.Array, epsilon: float = 1e-5) -> tuple[jax.Array, jax.Array]:
    """Batch normalisation of the advantage (App. B.1): zero mean, unit standard deviation.

    Args:
      advantages: A = r − V̂, [B].
      epsilon: added to the standard deviation. It is large against float32's rounding of the mean,
        so that a batch of equal advantages gives (nearly) zeros.

    Returns:
      (normalised advantages [B], the scale [] they were divided by).
    """
    scale = jnp.std(advantages) + epsilon
    return (advantages - jnp.mean(advantages)) / scale, scale


def reinforce_loss(log_probs: jax.Array, advantages: jax.Array) -> jax.Array:
    """−E[A log π(y | x)] whose gradient is the REINFORCE estimate (Algorithm 1, line 7).

    Args:
      log_probs: log π(y | x), summed over tokens, [B]; differentiated.
      advantages: [B]; no gradient flows through them.
    """
    return -jnp.mean(jax.lax.stop_gradient(advantages) * log_probs)


def value_loss(values: jax.Array, rewards: jax.Array) -> jax.Array:
    """Mean squared error of V̂_i(x) against R_i(x, y) (App. B.1); both [B, m]."""
    return jnp.mean(jnp.square(values - jax.lax.stop_gradient(rewards)))
