"""The resolved run as text: what will be trained, on what, and what it costs."""

import math
from typing import Any

import jax

from clp_jax.algorithm.conditioning import count_parameters
from clp_jax.algorithm.train_step import TrainState
from clp_jax.data import tasks
from clp_jax.settings.config import Run

_COUNTED = 1000  # prompts that are tokenised to see how many are too long


def resolved_run(run: Run, state: TrainState) -> str:
    """One aligned line for each thing that was decided.

    Args:
      run: the configuration.
      state: the training state, or its shapes.
    """
    model, data = run.model, run.train_dataset_cfg
    count = count_parameters(state.params, model.num_objectives)
    config = model.module.config
    lines = {
        "model": f"{type(model.module).__module__}.{type(model.module).__name__}, "
        f"{count.language_model:,} parameters ({config.num_encoder_layers} + "
        f"{config.num_decoder_layers} layers, width {config.emb_dim}, {config.vocab_size} tokens)",
        "subset S": f"{model.subset}: |S| = {count.conditioned:,} ({100 * count.fraction:.1f} %)",
        "policy": f"m|S| + |S^C| = {count.num_objectives} x {count.conditioned:,} + "
        f"{count.shared:,} = {count.total:,} parameters "
        f"({count.total / count.language_model:.2f} x the model), {_size(count.bytes)}",
        "state": f"{_size(_bytes(state))} with optimizers and value network, and "
        f"{_size(_bytes(state.value_params))} of reference",
        "rewards": "\n".join(model.rewards.describe().splitlines()),
        "w": str(model.reward_weights_sampler),
        "α": f"{model.kl_weight_sampler}, f_mix {model.kl_mix}",
        "weightings": f"{model.weightings_per_batch} per batch"
        + (", and w in the prompt" if model.condition_prompt else ""),
        "data": f"{data.mixture_or_task_name}, batch {data.batch_size}, prompts <= "
        f"{run.max_prompt_length}, completions <= {run.max_decode_length} tokens",
        "prompts": _prompt_lengths(run),
        "reference": _reference(run),
        "steps": f"{run.total_steps:,}, checkpoint every {run.checkpoint_cfg.save.period:,}, "
        f"seed {run.random_seed}",
        "devices": _devices(run),
        "MODEL_DIR": run.model_dir,
    }
    width = max(map(len, lines)) + 2
    indented = {name: text.replace("\n", "\n" + " " * width) for name, text in lines.items()}
    return "\n".join(f"{name:<{width}}{text}" for name, text in indented.items())


def shapes(state: TrainState) -> str:
    """Every array of the policy and the value network, one a line."""
    rows = jax.tree_util.tree_leaves_with_path(
        {"policy": state.params, "value": state.value_params}
    )
    return "\n".join(
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(leaf.shape)} {leaf.dtype}"
        for path, leaf in rows
    )


def _prompt_lengths(run: Run) -> str:
    data = run.train_dataset_cfg
    records = tasks.columns(data.mixture_or_task_name, data.split)
    if records is None:
        return "lengths unknown (not a Task of clp_jax.data.tasks)"
    counted = records[:_COUNTED]
    lengths = [len(run.model.vocabulary.encode(record["prompt"])) + 1 for record in counted]
    too_long = sum(length > run.max_prompt_length for length in lengths)
    return (
        f"{len(records):,}; of the first {len(counted):,}, {too_long} are longer than "
        f"{run.max_prompt_length} tokens and will be truncated (longest {max(lengths)})"
    )


def _devices(run: Run) -> str:
    count, cut = jax.device_count(), run.num_partitions
    text = f"{count} x {jax.devices()[0].device_kind}"
    if count > 1:
        text += f", the batch in {count // cut} parts, each copy of the model in {cut}"
    if run.fully_sharded:
        text += ", parameters over all of them"
    if jax.process_count() > 1:
        text += f"; {jax.process_count()} processes"
    return text


def _reference(run: Run) -> str:
    if run.checkpoint_cfg.restore.path:
        return f"checkpoint {run.checkpoint_cfg.restore.path}"
    if run.sft.steps:
        return f"supervised finetuning here: {run.sft.steps:,} steps of batch {run.sft.batch_size}"
    return "random parameters"


def _bytes(tree: Any) -> int:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count < 2**30 else f"{count / 2**30:,.2f} GiB"
