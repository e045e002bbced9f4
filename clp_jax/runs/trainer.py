"""The host's side of one CLP step: compiled functions, weightings, text and host rewards."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clp_jax.algorithm import train_step as clp_step
from clp_jax.algorithm import weighting as weighting_lib
from clp_jax.algorithm.rollout import Rollout
from clp_jax.algorithm.train_step import TrainState
from clp_jax.algorithm.weighting import Weighting
from clp_jax.data.batches import Batch, decode
from clp_jax.machine import hosts
from clp_jax.machine.hosts import Rows
from clp_jax.models import partitioning
from clp_jax.models.partitioning import Placement
from clp_jax.policies.policy import Prompter
from clp_jax.runs import states
from clp_jax.settings.config import CLPModel, Run

Params = Any

_SAMPLES = 4  # completions in each table of samples


class Trainer:
    """Algorithm 1, lines 3-7, with rewards that may run on the host.

    The step is cut where the host is needed: `generate` on the device, then rewards on the host
    while the device computes the reference's log-probabilities and its own rewards, then `update`.

    Of several processes, each reads, decodes and scores the rows of the batch that its devices
    hold; metrics are those of all rows.

    Args:
      run: the configuration.
      reference: θ_ref, on the devices; or its shapes, to compile and not to run.
      placement: over which devices; None for the first one.
    """

    def __init__(self, run: Run, reference: Params, placement: Placement | None = None):
        placement = placement or Placement.over(jax.local_devices()[:1])
        model = run.model
        self._model, self._reference = model, reference
        self._programs(run, placement)
        model.rewards.place(placement)
        self.rows = Rows(placement.batch, run.train_dataset_cfg.batch_size)
        self._seed = run.random_seed
        self._prompter = prompter(model)
        self._samples: list[dict[str, Any]] = []

    def _programs(self, run: Run, placement: Placement) -> None:
        """What is compiled, each once for all weightings."""
        clp, whole, batch = run.clp, placement.replicated, placement.batch

        def compiled(function: Callable, **options: Any) -> Any:
            return jax.jit(placement.traced(function), **options)

        self._put = functools.partial(partitioning.put, sharding=whole)
        self._draw = compiled(functools.partial(_draw, run.model), out_shardings=whole)
        self.generate = compiled(functools.partial(clp_step.generate, clp), out_shardings=batch)
        self.score = compiled(functools.partial(clp_step.score, clp), out_shardings=batch)
        state = placement.parameters(run.model.module, states.state_shapes(run))
        self.update = compiled(
            functools.partial(clp_step.update, clp),
            donate_argnums=0,
            out_shardings=(state, whole),
        )
        self._means = compiled(functools.partial(_means, run.model.rewards.names))

    def __call__(
        self, state: TrainState, batch: Batch, step: int
    ) -> tuple[TrainState, dict[str, Any]]:
        """One step; the returned metrics may still be under way on the device.

        Args:
          state: donated.
          batch: prompts and the columns that rewards read; this process's rows of it.
          step: steps done before; with the run's seed it determines all randomness.
        """
        rewards = self._model.rewards
        key, weighting = self._draw(*self._put((np.int32(self._seed), np.int32(step))))
        plain_prompts, cut = self.rows.to_devices(batch.prompts), batch.truncated
        prompts = plain_prompts
        if self._prompter is not None:
            weights = jax.device_get(weighting.reward_weights)[self._group(weighting)]
            conditioned, lost = self._prompter(batch.prompts, weights)
            prompts, cut = self.rows.to_devices(conditioned), cut | lost
        rollout = self.generate(state.params, self._reference, prompts, weighting, key)
        rollout = dataclasses.replace(rollout, plain_prompts=plain_prompts)
        scores, completions, reward_metrics, rollout = self._score(batch, rollout)
        normalised, raw, cut = self.rows.to_devices((scores.normalised, scores.raw, cut))
        means = self._means(normalised, raw, cut)
        state, metrics = self.update(state, self._reference, rollout, normalised, weighting, key)
        self._keep_samples(batch, completions, scores, weighting)
        led = _when_largest(rewards.names, weighting, {**means, **metrics})
        return state, {**means, **metrics, **led, **reward_metrics}

    def _group(self, weighting: Weighting) -> np.ndarray:
        """Which of the batch's k weightings each row of this process has, [n]."""
        rows, groups = self.rows, len(weighting.kl_weight)
        return rows.indices * groups // rows.size

    def _score(self, batch: Batch, rollout: Rollout):
        """Line 6's rewards, and log π_ref beside them.

        The device scores while the host does: the tokens stay where they are, and only the text
        that the host's rewards read is fetched.
        """
        rewards = self._model.rewards
        on_device = rewards.dispatch(rollout.plain_prompts, rollout.completions, rollout.mask)
        scored = self.score(self._reference, rollout)
        # Waits for the device; of this process's rows.
        local = partitioning.local_rows(rollout.completions)
        completions = decode(self._model.vocabulary, local)
        generated = time.perf_counter()
        on_host = rewards.submit(batch.prompt_texts, completions, batch.columns)
        device_scores = on_device.result(generated)
        jax.block_until_ready(scored)
        device_done = time.perf_counter()
        scores = hosts.all_or_none(lambda: rewards.combine(device_scores, on_host.result()))
        seconds = {**on_device.seconds, **on_host.seconds}
        metrics = {
            **{f"rewards_own/{n}": v for n, v in {**on_device.metrics, **on_host.metrics}.items()},
            **{f"timing/reward_seconds/{n}": s for n, s in seconds.items()},
            **{f"timing/reward_hidden/{n}": s for n, s in on_host.hidden(device_done).items()},
        }
        return scores, completions, metrics, scored

    def samples(self) -> Sequence[Mapping[str, Any]]:
        """The table of sample completions of the last step, with w, α and every reward."""
        return self._samples

    def _keep_samples(self, batch: Batch, completions: list[str], scores, weighting: Weighting):
        names = self._model.rewards.names
        weights, kl_weight = jax.device_get((weighting.reward_weights, weighting.kl_weight))
        group = self._group(weighting)
        # One from each part of the batch, so that several weightings show where there are several.
        rows = np.linspace(0, len(completions) - 1, min(_SAMPLES, len(completions))).astype(int)
        self._samples = [
            {
                "reward_weights": _rounded(names, weights[group[row]]),
                "kl_weight": round(float(kl_weight[group[row]]), 6),
                "rewards": _rounded(names, scores.normalised[row]),
                "completion": completions[row],
                "prompt": batch.prompt_texts[row],
            }
            for row in rows
        ]


