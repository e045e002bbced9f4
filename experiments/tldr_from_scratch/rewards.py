"""The three rewards on the device: entailment, ROUGE-L of tokens, and quality."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from clp_jax.algorithm.rollout import Rollout
from clp_jax.rewards.heads import NLIHead, PreferenceHead
from clp_jax.rewards.model import InputTemplate, RewardModel, document_of, summary_of
from clp_jax.rewards.normalisation import Range, normalise
from experiments.tldr_from_scratch.arrays import EOS_ID

Params = Any

_PERCENTILES = (5, 95)  # of the reference's scores, which are mapped to 0 and 1
_FLOOR = -14.0  # nats; as gin/rewards/nli.gin has it


def longest_common_subsequence(first: jax.Array, second: jax.Array) -> jax.Array:
    """Lengths of the longest common subsequences, exact.

    Args:
      first: [B, K] int; 0 matches nothing.
      second: [B, L] int; likewise.

    Returns:
      [B] int32.
    """

    def row(lengths: jax.Array, token: jax.Array) -> tuple[jax.Array, None]:
        # lengths[:, j]: of the tokens of `first` read so far and second[:, :j].
        matches = (token[:, None] == second) & (token[:, None] != 0)
        best = jnp.maximum(lengths[:, 1:], lengths[:, :-1] + matches)
        best = jnp.concatenate([lengths[:, :1], best], axis=1)
        return jax.lax.cummax(best, axis=1), None

    start = jnp.zeros((second.shape[0], second.shape[1] + 1), jnp.int32)
    lengths, _ = jax.lax.scan(row, start, first.T)
    return lengths[:, -1]


def rouge_l(references: jax.Array, completions: jax.Array) -> jax.Array:
    """ROUGE-L's F-measure (Lin 2004) of SentencePiece tokens, not of stemmed words.

    Args:
      references: [B, K] int without EOS; 0 is padding.
      completions: [B, L] int, likewise.

    Returns:
      [B] float32, range [0, 100]; 0 where either is empty.
    """
    common = longest_common_subsequence(references, completions)
    total = jnp.sum(references != 0, axis=1) + jnp.sum(completions != 0, axis=1)
    return 200.0 * common / jnp.maximum(total, 1)


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Entailment, ROUGE-L and quality, in this order, as one function of a rollout.

    Attributes:
      nli: its reward model.
      preference: its reward model.
    """

    nli: RewardModel
    preference: RewardModel

    def __call__(
        self, params: Mapping[str, Params], rollout: Rollout, references: jax.Array
    ) -> jax.Array:
        """Raw scores, [B, 3] float32.

        Args:
          params: {"nli", "preference"}, of the reward models.
          rollout: completions of prompts that begin with the document.
          references: reference summaries without EOS, [B, K] int32.
        """
        documents = document_of(rollout.plain_prompts, 0, EOS_ID)
        summaries = summary_of(rollout.completions, rollout.mask, EOS_ID)
        nli, _ = self.nli.score(params["nli"], documents, summaries)
        quality, _ = self.preference.score(params["preference"], documents, summaries)
        return jnp.stack([nli, rouge_l(references, summaries), quality], axis=1)


def make(module: nn.Module, meta: Mapping[str, Any]) -> Rewards:
    """The rewards of a network and of what prepare.py says about its tokens."""

    def template(kind: str) -> InputTemplate:
        before, between = map(tuple, meta["inputs"][kind])
        # One more for EOS, and one for a completion without it: nothing is cut.
        room = meta["document_length"] + meta["summary_length"] + 2
        return InputTemplate(before, between, room + len(before) + len(between), EOS_ID)

    head = NLIHead(tuple(meta["labels"]), tuple(meta["label_tokens"]), floor=_FLOOR)
    return Rewards(
        RewardModel(module, template("nli"), head),
        RewardModel(module, template("preference"), PreferenceHead()),
    )


def proposed_ranges(scores: np.ndarray) -> list[Range]:
    """The 5th and 95th percentile of each column of the reference's scores [N, m]."""
    low, high = np.percentile(scores.astype(float), _PERCENTILES, axis=0)
    # An untrained reference may score the same everywhere.
    return [(a, b if b > a else a + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def normalised(scores: Any, ranges: Any) -> Any:
    """Scores [..., m] with ranges [m, 2] mapped to (0, 1); numpy or jax arrays."""
    bounds: Any = (ranges[:, 0], ranges[:, 1])
    return normalise(scores, bounds)
