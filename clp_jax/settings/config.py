"""What the gin files configure, under the names that t5x has for the same things.

`gin/base.gin` describes a `Run`, whose fields are the arguments of t5x's `train()` that mean the
same here, and what they do not have.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import optax

from clp_jax.algorithm import weighting as weighting_lib
from clp_jax.algorithm.optimizers import adafactor
from clp_jax.algorithm.subset import Subset, full
from clp_jax.algorithm.train_step import CLP
from clp_jax.algorithm.weighting import KLMix, Sampler
from clp_jax.data.text import check_vocabulary
from clp_jax.models.decoding import Decoding
from clp_jax.reporting.errors import divisors, listed, unknown_name
from clp_jax.rewards.base import RewardStack

MIXINGS = ("parameters", "logits")


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Raises ValueError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")


def _check_positive(name: str, value: Any, unit: str) -> None:
    """Raises ValueError unless `value` is a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r} must be a positive number of {unit}")


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """One split of one SeqIO Task.

    Attributes:
      mixture_or_task_name: a Task or Mixture that SeqIO knows.
      task_feature_lengths: {"inputs": E, "targets": L}, in tokens.
      split: e.g. "train".
      batch_size: B, over all hosts.
      shuffle: whether the order is shuffled.
      seed: of the shuffling; None takes the run's seed.
      num_shards: of a Task that is not read by index (`data.streams`): how many parts of the split
        are read side by side, each batch_size/num_shards examples of a batch; hosts share them.
        None for one part per host.
    """

    mixture_or_task_name: str
    task_feature_lengths: Mapping[str, int]
    split: str = "train"
    batch_size: int = 32
    shuffle: bool = True
    seed: int | None = None
    num_shards: int | None = None

    def __post_init__(self):
        if self.num_shards is not None:
            check_whole_number("DATA_SHARDS", self.num_shards, 1)
            if self.batch_size % self.num_shards:
                raise ValueError(
                    f"DATA_SHARDS={self.num_shards} must divide the batch of {self.batch_size}; "
                    f"it may be {listed(divisors(self.batch_size))}"
                )
        if set(self.task_feature_lengths) != {"inputs", "targets"}:
            raise ValueError(
                f"TASK_FEATURE_LENGTHS={dict(self.task_feature_lengths)} must give a length for "
                "'inputs' and for 'targets'"
            )
        for name, value in {**self.task_feature_lengths, "batch_size": self.batch_size}.items():
            check_whole_number(name, value, 1)


@dataclasses.dataclass(frozen=True)
class SaveCheckpointConfig:
    """When checkpoints are written.

    Attributes:
      period: steps between two checkpoints.
      keep: how many of the latest stay; None for all.
    """

    period: int = 1000
    keep: int | None = 1

    def __post_init__(self):
        check_whole_number("SAVE_PERIOD", self.period, 1)
        if self.keep is not None:
            check_whole_number("KEEP_CHECKPOINTS", self.keep, 1)


@dataclasses.dataclass(frozen=True)
class RestoreCheckpointConfig:
    """Where the reference policy comes from.

    Attributes:
      path: a checkpoint of plain LM parameters: the MODEL_DIR of a finished `clp_jax.sft` run, a
        T5X checkpoint (local or gs://...), or a Hugging Face directory; None where there is none.
    """

    path: str | None = None


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints in and out."""

    save: SaveCheckpointConfig = SaveCheckpointConfig()
    restore: RestoreCheckpointConfig = RestoreCheckpointConfig()


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """Supervised finetuning of the reference policy.

    Attributes:
      steps: updates; 0 for none.
      batch_size: B.
      optimizer: of the plain LM parameters.
      init_from_scratch: allow a reference of random parameters, with neither checkpoint nor steps.
        For trying things out.
    """

    steps: int = 0
    batch_size: int = 64
    optimizer: optax.GradientTransformation = dataclasses.field(
        default_factory=lambda: adafactor(1e-3)
    )
    init_from_scratch: bool = False

    def __post_init__(self):
        check_whole_number("SFT_STEPS", self.steps, 0)
        check_whole_number("SFT_BATCH_SIZE", self.batch_size, 1)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation over a grid of weightings.

    Attributes:
      grid_points: weightings on each edge of the simplex; 11 gives steps of 0.1. None for 11 of two
        rewards, 13 of three (`clp_jax.evaluation.grids`).
      num_examples: use only the first this many examples; None for all.
      rewards: further rewards, which the policy does not learn, reported beside those it does; None
        for none.
      mixing: what is mixed at a weighting. "parameters" (Eq. 3), or "logits": of the experts of a
        soup, or of the policy at α_min and the reference (`clp_jax.policies.logit_mixing`).
    """

    grid_points: int | None = None
    num_examples: int | None = None
    rewards: RewardStack | None = None
    mixing: str = "parameters"

    def __post_init__(self):
        if self.grid_points is not None:
            check_whole_number("grid_points", self.grid_points, 2)
        if self.mixing not in MIXINGS:
            raise ValueError(unknown_name("mixing", self.mixing, MIXINGS, "EVAL_MIXING"))
        if self.num_examples is not None:
            check_whole_number("num_examples", self.num_examples, 1)


