"""Supervised finetuning: maximum likelihood on the reference summaries, which makes θ_ref."""

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

from clp_jax import loop, losses
from clp_jax.config import Run
from clp_jax.data.batches import Batch, Batches
from clp_jax.metrics_log import MetricsLog, say
from clp_jax.models import checkpoints
from clp_jax.rollout import over_completion_logits
from clp_jax.run_checkpoints import RunCheckpoints

Params = Any
State = dict[str, Any]


def finetune(run: Run) -> Params:
    """Trains the reference policy, or reads on where an earlier call was killed.

    Args:
      run: the configuration; `run.sft` says how.

    Returns:
      θ_ref, plain LM parameters; also written to MODEL_DIR/reference.
    """
    folder = pathlib.Path(run.model_dir)
    config = dataclasses.replace(run.train_dataset_cfg, batch_size=run.sft.batch_size)
    batches = Batches(config, repeat=True, seed=run.random_seed)
    saved = RunCheckpoints(folder / "sft" / "checkpoints", run.checkpoint_cfg.save)
    params = init_params(run)
    state = {"params": params, "optimizer": run.sft.optimizer.init(params)}
    first_step = saved.latest_step() or 0
    if first_step:
        say(f"sft: resuming from step {first_step}")
        state = saved.restore(state, first_step, batches)
    log = MetricsLog(folder / "sft", first_step)
    state = loop.train(
        SupervisedStep(run),
        state,
        batches,
        what="sft",
        first_step=first_step,
        total_steps=run.sft.steps,
        stats_period=run.stats_period,
        save_period=run.checkpoint_cfg.save.period,
        log=log,
        checkpoints=saved,
    )
    log.close()
    saved.close()
    checkpoints.save_params(folder / checkpoints.REFERENCE, state["params"])
    return state["params"]


def init_params(run: Run) -> Params:
    """Random parameters of the run's network; under `jax.eval_shape`, their shapes."""
    module = run.model.module
    prompts = jnp.ones([1, run.max_prompt_length], jnp.int32)
    completions = jnp.ones([1, run.max_decode_length], jnp.int32)

    def init(key):
        return module.init(key, prompts, completions, completions, enable_dropout=False)["params"]

    return jax.jit(init)(jax.random.key(run.random_seed))


class SupervisedStep:
    """One step of maximum likelihood on the reference summaries."""

    def __init__(self, run: Run):
        step = functools.partial(supervised_step, run.model.module, run.sft.optimizer)
        self._step = jax.jit(step, donate_argnums=0)
        self._seed = run.random_seed

    def __call__(self, state: State, batch: Batch, step: int) -> tuple[State, dict[str, Any]]:
        """See `clp_jax.loop.Step`."""
        arguments = (batch.prompts, batch.references, np.int32(self._seed), np.int32(step))
        state, metrics = self._step(state, *jax.device_put(arguments))
        return state, {
            **metrics,
            "data/truncated_prompts": batch.truncated.sum(),
            "data/truncated_references": batch.truncated_references.sum(),
        }

    def samples(self) -> Sequence[dict[str, Any]]:
        """None: nothing is sampled."""
        return ()


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
      (state, {"loss/cross_entropy", "accuracy"}) per token.
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
    metrics = {"loss/cross_entropy": loss, "accuracy": accuracy}
    return {"params": params, "optimizer": optimizer_state}, metrics
