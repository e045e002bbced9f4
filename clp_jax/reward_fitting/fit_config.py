"""What gin configures of the fitting of a reward model."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from clp_jax.algorithm.optimizers import adafactor
from clp_jax.data import pairs
from clp_jax.data.text import check_vocabulary
from clp_jax.models import checkpoints
from clp_jax.reporting.errors import unknown_name
from clp_jax.reward_fitting import fit, held_out
from clp_jax.rewards import saved
from clp_jax.rewards.heads import (
    TRUE_LABELS,
    NLIHead,
    PreferenceHead,
    make_nli_head,
    make_preference_head,
)
from clp_jax.rewards.model import InputTemplate, RewardModel
from clp_jax.settings.config import check_whole_number

Params = Any
State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class NLIObjective:
    """Maximum likelihood of the label; the reward is the log-probability of entailment.

    Attributes:
      label_tokens: {label: the text of its token, or the token's id}, for every label of the Task.
      entailment: which label is the reward.
      over_labels: whether probabilities are over the labels' tokens alone; see `heads.NLIHead`.
    """

    label_tokens: Mapping[str, str | int] = dataclasses.field(
        default_factory=lambda: dict(TRUE_LABELS)
    )
    entailment: str = "entailment"
    over_labels: bool = False

    kind = "nli"
    reward_name = "nli"

    def head(self, vocabulary: Any, vocab_size: int, class_names: Sequence[str]) -> NLIHead:
        """The head, its labels in the order of the Task's.

        Raises:
          ValueError: labels that are not the Task's; see also `heads.make_nli_head`.
        """
        if not class_names:
            raise ValueError(
                "FIT_TASK has preferences, not labels: NLI needs @pairs.nli_jsonl(), "
                "@pairs.anli() or @pairs.briefs_nli(); for preferences, take "
                "gin/rewards/preference.gin"
            )
        if set(self.label_tokens) != set(class_names):
            raise ValueError(
                f"FIT_LABEL_TOKENS={dict(self.label_tokens)} must have a token for each label of "
                f"the Task, which are {', '.join(class_names)}, and for no other"
            )
        if self.entailment not in class_names:
            raise ValueError(
                unknown_name("label", self.entailment, class_names, "FIT_ENTAILMENT_LABEL")
            )
        fields = {
            "label_tokens": {name: self.label_tokens[name] for name in class_names},
            "entailment": self.entailment,
            "over_labels": self.over_labels,
        }
        return make_nli_head(vocabulary, vocab_size, fields)

    def loss(self, model: RewardModel, params, documents, summaries, labels, key):
        """See `fit.nli_loss`."""
        return fit.nli_loss(model, params, documents, summaries, labels, key)

    def outputs(self, model: RewardModel, params, documents, summaries) -> dict[str, jax.Array]:
        """What `report` needs: "scores" [B] and "label_log_probs" [B, C]."""
        logits, _ = model.logits(params, documents, summaries[:, 0])
        scores, _ = model.head.score(logits)
        return {"scores": scores, "label_log_probs": model.head.label_log_probs(logits)}

    def report(self, head: Any, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """See `held_out.nli_report`; `outputs` also has "labels" [N]."""
        log_probs, scores, labels = (outputs[n] for n in ("label_log_probs", "scores", "labels"))
        return held_out.nli_report(log_probs, scores, labels, head.labels, self.entailment)


@dataclasses.dataclass(frozen=True)
class PreferenceObjective:
    """Bradley and Terry's model of preferences; the reward is a summary's score.

    Attributes:
      token: whose logit is the score, as text or id.
      centring: η, of the regulariser that centres scores around 0 (see `fit.bradley_terry_loss`);
        range [0, inf).

    Raises:
      ValueError: `centring` is out of its range.
    """

    token: str | int = 1
    centring: float = 0.01

    kind = "preference"
    reward_name = "tldr"

    def __post_init__(self):
        if not 0 <= self.centring < float("inf"):
            raise ValueError(f"FIT_CENTRING={self.centring!r} must be a finite number >= 0")

    def head(self, vocabulary: Any, vocab_size: int, class_names: Sequence[str]) -> PreferenceHead:
        """The head.

        Raises:
          ValueError: a Task with labels; see also `heads.make_preference_head`.
        """
        if class_names:
            raise ValueError(
                f"FIT_TASK has labels ({', '.join(class_names)}), not preferences, which need "
                "@pairs.preference_jsonl() or @pairs.briefs_preferences(); for NLI, take "
                "gin/rewards/nli.gin"
            )
        return make_preference_head(vocabulary, vocab_size, {"token": self.token})

    def loss(self, model: RewardModel, params, documents, summaries, labels, key):
        """See `fit.preference_loss`."""
        del labels
        return fit.preference_loss(model, params, documents, summaries, self.centring, key)

    def outputs(self, model: RewardModel, params, documents, summaries) -> dict[str, jax.Array]:
        """What `report` needs: "scores" [B, 2] and "lengths" [B, 2], in tokens."""
        scores, _ = fit.pair_scores(model, params, documents, summaries)
        return {"scores": scores.T, "lengths": jnp.sum(summaries != 0, axis=2)}

    def report(self, head: Any, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """See `held_out.preference_report`."""
        del head
        return held_out.preference_report(outputs["scores"], outputs["lengths"])


@dataclasses.dataclass(frozen=True)
class FitRun:
    """How one reward model is fitted, everything that the gin files say.

    Attributes:
      model_dir: where it is written.
      objective: an `NLIObjective` or a `PreferenceObjective`.
      module: the network, e.g. `clp_jax.models.t5.Transformer`.
      vocabulary: SeqIO SentencePiece vocabulary.
      task: a Task of `clp_jax.data.pairs`; its train split is learned, its validation split is
        held out.
      optimizer: of the network's parameters.
      before: text in front of the document; None for `saved.INPUTS`.
      between: text between document and summary; likewise.
      max_length: N, tokens of the network's input; longer documents lose their end.
      summary_length: L, tokens; no summary may be longer.
      batch_size: B, examples; a preference has two inputs.
      eval_batch_size: examples at a time in evaluation.
      total_steps: updates.
      initial_checkpoint_path: of plain T5 parameters, of any format (`docs/checkpoints.md`); None
        to start from random ones.
      stats_period: steps between reports.
      save_period: steps between checkpoints.
      keep: how many of the latest checkpoints stay; None for all.
      eval_period: steps between evaluations; 0 for the end only.
      eval_examples: held-out examples to evaluate on; None for all.
      random_seed: of initialisation, dropout and the order of the data.

    Raises:
      ValueError: an attribute is out of its range.
    """

    model_dir: str
    objective: NLIObjective | PreferenceObjective
    module: nn.Module
    vocabulary: Any
    task: str
    optimizer: optax.GradientTransformation = dataclasses.field(
        default_factory=lambda: adafactor(1e-4)
    )
    before: str | None = None
    between: str | None = None
    max_length: int = 512
    summary_length: int = 128
    batch_size: int = 32
    eval_batch_size: int = 32
    total_steps: int = 10_000
    initial_checkpoint_path: str | None = None
    stats_period: int = 100
    save_period: int = 1000
    keep: int | None = 1
    eval_period: int = 0
    eval_examples: int | None = None
    random_seed: int = 0

    def __post_init__(self):
        names = {"max_length", "summary_length", "batch_size", "eval_batch_size", "stats_period"}
        for name in sorted(names | {"save_period"}):
            check_whole_number(f"FIT_{name.upper()}", getattr(self, name), 1)
        check_whole_number("FIT_STEPS", self.total_steps, 1)
        check_whole_number("FIT_EVAL_PERIOD", self.eval_period, 0)
        check_whole_number("FIT_RANDOM_SEED", self.random_seed, 0)
        optional = {"FIT_KEEP_CHECKPOINTS": self.keep, "FIT_EVAL_EXAMPLES": self.eval_examples}
        for name, value in optional.items():
            if value is not None:
                check_whole_number(name, value, 1)
        if not isinstance(self.model_dir, str) or "://" in self.model_dir:
            raise ValueError(
                f"the MODEL_DIR of a reward model is {self.model_dir!r}; give a local path "
                "(NLI_MODEL_DIR or TLDR_MODEL_DIR)"
            )
        if not isinstance(self.objective, NLIObjective | PreferenceObjective):
            raise ValueError(
                f"FitRun.objective={self.objective!r} must be @fit_config.NLIObjective() "
                "or @fit_config.PreferenceObjective()"
            )
        if not isinstance(self.task, str):
            raise ValueError(f"FIT_TASK={self.task!r} must be a Task of clp_jax.data.pairs")

    @functools.cached_property
    def model(self) -> RewardModel:
        """Network, input and head.

        Raises:
          ValueError: the Task, the vocabulary, the labels and the network do not go together.
        """
        vocab_size = self.module.config.vocab_size
        check_vocabulary(self.vocabulary, "FIT_VOCABULARY_FILE")
        if self.vocabulary.vocab_size > vocab_size:
            raise ValueError(
                f"FIT_VOCABULARY has {self.vocabulary.vocab_size} pieces, the reward model's "
                f"vocab_size={vocab_size} has fewer"
            )
        texts = (self.before, self.between)
        before, between = (
            saved.text_tokens(self.vocabulary, default if text is None else text)
            for text, default in zip(texts, saved.INPUTS[self.objective.kind], strict=True)
        )
        template = InputTemplate(before, between, self.max_length, self.vocabulary.eos_id)
        head = self.objective.head(self.vocabulary, vocab_size, pairs.class_names(self.task))
        return RewardModel(self.module, template, head)

    def batches(self, split: str) -> pairs.PairBatches:
        """The batches of "train", again and again in new orders, or of "validation", once."""
        training = split == "train"
        return pairs.PairBatches(
            self.task,
            split,
            document_length=self.model.template.room(0),
            summary_length=self.summary_length,
            batch_size=self.batch_size if training else self.eval_batch_size,
            repeat=training,
            shuffle=training,
            seed=self.random_seed,
        )

    def init_params(self) -> Params:
        """Random parameters; under `jax.eval_shape`, their shapes."""
        tokens = jnp.ones((1, 1), jnp.int32)

        def init(key):
            return self.module.init(key, tokens, tokens, tokens, enable_dropout=False)["params"]

        return jax.jit(init)(jax.random.key(self.random_seed))

    def init_state(self) -> State:
        """{"params", "optimizer"} before the first step."""
        path = self.initial_checkpoint_path
        if path is None:
            params = self.init_params()
        else:
            config = self.module.config
            params = checkpoints.load_params(path, jax.eval_shape(self.init_params), config)
        return {"params": params, "optimizer": self.optimizer.init(params)}