@dataclasses.dataclass(frozen=True)
class CLPModel:
    """A conditional language policy and how it learns.

    Attributes:
      module: the network, e.g. `clp_jax.models.t5.Transformer`.
      vocabulary: SeqIO vocabulary of prompts and completions.
      rewards: R = (R_1, ..., R_m), normalised.
      subset: S, the conditioned parameters.
      reward_weights_sampler: Q over w.
      kl_weight_sampler: Q over α.
      kl_mix: f_mix.
      condition_prompt: whether w also stands in the prompt (COND_PROMPT, App. A.2).
      prompt_repetitions: how often each weight is written there.
      weightings_per_batch: k, how many weightings share one batch; the paper uses 1.
      policy_optimizer: applied to each replica on its own.
      value_optimizer: of the value network.
      temperature: of sampling in training; range (0, inf).
      top_k: sample among the k likeliest tokens; 0 for all.
      top_p: sample among the likeliest tokens that make up this probability; range (0, 1].
      exact_kl: see `clp_jax.algorithm.train_step.CLP`.
      dropout: see `clp_jax.algorithm.train_step.CLP`.
      rewarded_soup: train one policy for each reward, T/m steps each, and mix their parameters at
        inference: Rewarded Soups (Ramé et al. 2023). S is everything, α is fixed.
      kl_warning: a mean KL to the reference, in nats, above which a run warns (`runs.watch`);
        range (0, inf); None for no warnings.
    """

    module: nn.Module
    vocabulary: Any
    rewards: RewardStack
    subset: Subset
    reward_weights_sampler: Sampler
    kl_weight_sampler: Sampler
    kl_mix: KLMix
    condition_prompt: bool = False
    prompt_repetitions: int = 5
    weightings_per_batch: int = 1
    policy_optimizer: optax.GradientTransformation = dataclasses.field(
        default_factory=lambda: adafactor(3e-5)
    )
    value_optimizer: optax.GradientTransformation = dataclasses.field(
        default_factory=lambda: adafactor(1e-4)
    )
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    exact_kl: bool = False
    dropout: bool = False
    rewarded_soup: bool = False
    kl_warning: float | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            name = field.name
            given = getattr(self, name)
            if isinstance(given, type):
                raise ValueError(
                    f"{name} is the class {given.__name__}, not one of its objects: in gin, write "
                    f"@{given.__name__}() with its parentheses"
                )
        sampler = weighting_lib.for_objectives(self.reward_weights_sampler, self.num_objectives)
        object.__setattr__(self, "reward_weights_sampler", sampler)
        weighting_lib.check_kl_sampler(self.kl_weight_sampler, self.kl_mix)
        if self.temperature <= 0:
            raise ValueError(
                f"TEMPERATURE={self.temperature} must be positive: greedy completions give "
                "REINFORCE nothing to learn from"
            )
        if self.rewarded_soup:
            self._check_soup()
        if self.kl_warning is not None:
            _check_positive("KL_WARNING", self.kl_warning, "nats, or None for no warnings")
        check_vocabulary(self.vocabulary, "VOCABULARY_FILE")
        if self.vocabulary.vocab_size > self.module.config.vocab_size:
            raise ValueError(
                f"the vocabulary has {self.vocabulary.vocab_size} pieces, the model's "
                f"vocab_size={self.module.config.vocab_size} has fewer"
            )

    def _check_soup(self) -> None:
        """Raises ValueError for what Rewarded Soups cannot be combined with."""
        sampler = self.kl_weight_sampler
        fixed = isinstance(sampler, weighting_lib.FixedKLWeight)
        mixed_in = float(self.kl_mix(sampler.kl_weight)) if fixed else 0.0  # type: ignore
        for wrong, setting, valid in (
            (self.subset != full(), "SUBSET", "@subset.full(): whole policies are mixed"),
            (self.condition_prompt, "CONDITION_PROMPT", "False: each expert has one weighting"),
            (not fixed, "KL_WEIGHT_SAMPLER", "@weighting.FixedKLWeight()"),
            (self.num_objectives < 2, "REWARDS", "two or more"),
            (
                mixed_in > 1e-6,
                "KL_WEIGHT_SAMPLER and KL_MIX",
                "such that none of the reference is mixed in, as the experts are trained without: "
                f"f_mix is {mixed_in:g} at that α; KL_WEIGHT_MIN sets both",
            ),
        ):
            if wrong:
                raise ValueError(f"with REWARDED_SOUP=True, {setting} must be {valid}")

    @property
    def num_objectives(self) -> int:
        """m."""
        return self.rewards.num_objectives

    @property
    def eos_id(self) -> int:
        """The token that ends a completion."""
        return self.vocabulary.eos_id

    def clp(self, max_decode_length: int) -> CLP:
        """The part that the compiled step needs."""
        return CLP(
            module=self.module,
            decoding=Decoding(
                max_decode_length, self.temperature, self.top_k, self.top_p, self.eos_id
            ),
            kl_mix=self.kl_mix,
            policy_optimizer=self.policy_optimizer,
            value_optimizer=self.value_optimizer,
            exact_kl=self.exact_kl,
            dropout=self.dropout,
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run, everything that the gin files say.

    Attributes:
      model: what is trained.
      model_dir: where it is written.
      train_dataset_cfg: prompts to train on.
      infer_eval_dataset_cfg: prompts to evaluate on.
      checkpoint_cfg: checkpoints in and out.
      total_steps: T.
      eval_period: steps between evaluations over the grid of weightings; 0 for none but at the end.
      stats_period: steps between two lines of the log.
      random_seed: of sampling, of the order of the data and of initialisation.
      num_partitions: devices over which one copy of the model is cut; the others share the batch.
      fully_sharded: whether parameters and optimizer states are cut over the devices that share the
        batch too.
      sft: supervised finetuning that makes the reference where no checkpoint is given.
      evaluation: how the policy is evaluated.
    """

    model: CLPModel
    model_dir: str
    train_dataset_cfg: DatasetConfig
    infer_eval_dataset_cfg: DatasetConfig
    checkpoint_cfg: CheckpointConfig
    total_steps: int
    eval_period: int = 0
    stats_period: int = 100
    random_seed: int = 0
    num_partitions: int = 1
    fully_sharded: bool = False
    sft: SFTConfig = dataclasses.field(default_factory=SFTConfig)
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self):
        k, batch_size = self.model.weightings_per_batch, self.train_dataset_cfg.batch_size
        if k < 1 or batch_size % k:
            raise ValueError(
                f"WEIGHTINGS_PER_BATCH={k} must divide BATCH_SIZE={batch_size}; it may be "
                f"{listed(divisors(batch_size))}"
            )
        shards, sft_batch_size = self.train_dataset_cfg.num_shards, self.sft.batch_size
        if self.sft.steps and shards and sft_batch_size % shards:
            both = divisors(math.gcd(batch_size, sft_batch_size))
            raise ValueError(
                f"DATA_SHARDS={shards} must divide SFT_BATCH_SIZE={sft_batch_size} too; it may be "
                f"{listed(both)}"
            )
        for name, least in (("total_steps", 1), ("eval_period", 0), ("stats_period", 1)):
            check_whole_number(name, getattr(self, name), least)
        check_whole_number("random_seed", self.random_seed, 0)
        if self.random_seed >= 2**31:
            raise ValueError(f"RANDOM_SEED={self.random_seed} must be below 2**31")
        if self.model_dir.startswith("~"):  # gin, under t5x, reads it as it is
            raise ValueError(f"MODEL_DIR={self.model_dir!r}: write the home directory out")
        check_whole_number("NUM_PARTITIONS", self.num_partitions, 1)
        if "://" in self.model_dir:
            raise ValueError(
                f"MODEL_DIR={self.model_dir!r}: buckets cannot be written to yet; give a local path"
            )
        path = self.checkpoint_cfg.restore.path
        if path is not None and "://" in path and not path.startswith("gs://"):
            raise ValueError(
                f"INITIAL_CHECKPOINT_PATH={path!r} must be a local path or begin with gs://"
            )
        if batch_size == 1:
            raise ValueError("BATCH_SIZE=1 leaves nothing of a batch-normalised advantage")

    @property
    def max_prompt_length(self) -> int:
        """E, in tokens."""
        return self.train_dataset_cfg.task_feature_lengths["inputs"]

    @property
    def max_decode_length(self) -> int:
        """L, in tokens."""
        return self.train_dataset_cfg.task_feature_lengths["targets"]

    @property
    def clp(self) -> CLP:
        """The part that the compiled step needs."""
        return self.model.clp(self.max_decode_length)
