"""What gin files bind to the arguments of t5x's `train`, `infer` and `evaluate`.

`python -m t5x.train` and `python -m clp_jax.train` read the same files, and only the former calls
what is named here: t5x is imported then, by `clp_jax.under_t5x`, and need not be installed
otherwise. That room stands on this one and is looked up by name.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from clp_jax.models.partitioning import Placement
from clp_jax.settings.config import CheckpointConfig, DatasetConfig, Run


def _under_t5x(module: str) -> Any:
    return importlib.import_module(f"clp_jax.under_t5x.{module}")


def _allow_train_bindings() -> None:
    """Lets t5x.infer and t5x.eval, whose main module has no `train`, read run files too.

    These bind `train_script.train`, the main module's, which nothing else of these scripts calls.
    """
    main: Any = sys.modules["__main__"]
    if any(hasattr(main, name) for name in ("infer", "evaluate")) and not hasattr(main, "train"):
        main.train = train


def train(
    *, model, model_dir, train_dataset_cfg, train_eval_dataset_cfg, infer_eval_dataset_cfg,
    checkpoint_cfg, partitioner, trainer_cls, train_state_initializer_cls, get_dataset_fn,
    summarize_config_fn, verify_matching_vocabs_fn, total_steps, eval_steps, eval_period,
    stats_period, random_seed,
):  # fmt: skip
    """The arguments of t5x's `train` that gin/base.gin binds.

    Raises:
      RuntimeError: always.
    """
    raise RuntimeError("only t5x's own `train` can be called")


def training_model(run: Run):
    """The model for `t5x.train`; the settings are checked, and MODEL_DIR is claimed.

    Raises:
      ValueError: as `python -m clp_jax.train` would.
    """
    return _under_t5x("model").for_training(run)


def steered_model(
    run: Run, reward_weights: Sequence[float], kl_weight: float | None = None,
    temperature: float = 0.0,
):  # fmt: skip
    """The model for `t5x.infer` and `t5x.eval`; see `clp_jax.under_t5x.model.at_weighting`."""
    return _under_t5x("model").at_weighting(run, reward_weights, kl_weight, temperature)


def trainer(*, model, train_state, partitioner, eval_names, summary_dir, train_state_axes, rng):
    """t5x's `trainer_cls`."""
    return _under_t5x("trainer").T5XTrainer(
        model, train_state, partitioner, eval_names, summary_dir, train_state_axes, rng
    )


def train_state_initializer(*, optimizer_def, init_fn, input_shapes, partitioner, input_types=None):
    """t5x's `train_state_initializer_cls`."""
    return _under_t5x("train_state").TrainStateInitializer(init_fn.__self__, partitioner)


def get_dataset(cfg, shard_id, num_shards, feature_converter_cls):
    """t5x's `get_dataset_fn`: the batches that `python -m clp_jax.train` trains on."""
    return feature_converter_cls().model.batches


def summarize_config(model_dir, summary_writer, step):
    """t5x's `summarize_config_fn`: makes the directory; config.gin is written with the claim."""
    import tensorflow as tf

    tf.io.gfile.makedirs(model_dir)


def checkpoint_config(model_dir: str, config: CheckpointConfig):
    """t5x's `checkpoint_cfg`: the checkpoints of `python -m clp_jax.train`, in the same place."""
    return _under_t5x("checkpoints").for_training(model_dir, config)


def restore_config(model_dir: str, step: int | None = None):
    """t5x's `restore_checkpoint_cfg`.

    Args:
      model_dir: of a run of either driver.
      step: which of its checkpoints; None for the latest.
    """
    return _under_t5x("checkpoints").for_inference_at(model_dir, step)


def dataset_config(config: DatasetConfig):
    """t5x's `dataset_cfg`, of one of our splits."""
    from t5x import utils

    return utils.DatasetConfig(
        mixture_or_task_name=config.mixture_or_task_name,
        task_feature_lengths=dict(config.task_feature_lengths),
        split=config.split,
        batch_size=config.batch_size,
        shuffle=False,
        seed=0,
    )


def evaluator(
    *, mixture_or_task_name, feature_converter, eval_split, use_cached, seed, sequence_length,
    use_memory_cache, log_dir=None, logger_cls=(),
):  # fmt: skip
    """t5x's `inference_evaluator_cls`: the rewards of the run at the model's weighting."""
    return _under_t5x("evaluator").RewardEvaluator(feature_converter.model, log_dir)


def PjitPartitioner(num_partitions: int = 1, fully_sharded: bool = False):
    """t5x's `partitioner`.

    Args:
      num_partitions: see `config.Run`.
      fully_sharded: see `config.Run`.

    Raises:
      ValueError: the devices cannot be shared so.
    """

    return _under_t5x("partitioner").Partitioner(
        Placement.over(None, num_partitions, fully_sharded)
    )


_allow_train_bindings()
