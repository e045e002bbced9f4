"""`t5x.eval`: the rewards of a run at one weighting, of what t5x's own inference generates."""

import pathlib
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from clp_jax.algorithm.rollout import Rollout
from clp_jax.algorithm.weighting import Weighting
from clp_jax.evaluation import report, sweep
from clp_jax.models.partitioning import Placement
from clp_jax.reporting.metrics_log import MetricsLog
from clp_jax.runs import states
from clp_jax.under_t5x.data import PROMPTS


class RewardEvaluator:
    """What t5x calls of SeqIO's `Evaluator`, for rewards in place of a Task's metrics.

    Args:
      model: with a weighting.
      log_dir: gets the evaluation, in a folder named by step and weighting, and TensorBoard events.
    """

    def __init__(self, model: Any, log_dir: str | None):
        self._model, self._log_dir = model, log_dir

    @property
    def eval_tasks(self) -> list[str]:
        """The Task of the run's evaluations."""
        return [self._model.run.infer_eval_dataset_cfg.mixture_or_task_name]

    @property
    def model_feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of a model's inputs."""
        run = self._model.run
        targets = ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
        return {
            PROMPTS: (run.max_prompt_length,),
            **dict.fromkeys(targets, (run.max_decode_length,)),
        }

    def evaluate(self, *, step: int, predict_with_aux_fn: Any, **unused: Any) -> tuple[Any, None]:
        """Generates, scores, and writes what `python -m clp_jax.evaluate` writes.

        Returns:
          What gives the metrics {task: {name: value}} when its `result()` is called, and None.
        """
        run, weighting = self._model.run, self._model.weighting
        weights = "_".join(f"{w:g}" for w in np.asarray(weighting.reward_weights).tolist())
        name = f"step_{step}_w_{weights}_kl_{float(weighting.kl_weight):g}"
        folder = None if self._log_dir is None else pathlib.Path(self._log_dir, name)
        policy = _PredictedPolicy(predict_with_aux_fn, states.placement(run, training=False))
        at = (float(weighting.kl_weight), np.asarray(weighting.reward_weights))
        result = sweep.sweep(policy, run, [at], folder, name)
        values = result.scalars()
        if folder is not None:
            report.write(result, folder)
            log = MetricsLog(folder, step)
            log.scalars(step, values)
            log.close()
        metrics: Future[dict[str, Mapping[str, float]]] = Future()
        metrics.set_result({self.eval_tasks[0]: values})
        return metrics, None

    def close(self) -> None:
        """Nothing to end."""


class _PredictedPolicy:
    """t5x's inference function as a policy; its weighting is that of the model in it."""

    def __init__(self, predict_with_aux_fn: Any, placement: Placement):
        self._predict, self.placement = predict_with_aux_fn, placement

    def generate(self, weighting: Weighting, prompts: np.ndarray, key: jax.Array) -> Rollout:
        """See `clp_jax.policies.policy.SteerablePolicy.generate`; t5x makes the keys."""
        dataset = tf.data.Dataset.from_tensor_slices({PROMPTS: prompts}).enumerate()
        indexed, aux = self._predict(dataset)
        fields: dict[str, Any] = {
            "prompts": prompts,
            "completions": np.array([row for _, row in sorted(indexed)], np.int32),
            "plain_prompts": prompts,
            **{name: np.array(aux[name], np.float32) for name in _PER_TOKEN},
        }
        return Rollout(**fields)


_PER_TOKEN = ("mask", "log_probs", "reference_log_probs")
