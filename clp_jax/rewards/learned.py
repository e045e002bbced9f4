"""Learned rewards: reward models in a stack, on tokens of the policy or on text."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clp_jax.models.partitioning import Placement, put
from clp_jax.rewards.host import Scored
from clp_jax.rewards.model import RewardModel, document_of, summary_of

Params = Any

# Widths of text that is tokenised here are multiples of these, so that few programs are compiled.
_DOCUMENT_WIDTH = 64
_SUMMARY_WIDTH = 32
_BATCH_SIZE = 32


class LearnedReward:
    """A reward model as a reward: of tokens on the device, or of text.

    Where policy and reward model have one vocabulary, the policy's tokens are what the reward model
    reads, and nothing passes the host. Else the text is tokenised anew on the host, from the whole
    document.

    Attributes:
      model: network, input and head.
      vocabulary: of the reward model.
      range: raw scores that are mapped to 0 and 1.
      on_device: which of the two it is.
      columns: of the data that scoring text needs.
    """

    columns = ("document",)

    def __init__(
        self,
        model: RewardModel,
        params: Params | Callable[[Params], Params],
        vocabulary: Any,
        range: tuple[float, float],
        policy_vocabulary: Any = None,
        prompt_prefix: str = "summarize: ",
    ):
        """Reads nothing yet.

        Args:
          model: network, input and head.
          params: of the network, or a function that reads them when they are first needed, given
            their shapes, to where these say.
          vocabulary: SeqIO vocabulary of the reward model.
          range: raw scores that are mapped to 0 and 1.
          policy_vocabulary: that of the policy; None to score text.
          prompt_prefix: what stands in front of each document in the policy's prompts.
        """
        self.model, self.vocabulary, self.range = model, vocabulary, range
        self._given_params, self._placement = params, Placement.over(jax.local_devices()[:1])
        self._prompt_prefix = prompt_prefix
        # A prefix that could share a token with the document cannot be taken off the tokens.
        separate = not prompt_prefix or prompt_prefix[-1].isspace()
        self.on_device = separate and same_vocabulary(vocabulary, policy_vocabulary)
        self._score = jax.jit(model.score)

    @functools.cached_property
    def params(self) -> Params:
        """The network's parameters, where `place` says; else on the first device."""
        shapes = self.shapes()
        if callable(self._given_params):
            return self._given_params(shapes)
        return put(self._given_params, jax.tree.map(lambda x: x.sharding, shapes))

    def shapes(self) -> Params:
        """Shapes of the parameters and where `place` says they are; reads nothing."""
        return self._placement.shapes(self.model.module, self.model.shapes())

    def place(self, placement: Placement) -> None:
        """Says over which devices the parameters are cut.

        Raises:
          ValueError: they cannot be cut over these; names the numbers.
        """
        placement.check_network(self.model.module, "its model")
        if placement != self._placement:
            self.__dict__.pop("params", None)  # to be read anew
        self._placement = placement

    def score_tokens(
        self,
        params: Params,
        prompt_tokens: jax.Array,
        completion_tokens: jax.Array,
        completion_mask: jax.Array,
    ) -> Scored:
        """See `DeviceReward.score_tokens`; scores [B] float32, and counts over the batch."""
        eos_id = self.vocabulary.eos_id
        prefix_length = len(self.vocabulary.encode(self._prompt_prefix))
        scores, flags = self.model.score(
            params,
            document_of(prompt_tokens, prefix_length, eos_id),
            summary_of(completion_tokens, completion_mask, eos_id),
        )
        return Scored(scores, {name: jnp.sum(flag) for name, flag in flags.items()})

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], document: Sequence[str]
    ) -> Scored:
        """Scores text.

        Args:
          prompts: not read.
          completions: B strings.
          document: B strings.

        Returns:
          Scores [B] float32, and counts over the batch.

        Raises:
          ValueError: a completion that leaves no room for a document; names it.
        """
        scores, flags = self.score_texts(document, completions)
        return Scored(scores, {name: float(flag.sum()) for name, flag in flags.items()})

    def score_texts(
        self, documents: Sequence[str], summaries: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(scores [N] float32, name -> [N] bool, see `RewardModel.score`) of N pairs of texts.

        Raises:
          ValueError: a summary that leaves no room for a document; names it.
        """
        template = self.model.template
        document_tokens = [self.vocabulary.encode(t)[: template.max_length] for t in documents]
        summary_tokens = [self.vocabulary.encode(text) for text in summaries]
        for i, tokens in enumerate(summary_tokens):
            if template.room(len(tokens)) < 1:
                raise ValueError(
                    f"summary {i} has {len(tokens)} tokens, of which the reward model's input of "
                    f"{template.max_length} has room for {template.room(0) - 1}"
                )
        widest = template.room(0) - 1
        padded_documents = _padded(document_tokens, _DOCUMENT_WIDTH, template.max_length)
        padded_summaries = _padded(summary_tokens, _SUMMARY_WIDTH, widest)
        scored = []
        for start in range(0, len(documents), _BATCH_SIZE):
            rows = slice(start, start + _BATCH_SIZE)
            batch = _filled(padded_documents[rows]), _filled(padded_summaries[rows])
            count = len(padded_documents[rows])
            scores = jax.device_get(self._score(self.params, *jax.device_put(batch)))
            scored.append(jax.tree.map(lambda x, n=count: x[:n], scores))
        if not scored:
            return np.zeros(0, np.float32), {}
        return jax.tree.map(lambda *parts: np.concatenate(parts), *scored)

    def check_policy(self, prompt_prefix: str, completion_length: int) -> None:
        """Raises ValueError unless the policy's tokens are what the reward model expects.

        Args:
          prompt_prefix: of the Task.
          completion_length: L, tokens of a completion at most.
        """
        if self.on_device and prompt_prefix != self._prompt_prefix:
            raise ValueError(
                f"a reward model expects prompts that begin with {self._prompt_prefix!r}, those of "
                f"the task begin with {prompt_prefix!r}; set its prompt_prefix"
            )
        if self.model.template.room(completion_length) < 1:
            raise ValueError(
                f"completions of up to {completion_length} tokens leave no room for the document "
                f"in a reward model's input of {self.model.template.max_length} tokens"
            )


def same_vocabulary(ours: Any, theirs: Any) -> bool:
    """Whether two SeqIO vocabularies give the same tokens, wherever their files lie."""
    if ours is theirs:
        return True
    models = [getattr(vocabulary, "sp_model", None) for vocabulary in (ours, theirs)]
    return models[0] is not None and models[0] == models[1]


def _padded(rows: Sequence[Sequence[int]], multiple: int, most: int) -> np.ndarray:
    """[N, W] int32, W being the next multiple of `multiple` that holds all rows, or `most`."""
    longest = max(map(len, rows), default=1)
    width = min(most, -(-max(longest, 1) // multiple) * multiple)
    out = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _filled(rows: np.ndarray) -> np.ndarray:
    """Rows [n, W] and rows of padding, `_BATCH_SIZE` together."""
    return np.pad(rows, ((0, _BATCH_SIZE - len(rows)), (0, 0)))
