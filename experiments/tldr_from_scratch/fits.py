"""The first command: the reference policy, the two reward models, and the rewards' ranges."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clp_jax.algorithm.rollout import Rollout, completion_log_probs
from clp_jax.models.decoding import Decoding
from clp_jax.models.sampling import sample
from clp_jax.reward_fitting import fit as fit_lib
from experiments.tldr_from_scratch import rewards as rewards_lib
from experiments.tldr_from_scratch.arrays import in_order, rows_of, shuffled, with_eos
from experiments.tldr_from_scratch.setting import Part, Setting, say

Params = Any

MODELS = "models"  # the checkpoint that the second command reads
RANGES = "ranges"

_SHARES = {"sft": 0.5, "nli": 0.72, "preference": 0.92}  # of the time, where each part ends
_CENTRING = 0.01  # as PreferenceObjective has it
_WARMUP_STEPS = 100
_VALIDATION_PERIOD = 200


def reward_models_and_reference(setting: Setting) -> None:
    """Fits θ_ref, then the reward models from it, then proposes ranges; writes all of them."""
    losses = {
        "sft": functools.partial(reference_loss, setting.module),
        "nli": functools.partial(fit_lib.nli_loss, setting.rewards.nli),
        "preference": functools.partial(_preference_loss, setting.rewards.preference),
    }
    params, report = setting.init_params(), {}
    models: dict[str, Params] = {}
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    say(f"{jax.devices()[0].device_kind}; {size:,} parameters, {setting.module.config.dtype}")
    for name, loss in losses.items():
        # The reward models start from the reference, which has read these posts already.
        models[name], report[name] = fit(setting, name, loss, models.get("sft", params))
    models["reference"] = models.pop("sft")
    scores = _scores_of_reference(setting, models)
    ranges = rewards_lib.proposed_ranges(scores)
    setting.save(MODELS, models)
    setting.report(RANGES, {"ranges": ranges, "parameters": size, "fits": report})
    names = setting.prepared.meta["names"]
    say(
        "ranges "
        + ", ".join(f"{n} ({a:.4g}, {b:.4g})" for n, (a, b) in zip(names, ranges, strict=True))
    )


def fit(
    setting: Setting, name: str, loss: fit_lib.Loss, params: Params
) -> tuple[Params, dict[str, Any]]:
    """Trains on NAME_train for this part's share of the time.

    Returns:
      (the parameters with the least loss on NAME_validation, what is to be reported).
    """
    flags, data = setting.flags, setting.prepared.arrays
    schedule = optax.linear_schedule(0.0, flags.learning_rate, _WARMUP_STEPS)
    optimizer = optax.adam(schedule)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, data, rows, step):
        batch = rows_of(data, f"{name}_train", rows)
        return fit_lib.fit_step(loss, optimizer, state, *batch, jnp.int32(flags.seed), step)

    @jax.jit
    def validation_loss(params, data, rows):
        return loss(params, *rows_of(data, f"{name}_validation", rows))

    def validated(params: Params) -> dict[str, float]:
        count = min(len(data[f"{name}_validation_index"]), flags.prompts)
        found = []
        for rows, _ in in_order(count, flags.batch_size):
            value, metrics = validation_loss(params, data, rows)
            found.append({"loss": value, **{k: metrics[k] for k in metrics if k == "accuracy"}})
        means = jax.tree.map(lambda *xs: float(np.mean(xs)), *jax.device_get(found))
        say(f"{name}  validation  " + " ".join(f"{k} {v:.4g}" for k, v in means.items()))
        return means

    params = jax.tree.map(jnp.copy, params)  # donated, and the caller's are needed again
    state = {"params": params, "optimizer": optimizer.init(params)}
    best, kept = {"loss": float("inf")}, None
    part = Part(name, setting.deadline(_SHARES[name]), flags.steps)
    batches = shuffled(len(data[f"{name}_train_index"]), flags.batch_size, flags.seed)
    for step in part:
        state, metrics = train_step(state, data, next(batches), np.int32(step))
        part.step(metrics)
        if (step + 1) % _VALIDATION_PERIOD == 0:
            best, kept = _better(best, kept, validated(state["params"]), state["params"], step + 1)
    report = part.end()
    best, kept = _better(best, kept, validated(state["params"]), state["params"], part.done)
    if kept is None:
        raise ValueError(f"{name}: the validation loss is not finite; lower --learning_rate")
    return kept, {**report, "validation": best}


def _better(
    best: dict, kept: Params, found: dict, params: Params, step: int
) -> tuple[dict, Params]:
    """What was found after `step` steps where its loss is less, with a copy of the parameters."""
    if not found["loss"] < best["loss"]:
        return best, kept
    return {**found, "step": step}, jax.tree.map(jnp.copy, params)


def reference_loss(
    module: Any,
    params: Params,
    documents: jax.Array,
    summaries: jax.Array,
    labels: jax.Array,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy of the reference summaries' tokens, EOS included; see `fit.nli_loss`."""
    del labels
    targets = with_eos(summaries[:, 0])
    mask = (targets != 0).astype(jnp.float32)
    log_probs = completion_log_probs(
        module, params, with_eos(documents), targets, mask, dropout_key
    )
    loss = -jnp.sum(log_probs) / jnp.sum(mask)
    return loss, {"loss/cross_entropy": loss}


def _preference_loss(model, params, documents, summaries, labels, dropout_key=None):
    del labels
    return fit_lib.preference_loss(model, params, documents, summaries, _CENTRING, dropout_key)


def _scores_of_reference(setting: Setting, models: dict[str, Params]) -> np.ndarray:
    """Raw scores of sampled completions of training posts, [N, m]."""
    data, batch_size = setting.prepared.arrays, setting.flags.batch_size
    decoding = Decoding(setting.prepared.meta["summary_length"] + 1)

    @jax.jit
    def scored(models, data, rows, key):
        documents, summaries, _ = rows_of(data, "sft_train", rows)
        prompts, keys = with_eos(documents), jax.random.split(key, len(rows))
        samples = sample(setting.module, models["reference"], prompts, keys, decoding)
        rollout = Rollout(prompts, samples.tokens, samples.mask, samples.log_probs, prompts)
        return samples.tokens, setting.rewards(models, rollout, summaries[:, 0])

    found = []
    examples = min(len(data["sft_train_index"]), setting.flags.prompts)
    for i, (rows, count) in enumerate(in_order(examples, batch_size)):
        key = jax.random.fold_in(jax.random.key(setting.flags.seed), i)
        tokens, scores = jax.device_get(scored(models, data, rows, key))
        found.append(scores[:count])
        if i == 0:
            setting.show(tokens, scores, "reference")
    return np.concatenate(found)
