"""Optimal policies, logit mixing and its regret where all outputs can be listed (Sec. 6.1, App. E).

Shapes: Y outputs, m objectives, ... contexts x. A policy is its log-probabilities [..., Y], which
sum to 1 in probability over the last axis; rewards are [..., Y]. Everything is exact, in float64;
values are per context, in units of reward, and their mean over the contexts is the expectation of
Eq. 1 for uniform contexts.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax, logsumexp


def optimal_policy(reference: ArrayLike, rewards: ArrayLike, kl_weight: float) -> np.ndarray:
    """π*_{α,R} ∝ π_ref exp((1 − α) R / α), the policy that maximises Eq. 1 (App. E).

    Args:
      reference: log π_ref, [..., Y].
      rewards: R, [..., Y], finite.
      kl_weight: α; range [0, 1]. At 0 the result is the limit α → 0: π_ref restricted to the
        outputs of the largest reward.

    Returns:
      log π*, [..., Y].

    Raises:
      ValueError: α outside [0, 1].
    """
    log_weights, _ = _optimum(reference, rewards, kl_weight)
    return log_softmax(log_weights, axis=-1)


def optimal_value(reference: ArrayLike, rewards: ArrayLike, kl_weight: float) -> np.ndarray:
    """V*(α, R) = α log Σ_y π_ref(y) exp((1 − α) R(y) / α) = α log Z (Lemma E.2).

    Arguments and errors are those of `optimal_policy`.

    Returns:
      [...]; at α = 0 the largest reward that the reference can give.
    """
    log_weights, best = _optimum(reference, rewards, kl_weight)
    return (1 - kl_weight) * best + kl_weight * logsumexp(log_weights, axis=-1)


def _optimum(
    reference: ArrayLike, rewards: ArrayLike, kl_weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """(log π_ref + (1 − α) (R − R_max) / α [..., Y], R_max [...]); R_max over what π_ref gives."""
    if not 0 <= kl_weight <= 1:
        raise ValueError(f"kl_weight={kl_weight:g} is outside [0, 1]")
    reference, rewards = np.broadcast_arrays(
        np.asarray(reference, float), np.asarray(rewards, float)
    )
    possible = reference > -np.inf
    best = np.max(rewards, axis=-1, where=possible, initial=-np.inf)
    below = rewards - best[..., None]
    if kl_weight == 0:
        return np.where(below == 0, reference, -np.inf), best
    return np.where(possible, reference + (1 - kl_weight) / kl_weight * below, -np.inf), best


def kl(policy: ArrayLike, other: ArrayLike) -> np.ndarray:
    """KL(π ‖ π') of two policies [..., Y], in nats: [...]; ∞ where π' excludes an output of π."""
    policy, other = np.broadcast_arrays(np.asarray(policy, float), np.asarray(other, float))
    chosen = policy > -np.inf
    log_ratio = np.where(chosen, policy, 0.0) - np.where(chosen, other, 0.0)
    # Σ π log(π/π') + π' − π: no term is negative, so that a small divergence keeps its digits.
    near = np.abs(log_ratio) < 1
    rest = np.where(
        near & chosen,
        np.exp(policy) * np.expm1(-np.where(near, log_ratio, 0.0)),
        np.exp(other) - np.exp(policy),
    )
    return np.sum(np.exp(policy) * log_ratio + rest, axis=-1)


def value(
    policy: ArrayLike, reference: ArrayLike, rewards: ArrayLike, kl_weight: float
) -> np.ndarray:
    """V_{α,R}(π) = Σ_y π(y) (1 − α) R(y) − α KL(π ‖ π_ref) (Eq. 1), in one context.

    Args:
      policy: log π, [..., Y].
      reference: log π_ref, [..., Y].
      rewards: R, [..., Y].
      kl_weight: α; range [0, 1].

    Returns:
      [...]; −∞ if α > 0 and the policy gives what the reference excludes.
    """
    expected = np.sum(np.exp(np.asarray(policy)) * np.asarray(rewards, float), axis=-1)
    if kl_weight == 0:  # not 0 · ∞
        return expected
    return (1 - kl_weight) * expected - kl_weight * kl(policy, reference)


def regret(
    policy: ArrayLike, reference: ArrayLike, rewards: ArrayLike, kl_weight: float
) -> np.ndarray:
    """V*_{α,R} − V_{α,R}(π) = α KL(π ‖ π*_{α,R}) (Lemma E.2), for α > 0.

    Computed from the KL, which does not cancel where the policy is nearly optimal.

    Returns:
      [...], non-negative.

    Raises:
      ValueError: α outside (0, 1].
    """
    if kl_weight == 0:
        raise ValueError("kl_weight=0: Lemma E.2 needs a KL weight in (0, 1]")
    return kl_weight * kl(policy, optimal_policy(reference, rewards, kl_weight))


def mix(policies: ArrayLike, weights: ArrayLike) -> np.ndarray:
    """π_w ∝ Π_i π_i^{w_i}, logit mixing: the normalised geometric mixture (App. E).

    Applied to optimal policies of R_i it gives the optimal policy of Σ_i w_i R_i, exactly, for any
    α > 0; applied to (π*_{α_min}, π_ref) with weights (1 − f_mix(α), f_mix(α)), that of α (Eq. 4).

    Args:
      policies: log π_i, [m, ..., Y].
      weights: w, [m], summing to 1. A policy of weight 0 does not count, even where it is 0.

    Returns:
      log π_w, [..., Y]. What one policy of positive weight excludes, the mixture excludes.

    Raises:
      ValueError: in some context no output is possible under all policies.
    """
    pairs = zip(np.asarray(weights, float), np.asarray(policies, float), strict=True)
    logits = np.sum([weight * policy for weight, policy in pairs if weight], axis=0)
    if np.any(np.max(logits, axis=-1) == -np.inf):
        raise ValueError("no output is possible under all of the policies: nothing to mix")
    return log_softmax(logits, axis=-1)


def concentrability(policy: ArrayLike, other: ArrayLike) -> float:
    """C_{π1,π2} = max_{x,y} π2(y | x) / π1(y | x) of π1 = `policy` and π2 = `other` (Sec. 6.1).

    Returns:
      At least 1; ∞ where π1 excludes an output of π2.
    """
    policy, other = np.broadcast_arrays(np.asarray(policy, float), np.asarray(other, float))
    chosen = other > -np.inf
    return float(np.exp(np.max(np.where(chosen, other, 0.0)[chosen] - policy[chosen])))


def mixing_bound(experts: ArrayLike, weights: ArrayLike, suboptimality: ArrayLike) -> float:
    """A bound on the regret of logit mixing: Σ_i w_i C_{π̂_i,π̂_w} ε_i.

    π̂_w is the mixture of the experts π̂_i, and ε_i ≥ V*_{α,R_i} − V_{α,R_i}(π̂_i). The bound holds
    for every α in (0, 1] and every reference; docs/theory.md has the proof, and how it relates to
    Theorem E.1. Since C_{π̂_i,π̂_w} ≤ 1 / p_min, it is at most max_i ε_i / p_min.

    Args:
      experts: log π̂_i, [m, ..., Y].
      weights: w, [m], on the simplex.
      suboptimality: ε_i, [m], as means over the contexts, in units of reward.

    Returns:
      Of the same unit and mean as ε.
    """
    mixture = mix(experts, weights)
    parts = zip(*(np.asarray(x, float) for x in (weights, experts, suboptimality)), strict=True)
    return sum(
        float(weight * concentrability(expert, mixture) * epsilon)
        for weight, expert, epsilon in parts
        if weight
    )


def printed_bound(experts: ArrayLike, mixing: float, suboptimality: float) -> float:
    """The bound of Theorem E.1 as printed, on the regret of π̂_λ.

    ε (exp(η²/8) ((1 − λ) C_{π̂2,π̂1}^λ + λ C_{π̂1,π̂2}^{1−λ}) + 4 |A| / p_min), with C as Sec. 6.1
    defines it. η, "the maximum ℓ∞ logit value", depends on the constant that is added to the
    logits; taken here is the smallest of all choices, half of their range, and with it the smallest
    bound.

    Args:
      experts: log π̂_1 and log π̂_2, [2, ..., Y].
      mixing: λ, the weight of π̂_2; range [0, 1].
      suboptimality: ε ≥ V*_{α,R_i} − V_{α,R_i}(π̂_i) of both experts, in units of reward.

    Returns:
      In units of reward; ∞ if an expert excludes an output.
    """
    first, second = np.asarray(experts, float)
    least = np.exp(np.min([first, second]))
    if least == 0:
        return np.inf
    if suboptimality == 0:
        return 0.0
    eta = np.max(np.ptp([first, second], axis=-1)) / 2
    coverage = (1 - mixing) * concentrability(second, first) ** mixing
    coverage += mixing * concentrability(first, second) ** (1 - mixing)
    with np.errstate(over="ignore"):  # ∞ bounds too
        factor = np.exp(eta**2 / 8) * coverage + 4 * first.shape[-1] / least
    return float(suboptimality * factor)
