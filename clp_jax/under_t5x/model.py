"""The model that t5x trains, evaluates and generates with."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import seqio
from t5x import models

from clp_jax.algorithm import losses, rollout
from clp_jax.algorithm import weighting as weighting_lib
from clp_jax.algorithm.conditioning import CLPParams, condition
from clp_jax.algorithm.weighting import Weighting
from clp_jax.data.batches import shared
from clp_jax.models.decoding import Decoding
from clp_jax.models.sampling import sample
from clp_jax.reporting.metrics_log import say
from clp_jax.runs import describe, states, trainer, training
from clp_jax.settings import command_line, gin_config
from clp_jax.settings.config import Run
from clp_jax.under_t5x.data import PROMPTS, HostBatches
from clp_jax.under_t5x.train_state import REFERENCE

Params = Any


def for_training(run: Run) -> "T5XModel":
    """The model for `t5x.train`.

    Prints the resolved run and claims its MODEL_DIR.

    Raises:
      ValueError: whatever would stop the run, with the message of `python -m clp_jax.train`; or
        something that only that can do.
    """
    gin_config.check_macros()
    _check_supported(run)
    training.check(run)
    command_line.claim_model_dir(run.model_dir)
    training.check_checkpoint(run)
    say(describe.resolved_run(run, states.state_shapes(run)))
    batches = shared(run.train_dataset_cfg, run.random_seed, states.placement(run))
    host_batches = HostBatches(batches, run.train_dataset_cfg.batch_size, run.max_prompt_length)
    return T5XModel(run, batches=host_batches)


def at_weighting(
    run: Run, reward_weights: Sequence[float], kl_weight: float | None, temperature: float
) -> "T5XModel":
    """The model for `t5x.infer` and `t5x.eval`.

    Args:
      run: as it was trained.
      reward_weights: w, [m].
      kl_weight: α; None for α_min.
      temperature: of sampling; 0 for greedy.

    Raises:
      ValueError: a weighting that is not one.
    """
    gin_config.check_macros()
    _check_supported(run)
    lowest = run.model.kl_mix.kl_weight_min
    kl_weight = lowest if kl_weight is None else kl_weight
    weights = weighting_lib.check_reward_weights(
        reward_weights, run.model.num_objectives, "REWARD_WEIGHTS"
    )
    weighting_lib.check_kl_weight(kl_weight, lowest, "KL_WEIGHT")
    return T5XModel(run, weighting=Weighting.of(kl_weight, weights), temperature=temperature)


def _check_supported(run: Run) -> None:
    """Raises ValueError for what only `python -m clp_jax.train` and `evaluate` do."""
    for wrong, what in (
        (run.model.rewarded_soup, "REWARDED_SOUP=True trains several policies in turn"),
        (run.evaluation.mixing != "parameters", f"EVAL_MIXING={run.evaluation.mixing!r}"),
        (jax.process_count() > 1, f"{jax.process_count()} processes"),
    ):
        if wrong:
            raise ValueError(f"{what}: not under t5x; use the commands of clp_jax")


class T5XModel(models.EncoderDecoderModel):
    """A conditional language policy as t5x's encoder-decoder model.

    `params` is φ, and θ_ref comes with t5x's `flax_mutables`: whatever uses both first mixes them
    to the plain LM of the model's weighting (Eq. 3).

    Args:
      run: the configuration.
      batches: to train on; None for inference.
      weighting: (α, w) of inference.
      temperature: of sampling at inference; 0 for greedy.

    Attributes:
      run: the configuration.
    """

    def __init__(
        self, run: Run, batches: HostBatches | None = None, weighting: Weighting | None = None,
        temperature: float = 0.0,
    ):  # fmt: skip
        vocabulary = run.model.vocabulary
        super().__init__(run.model.module, vocabulary, vocabulary, optimizer_def=None)
        self.run, self._batches, self._weighting = run, batches, weighting
        self._temperature = temperature
        self.FEATURE_CONVERTER_CLS = functools.partial(ModelFeatureConverter, self)

    @property
    def trains(self) -> bool:
        """Whether this is a model to train."""
        return self._batches is not None

    @property
    def batches(self) -> HostBatches:
        """To train on."""
        assert self._batches is not None
        return self._batches

    @property
    def weighting(self) -> Weighting:
        """Of inference."""
        assert self._weighting is not None
        return self._weighting

    def language_model(self, params: CLPParams, flax_mutables: Any) -> Params:
        """θ^{α,w} of the model's weighting."""
        reference = flax_mutables[REFERENCE]
        return condition(params, _unfrozen(reference), self.weighting, self.run.model.kl_mix)

    def predict_batch_with_aux(
        self, params: CLPParams, batch: Any, rng: Any = None, flax_mutables: Any = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Completions [B, L], and of each token the log-probability and that of the reference.

        Args:
          params: φ.
          batch: prompts are read of it.
          rng: of sampling; unused if greedy.
          flax_mutables: holds θ_ref.

        Returns:
          Tokens, and {"log_probs", "reference_log_probs", "mask"} [B, L], {"scores", "kl"} [B]: the
          log-probability of each completion, and its excess over that of the reference, in nats.
        """
        language_model = self.language_model(params, flax_mutables)
        prompts = jnp.asarray(batch[PROMPTS])
        keys = jax.random.split(jax.random.key(0) if rng is None else rng, prompts.shape[0])
        run = self.run
        decoding = Decoding(run.max_decode_length, self._temperature, eos_id=run.model.eos_id)
        samples = sample(self.module, language_model, self._read(prompts), keys, decoding)
        reference_log_probs = rollout.completion_log_probs(
            self.module, _unfrozen(flax_mutables[REFERENCE]), prompts, samples.tokens, samples.mask
        )
        return samples.tokens, {
            "log_probs": samples.log_probs,
            "reference_log_probs": reference_log_probs,
            "mask": samples.mask,
            "scores": jnp.sum(samples.log_probs, axis=1),
            "kl": losses.sampled_kl(samples.log_probs, reference_log_probs, samples.mask),
        }

    def predict_batch(
        self, params: CLPParams, batch: Any, rng: Any = None, flax_mutables: Any = None
    ) -> jax.Array:
        """Completions [B, L]; see `predict_batch_with_aux`."""
        return self.predict_batch_with_aux(params, batch, rng, flax_mutables)[0]

    def score_batch(
        self, params: CLPParams, batch: Any, return_intermediates: bool = False,
        flax_mutables: Any = None,
    ) -> Any:  # fmt: skip
        """Log-probability of each target, [B], as t5x's model scores them."""
        batch = {**batch, PROMPTS: self._read(jnp.asarray(batch[PROMPTS]))}
        language_model = self.language_model(params, flax_mutables)
        return super().score_batch(language_model, batch, return_intermediates)

    def _read(self, prompts: jax.Array) -> jax.Array:
        """What the policy reads for prompts [B, E]: with CONDITION_PROMPT, w stands in front."""
        prompter = trainer.prompter(self.run.model)
        if prompter is None:
            return prompts
        prefix = prompter.prefix(np.asarray(self.weighting.reward_weights))
        room = ((0, 0), (len(prefix), prompter.length - len(prefix)))
        padded = jnp.pad(prompts, room)
        return padded.at[:, : len(prefix)].set(jnp.asarray(prefix, prompts.dtype))


class ModelFeatureConverter(seqio.EncDecFeatureConverter):
    """SeqIO's converter, knowing its model: t5x hands data sets and evaluators nothing else of it.

    Args:
      model: a `T5XModel`.
      **kwargs: of SeqIO's converter.
    """

    def __init__(self, model: T5XModel, **kwargs: Any):
        super().__init__(**kwargs)
        self.model = model


def _unfrozen(tree: Any) -> Params:
    return tree.unfreeze() if hasattr(tree, "unfreeze") else tree