def _rounded(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {n: round(float(value), 4) for n, value in zip(names, values, strict=True)}


def prompter(model: CLPModel) -> Prompter | None:
    """What writes w into the prompts, where the model is trained with CONDITION_PROMPT."""
    if not model.condition_prompt:
        return None
    return Prompter(model.vocabulary, model.rewards.names, model.prompt_repetitions)


def _draw(model: CLPModel, seed: jax.Array, step: jax.Array) -> tuple[jax.Array, Weighting]:
    """The key of a step, and its weightings (Algorithm 1, line 3)."""
    weighting_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    weighting = weighting_lib.sample_weightings(
        weighting_key,
        model.kl_weight_sampler,
        model.reward_weights_sampler,
        model.weightings_per_batch,
    )
    return key, jax.tree.map(lambda x: x.astype(jnp.float32), weighting)


def _means(
    names: Sequence[str], normalised: jax.Array, raw: jax.Array, cut: jax.Array
) -> dict[str, jax.Array]:
    """Metrics of the scores [B, m], and how many prompts were cut, of [B] bool."""
    return {
        **{f"rewards/{n}": v for n, v in zip(names, jnp.mean(normalised, axis=0), strict=True)},
        **{f"rewards_raw/{n}": v for n, v in zip(names, jnp.mean(raw, axis=0), strict=True)},
        "data/truncated_prompts": jnp.sum(cut),
    }


def _when_largest(
    names: Sequence[str], weighting: Weighting, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """How the policy does where one objective leads: what shows which reward is being hacked."""
    weights = jax.device_get(weighting.reward_weights)
    if len(weights) > 1 or len(names) == 1:  # several weightings share the means of this batch
        return {}
    lead = int(np.argmax(weights[0]))
    watched = {
        "reward": metrics[f"rewards/{names[lead]}"],
        "kl": metrics["objective/kl"],
        "length": metrics["rollout/length"],
        "repetition": metrics["rollout/repetition"],
    }
    return {f"when_largest/{names[lead]}/{key}": value for key, value in watched.items()}
