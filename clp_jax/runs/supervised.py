"""Supervised finetuning: maximum likelihood on the reference summaries, which makes θ_ref."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from clp_jax.algorithm import losses
from clp_jax.algorithm.rollout import over_completion_logits
from clp_jax.data.batches import Batch, shared
from clp_jax.machine.hosts import Rows
from clp_jax.models import checkpoints, partitioning
from clp_jax.models.partitioning import Placement
from clp_jax.reporting import metrics_log
from clp_jax.reporting.metrics_log import say
from clp_jax.runs import loop, restoring, states
from clp_jax.runs.run_checkpoints import RunCheckpoints
from clp_jax.settings.config import DatasetConfig, Run

Params = Any
State = dict[str, Any]


def dataset_config(run: Run) -> DatasetConfig:
    """The data: those of training, in batches of SFT_BATCH_SIZE."""
    return dataclasses.replace(run.train_dataset_cfg, batch_size=run.sft.batch_size)


def finetune(run: Run, place: Placement, stop: loop.Stop | None = None) -> Params:
    """Trains the reference policy, or reads on where an earlier call was killed.

    It begins with INITIAL_CHECKPOINT_PATH, or with random parameters where that is None.

    Args:
      run: the configuration; `run.sft` says how.
      place: over which devices.
      stop: see `loop.train`.

    Returns:
      θ_ref, plain LM parameters; also written to MODEL_DIR/reference.

    Raises:
      Preempted: it was stopped.
    """
    folder = pathlib.Path(run.model_dir)
    batches = shared(dataset_config(run), run.random_seed, place)
    saved = RunCheckpoints(checkpoint_folder(run), run.checkpoint_cfg.save)
    step = SupervisedStep(run, place)
    first_step = saved.latest_step() or 0
    if first_step:
        say(f"sft: resuming from step {first_step}")
        state = saved.restore(step.state_shapes(), first_step, batches)
    else:
        state = step.first_state()
    log = metrics_log.opened(folder / "sft", first_step)
    with contextlib.closing(log), contextlib.closing(saved):
        state = loop.train(
            step,
            state,
            batches,
            what="sft",
            first_step=first_step,
            total_steps=run.sft.steps,
            stats_period=run.stats_period,
            save_period=run.checkpoint_cfg.save.period,
            log=log,
            checkpoints=saved,
            stop=stop,
        )
    checkpoints.save_params(folder / checkpoints.REFERENCE, state["params"])
    return state["params"]


def checkpoint_folder(run: Run) -> pathlib.Path:
    """Where the checkpoints of a run's supervised finetuning are."""
    return pathlib.Path(run.model_dir, "sft", "checkpoints")


class SupervisedStep:
    """One step of maximum likelihood on the reference summaries.

    Args:
      run: the configuration.
      place: over which devices.
    """

    def __init__(self, run: Run, place: Placement):
        self._run, self._place = run, place
        module, optimizer = run.model.module, run.sft.optimizer
        self._shapes = jax.eval_shape(lambda p: _state(run, p), states.reference_shapes(run))
        self._shardings = place.parameters(module, self._shapes)
        self._step = jax.jit(
            place.traced(functools.partial(_counted_step, module, optimizer)),
            donate_argnums=0,
            out_shardings=(self._shardings, place.replicated),
        )
        self._rows = Rows(place.batch, run.sft.batch_size)

    def first_state(self) -> State:
        """Parameters of INITIAL_CHECKPOINT_PATH, or random ones, and their optimizer's state."""
        run, place = self._run, self._place
        params = restoring.load_initial_params(run, place)
        if params is None:
            say("sft: from random parameters, as INITIAL_CHECKPOINT_PATH is None")
            params = states.init_params(run, place)
        return jax.jit(lambda p: _state(run, p), out_shardings=self._shardings)(params)

    def state_shapes(self) -> State:
        """The shapes of `first_state`, with their shardings."""
        return self._place.shapes(self._run.model.module, self._shapes)

    def __call__(self, state: State, batch: Batch, step: int) -> tuple[State, dict[str, Any]]:
        """See `clp_jax.runs.loop.Step`."""
        cut = (batch.truncated, batch.truncated_references)
        rows = (batch.prompts, batch.references, *cut)
        numbers = (np.int32(self._run.random_seed), np.int32(step))
        numbers = partitioning.put(numbers, self._place.replicated)
        return self._step(state, *self._rows.to_devices(rows), *numbers)

    def samples(self) -> Sequence[dict[str, Any]]:
        """None: nothing is sampled."""
        return ()


def _state(run: Run, params: Params) -> State:
    return {"params": params, "optimizer": run.sft.optimizer.init(params)}


def _counted_step(
    module, optimizer, state, prompts, references, truncated, truncated_references, seed, step
):
    """`supervised_step`, and how many rows were cut, of [B] bool."""
    state, metrics = supervised_step(module, optimizer, state, prompts, references, seed, step)
    return state, {
        **metrics,
        "data/truncated_prompts": jnp.sum(truncated),
        "data/truncated_references": jnp.sum(truncated_references),
    }


def supervised_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    state: State,
    prompts: jax.Array,
    references: jax.Array,
    seed: jax.Array,
    step: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
    """Minimises the mean cross-entropy of the reference tokens.

    Args:
      module: a T5-like network; its dropout is on.
      optimizer: of the plain LM parameters.
      state: {"params", "optimizer"}.
      prompts: [B, E] int32.
      references: [B, L] int32, padded with 0.
      seed: of dropout, [] int32.
      step: [] int32.

    Returns:
      (state, {"loss/cross_entropy", "accuracy"}, per token, and "gradient/norm").
    """
    mask = (references > 0).astype(jnp.float32)
    key = jax.random.fold_in(jax.random.key(seed), step)

    def predictions(logits, tokens):
        return losses.token_log_probs(logits, tokens), jnp.argmax(logits, axis=-1) == tokens

    def loss_fn(params):
        log_probs, right = over_completion_logits(
            predictions, module, params, prompts, references, mask, key
        )
        total = jnp.sum(mask)
        return -jnp.sum(log_probs * mask) / total, jnp.sum(right * mask) / total

    (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
    updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    norm = optax.tree.norm(grads)
    metrics = {"loss/cross_entropy": loss, "accuracy": accuracy, "gradient/norm": norm}
    return {"params": params, "optimizer": optimizer_state}, metrics
