"""The second command: four methods for the same number of steps, each swept over 13 weightings."""

import concurrent.futures
import functools
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clp_jax.algorithm import subset
from clp_jax.algorithm import train_step as clp_step
from clp_jax.algorithm.conditioning import CLPParams, condition, expert
from clp_jax.algorithm.optimizers import adafactor
from clp_jax.algorithm.subset import Subset
from clp_jax.algorithm.train_step import CLP
from clp_jax.algorithm.weighting import (
    DirichletRewardWeights,
    FixedKLWeight,
    FixedRewardWeights,
    Sampler,
    Weighting,
    sample_weightings,
)
from clp_jax.evaluation.grids import reward_weights_grid
from clp_jax.evaluation.result import PROMPTS, SweepResult
from clp_jax.models.decoding import Decoding
from clp_jax.policies.rewarded_soup import soup
from experiments.tldr_from_scratch.arrays import in_order, shuffled
from experiments.tldr_from_scratch.fits import MODELS, RANGES
from experiments.tldr_from_scratch.rewards import normalised
from experiments.tldr_from_scratch.setting import Part, Setting, say
from experiments.tldr_from_scratch.step import evaluate, policy_step

Params = Any

SOUP, PROMPTING = "rewarded_soup", "prompting"
METHODS: dict[str, Subset] = {
    "full": subset.full(),
    "attn": subset.attention(),
    SOUP: subset.none(),
    PROMPTING: subset.none(),
}

_KL_WEIGHT = 0.01  # α, Sec. 4.1.3
_FIRST_SHARE = 0.85  # of the first method's time for training; its steps are everyone's
_SWEEP_BATCHES = 4  # a sweep, which has no gradients, takes as many batches at once
_SWEEP_RESERVE = 1.2  # times what a sweep should take is kept for each


def policies(setting: Setting) -> None:
    """Trains and sweeps every method; writes results/METHOD/prompts.npz and results/policies.json.

    The first, full-CLP, should be the slowest: as many steps as it makes are what the others make,
    and the experts of the soup together. One whose share of the time is up is stopped, and said to
    be.
    """
    experiment = _Experiment(setting)
    compiled, end = time.monotonic() - setting.started, setting.deadline(1.0)
    steps, sweep_seconds, report = setting.flags.steps, experiment.seconds_to_sweep(), {}
    for i, method in enumerate(METHODS):
        until = None
        if end is not None:
            now = time.monotonic()
            seconds = (end - now) / (len(METHODS) - i) - _SWEEP_RESERVE * sweep_seconds
            until = now + seconds * (1 if i else _FIRST_SHARE)
        params, parts = experiment.train(method, until, steps)
        made = sum(part["steps"] for part in parts)
        steps = made if steps is None else steps
        if made < steps:
            say(f"{method}: stopped after {made} of {steps} steps: its time was up")
        values = experiment.sweep(method, params)
        report[method] = {
            "steps": made, "complete": made >= steps, "parts": parts, "values": values,
        }  # fmt: skip
        timing = {"seconds_to_compile": round(compiled, 1), "seconds_to_sweep": sweep_seconds}
        setting.report("policies", {**timing, "methods": report})


