"""The counterexample of Sec. 6.2 and Fig. 19: CLP learns what Rewarded Soups cannot.

One context, three outputs. Each reward's own best output is worth nothing to the other reward, and
the third is a compromise that neither expert gives:

    R_1 = (1, 0, 0.75),   R_2 = (0, 1, 0.75)

The policy is an MLP on a constant input; conditioning, sampling of weightings and losses are those
of training (Algorithms 1 and 2).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from clp_jax.algorithm import losses, subset
from clp_jax.algorithm.conditioning import (
    CLPParams,
    condition,
    expert,
    from_experts,
    init_clp_params,
)
from clp_jax.algorithm.weighting import (
    DirichletRewardWeights,
    FixedKLWeight,
    FixedRewardWeights,
    KLMix,
    LinearKLMix,
    Sampler,
    SoftmaxKLMix,
    Weighting,
    sample_weightings,
)
from clp_jax.theory import tabular

REWARDS = np.array([[1.0, 0.0, 0.75], [0.0, 1.0, 0.75]])  # [m, Y]
REFERENCE = np.log(np.full(3, 1 / 3))  # log π_ref, [Y]
COMPROMISE = 2  # y_3
GRID_POINTS = 21
BATCH_SIZE = 32
LEARNING_RATE = 0.05  # at 0.1, 3 of 40 seeds end with a corner of CLP stuck on y_3

# The last layer starts at 0, so that every seed's reference is uniform; the hidden one is random.
_NETWORK = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(3, kernel_init=nn.initializers.zeros)])
_CONTEXT = jnp.ones([1])

Params = Any


@dataclasses.dataclass(frozen=True)
class Method:
    """The policies of one method, over seeds (S) and weightings (n).

    Attributes:
      name: e.g. "CLP".
      kl_weight: α.
      reward_weights: w, [n, 2].
      policies: log π(y; w), [S, n, 3].
    """

    name: str
    kl_weight: float
    reward_weights: np.ndarray
    policies: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """(V_{α,R_1}, V_{α,R_2}) of each policy, the axes of Fig. 19: [S, n, 2]."""
        return np.stack(
            [tabular.value(self.policies, REFERENCE, r, self.kl_weight) for r in REWARDS], axis=-1
        )

    @property
    def gaps(self) -> np.ndarray:
        """V*(α, wᵀR) − V_{α,wᵀR}(π(·; w)), [S, n], in units of reward."""
        rewards = self.reward_weights @ REWARDS
        best = tabular.optimal_value(REFERENCE, rewards, self.kl_weight)
        return best - tabular.value(self.policies, REFERENCE, rewards, self.kl_weight)

    @property
    def largest_gaps(self) -> np.ndarray:
        """The largest of the gaps over the weightings, [S]."""
        return np.max(self.gaps, axis=1)

    @property
    def compromise(self) -> np.ndarray:
        """π(y_3; w = (½, ½)), [S]; range [0, 1]."""
        (centre,) = np.flatnonzero(np.all(self.reward_weights == 0.5, axis=1))
        return np.exp(self.policies[:, centre, COMPROMISE])


@dataclasses.dataclass(frozen=True)
class Counterexample:
    """What `run` gives.

    Attributes:
      seeds: S of them.
      steps: updates of each method, on batches of `BATCH_SIZE`; Rewarded Soups has half of them
        for each expert.
      optimal: π*_{α,wᵀR}, one "seed".
      clp: the conditional language policy.
      rewarded_soups: the two experts, their parameters mixed.
      logit_mixing: the same two experts, their logits mixed (Sec. 6.1).
    """

    seeds: tuple[int, ...]
    steps: int
    optimal: Method
    clp: Method
    rewarded_soups: Method
    logit_mixing: Method

    @property
    def methods(self) -> tuple[Method, Method, Method]:
        """The three that are learned."""
        return self.clp, self.rewarded_soups, self.logit_mixing


def run(
    seeds: Sequence[int] = range(10), kl_weight: float = 0.03, steps: int = 2000
) -> Counterexample:
    """Trains CLP and the experts of Rewarded Soups with REINFORCE, and evaluates both exactly.

    Args:
      seeds: each gives an initial network and the samples of training; all run at once.
      kl_weight: α, in training and evaluation; range [0, 1).
      steps: updates, at least 2.

    Returns:
      The policies over `GRID_POINTS` weightings, from w = (1, 0) to (0, 1).

    Raises:
      ValueError: no seeds, or a KL weight or number of steps out of range.
    """
    if not 0 <= kl_weight < 1:
        raise ValueError(f"kl_weight={kl_weight:g} is outside [0, 1)")
    if steps < 2:
        raise ValueError(f"steps={steps}: each of the two experts needs at least one")
    if not len(seeds):
        raise ValueError("no seeds; at least one is needed")
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    reference = _init(keys)

    def trained(rewards: np.ndarray, sampler: Sampler, steps: int, stream: int) -> CLPParams:
        stream_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, stream)
        return _train(reference, stream_keys, rewards, sampler, kl_weight, steps)

    both = trained(REWARDS, DirichletRewardWeights(1.0, 2), steps, 1)
    alone = FixedRewardWeights((1.0,))
    parts = [trained(REWARDS[[i]], alone, steps // 2, 2 + i) for i in range(2)]

    first = np.linspace(1, 0, GRID_POINTS)
    grid = np.stack([first, 1 - first], axis=1)
    clp = _policies(both, reference, kl_weight, grid)
    soups = _policies(_soup(*parts), reference, kl_weight, grid)
    logits = np.stack([tabular.mix([soups[:, 0], soups[:, -1]], w) for w in grid], axis=1)
    best = tabular.optimal_policy(REFERENCE, grid @ REWARDS, kl_weight)[None]
    method = functools.partial(Method, kl_weight=kl_weight, reward_weights=grid)
    return Counterexample(
        seeds=tuple(seeds),
        steps=steps,
        optimal=method("optimal", policies=best),
        clp=method("CLP", policies=clp),
        rewarded_soups=method("Rewarded Soups", policies=soups),
        logit_mixing=method("logit mixing", policies=logits),
    )


@jax.jit
def _init(keys: jax.Array) -> Params:
    """θ_ref of each seed: keys [S] in, leading axis S out."""
    return jax.vmap(lambda key: _NETWORK.init(key, _CONTEXT)["params"])(keys)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
@functools.partial(jax.vmap, in_axes=(0, 0, None, None, None, None))
def _train(
    reference: Params,
    key: jax.Array,
    rewards: jax.Array,
    sampler: Sampler,
    kl_weight: float,
    steps: int,
) -> CLPParams:
    """Algorithm 1 with plain SGD: θ_ref and rewards [m, 3] in, φ_T out.

    Of all seeds at once: `reference`, `key` and the result have a leading axis S.

    There is no value network: one context and one weighting in a batch have one V̂, which the
    normalisation of the advantage takes off again.
    """

    def loss(params: CLPParams, weighting: Weighting, key: jax.Array) -> jax.Array:
        policy = condition(params, reference, weighting, _kl_mix(kl_weight))
        logits = jnp.broadcast_to(_logits(policy), (BATCH_SIZE, 1, 3))  # completions of one token
        outputs = jax.random.categorical(key, logits)
        log_probs = losses.token_log_probs(logits, outputs)
        reference_log_probs = losses.token_log_probs(
            jnp.broadcast_to(_logits(reference), logits.shape), outputs
        )
        kl = losses.sampled_kl(log_probs, reference_log_probs, jnp.ones_like(log_probs))
        scores = rewards.T[outputs[:, 0]]
        scalarized = losses.scalarize(
            scores, jnp.broadcast_to(weighting.reward_weights, scores.shape)
        )
        objective = losses.regularized_reward(
            scalarized, kl, jnp.broadcast_to(weighting.kl_weight, kl.shape)
        )
        advantages, _ = losses.normalize(objective)
        return losses.reinforce_loss(jnp.sum(log_probs, axis=1), advantages)

    def step(params: CLPParams, draw: tuple[Weighting, jax.Array]) -> tuple[CLPParams, None]:
        grads = jax.grad(loss)(params, *draw)
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads), None

    params = init_clp_params(reference, subset.full(), len(rewards))
    weighting_key, sample_key = jax.random.split(key)
    weightings = sample_weightings(weighting_key, FixedKLWeight(kl_weight), sampler, steps)
    return jax.lax.scan(step, params, (weightings, jax.random.split(sample_key, steps)))[0]


@jax.jit
@jax.vmap
def _soup(*parts: CLPParams) -> CLPParams:
    """Experts as one φ, per seed; S is every parameter, so that they share none to compare."""
    return from_experts([expert(part, 0) for part in parts], subset.full())


def _policies(
    params: CLPParams, references: Params, kl_weight: float, grid: np.ndarray
) -> np.ndarray:
    """log π(y; w) of every seed and weighting: leading axis S in, [S, n, 3] float64 out."""
    weightings = Weighting(jnp.full(len(grid), kl_weight), jnp.asarray(grid, jnp.float32))

    def logits(params: CLPParams, reference: Params, weighting: Weighting) -> jax.Array:
        return _logits(condition(params, reference, weighting, _kl_mix(kl_weight)))

    over_weightings = jax.vmap(logits, in_axes=(None, None, 0))
    over_seeds = jax.jit(jax.vmap(over_weightings, in_axes=(0, 0, None)))
    values = np.asarray(over_seeds(params, references, weightings), np.float64)
    return log_softmax(values, axis=-1)


def _logits(policy: Params) -> Any:
    """[3]."""
    return _NETWORK.apply({"params": policy}, _CONTEXT)


def _kl_mix(kl_weight: float) -> KLMix:
    """An f_mix that is 0 at `kl_weight`, the only one in use: no reference is mixed in."""
    return SoftmaxKLMix(kl_weight) if kl_weight > 0 else LinearKLMix(0.0)