class _Experiment:
    """The models, and all that is compiled; one after the other, that would take half the time."""

    def __init__(self, setting: Setting):
        self._setting = setting
        path = setting.results / f"{RANGES}.json"
        shapes = jax.eval_shape(setting.init_params)
        self._models = setting.restore(
            MODELS, dict.fromkeys(("nli", "preference", "reference"), shapes)
        )
        self._ranges = np.asarray(json.loads(path.read_text())["ranges"], np.float32)
        flags, meta = setting.flags, setting.prepared.meta
        self._clp = CLP(
            module=setting.module,
            decoding=Decoding(meta["summary_length"] + 1),
            policy_optimizer=adafactor(flags.policy_learning_rate),
            value_optimizer=adafactor(flags.value_learning_rate),
        )
        self._num_objectives = len(meta["names"])
        self._count = min(flags.prompts, len(setting.prepared.documents))
        self._mix = jax.jit(functools.partial(condition, kl_mix=self._clp.kl_mix))
        say("compiling")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            steps = {method: pool.submit(self._compiled_step, method) for method in METHODS}
            sweeps = {p: pool.submit(self._compiled_evaluation, p) for p in (False, True)}
        self._steps = {method: future.result() for method, future in steps.items()}
        self._evaluate = {prompting: future.result() for prompting, future in sweeps.items()}

    def _compiled_step(self, method: str) -> Any:
        """`policy_step` of a method, for (state, models, ranges, data, rows, weighting, key)."""
        setting, names = self._setting, self._setting.prepared.meta["names"]
        data, key = setting.prepared.arrays, jax.random.key(0)
        fixed = (self._clp, setting.rewards, names, method == PROMPTING)
        state = jax.eval_shape(lambda: self._first_state(method))
        weighting = Weighting(jnp.zeros(1), jnp.zeros([1, len(names)]))
        rows = next(shuffled(len(data["sft_train_index"]), setting.flags.batch_size, 0))
        step = jax.jit(functools.partial(policy_step, *fixed), donate_argnums=0)
        arguments = (state, self._models, self._ranges, data, rows, weighting, key)
        return step.lower(*arguments).compile()

    def _compiled_evaluation(self, prompting: bool) -> Any:
        """`evaluate` for (language model, models, data, rows, reward weights, key)."""
        data, weights = self._setting.prepared.arrays, jnp.zeros(self._num_objectives)
        rows = np.zeros(_SWEEP_BATCHES * self._setting.flags.batch_size, np.int32)
        call = jax.jit(functools.partial(evaluate, self._clp, self._setting.rewards, prompting))
        arguments = (self._models["reference"], self._models, data, rows, weights)
        return call.lower(*arguments, jax.random.key(0)).compile()

    def _first_state(self, method: str) -> clp_step.TrainState:
        return clp_step.init_train_state(
            self._clp, self._models["reference"], METHODS[method], self._num_objectives
        )

    def train(
        self, method: str, until: float | None, steps: int | None
    ) -> tuple[CLPParams, list[dict[str, Any]]]:
        """φ of a method after `steps` steps or at `until`, and what is to be reported."""
        if method != SOUP:
            sampler = DirichletRewardWeights(num_objectives=self._num_objectives)
            params, part = self._train(method, method, sampler, until, steps)
            return params, [part]
        experts, parts, corners = [], [], np.eye(self._num_objectives).tolist()
        whole, rest = divmod(steps, len(corners)) if steps is not None else (None, 0)
        for i, corner in enumerate(corners):
            name = f"{method}/{self._setting.prepared.meta['names'][i]}"
            now, left = time.monotonic(), len(corners) - i
            end = None if until is None else now + (until - now) / left
            share = None if whole is None else whole + (i < rest)
            params, part = self._train(name, method, FixedRewardWeights(tuple(corner)), end, share)
            experts.append(expert(params, 0))
            parts.append(part)
        return soup(experts), parts

    def _train(
        self, name: str, method: str, sampler: Sampler, until: float | None, steps: int | None
    ) -> tuple[CLPParams, dict[str, Any]]:
        setting = self._setting
        data, flags = setting.prepared.arrays, setting.flags
        draw = jax.jit(functools.partial(_draw, sampler))
        state = self._first_state(method)
        part = Part(name, until, steps)
        batches = shuffled(len(data["sft_train_index"]), flags.batch_size, flags.seed)
        shown = None
        for step in part:
            key, weighting = draw(jax.random.fold_in(jax.random.key(flags.seed), step))
            state, metrics, shown = self._steps[method](
                state, self._models, self._ranges, data, next(batches), weighting, key
            )
            part.step(metrics)
        report = part.end()
        if shown is not None:
            completions, scores = jax.device_get(shown)
            setting.show(completions, scores, name)
        return state.params, report

    def seconds_to_sweep(self) -> float:
        """What a sweep should take, by the reference at one weighting."""
        corner = jnp.eye(self._num_objectives)[0]
        started, grid = time.monotonic(), reward_weights_grid(self._num_objectives)
        weighting = Weighting(jnp.float32(_KL_WEIGHT), corner)
        self._at(SOUP, self._models["reference"], weighting, self._count)
        return round((time.monotonic() - started) * len(grid), 1)

    def sweep(self, method: str, params: CLPParams) -> list[list[float]]:
        """Writes a method's sweep; returns its KL-regularised rewards, [n, m]."""
        prepared, count = self._setting.prepared, self._count
        grid, parts = reward_weights_grid(self._num_objectives), []
        for i, reward_weights in enumerate(grid):
            weighting = Weighting.of(_KL_WEIGHT, reward_weights)
            model = self._mix(params, self._models["reference"], weighting)
            parts.append(self._at(method, model, weighting, count))
            say(f"{method}  weighting {i + 1}/{len(grid)}  {parts[-1]['completions'][0]!r}")
        fields: dict[str, Any] = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
        fields |= {
            "names": tuple(prepared.meta["names"]),
            "kl_weights": np.full(len(grid), _KL_WEIGHT),
            "reward_weights": grid,
            "prompt_normalised": normalised(fields["prompt_raw"], self._ranges),
            "documents": np.array(prepared.documents[:count], object),
            "references": np.array(prepared.references[:count], object),
            "truncated_prompts": self._truncated(count),
            "other_names": (),
            "prompt_other_raw": np.zeros((len(grid), count, 0)),
            "prompt_other_normalised": np.zeros((len(grid), count, 0)),
        }
        result = SweepResult(**fields)
        folder = self._setting.results / method
        folder.mkdir(parents=True, exist_ok=True)
        result.save(folder / PROMPTS)
        return result.values.round(4).tolist()

    def _at(
        self, method: str, model: Params, weighting: Weighting, count: int
    ) -> dict[str, np.ndarray]:
        """The fields at one weighting; the random numbers are the same at each."""
        data, found = self._setting.prepared.arrays, []
        for i, (rows, size) in enumerate(
            in_order(count, _SWEEP_BATCHES * self._setting.flags.batch_size)
        ):
            key = jax.random.fold_in(jax.random.key(self._setting.flags.seed), i)
            part = self._evaluate[method == PROMPTING](
                model, self._models, data, rows, weighting.reward_weights, key
            )
            found.append(jax.tree.map(lambda x, n=size: x[:n], jax.device_get(part)))
        fields = {key: np.concatenate([part[key] for part in found]) for key in found[0]}
        texts = [self._setting.prepared.decode(row) for row in fields["completions"].tolist()]
        return fields | {"completions": np.array(texts, object)}

    def _truncated(self, count: int) -> int:
        """Prompts that fill the encoder's length: those that lost their end, and any that fit."""
        data = self._setting.prepared.arrays
        last = data["documents"][data["sft_validation_index"][:count], -1]
        return int(jnp.sum(last != 0))


def _draw(sampler: Sampler, key: jax.Array) -> tuple[jax.Array, Weighting]:
    """A step's key and weighting (Algorithm 1, line 3)."""
    weighting_key, key = jax.random.split(key)
    weighting = sample_weightings(weighting_key, FixedKLWeight(_KL_WEIGHT), sampler)
    return key, jax.tree.map(lambda x: x.astype(jnp.float32), weighting)
