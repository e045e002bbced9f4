"""Reward models: a T5 reads a document and a summary; its first decoder position scores them.

Functions of tokens and parameters. `learned` makes rewards of them, `saved` has them on disk, `fit`
trains them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clp_jax.models.value import first_logits
from clp_jax.rewards.heads import Flags

Params = Any


@dataclasses.dataclass(frozen=True)
class InputTemplate:
    """How a document and a summary make one encoder input.

    The input is `before`, the document, `between`, the summary and EOS. What is too long is cut
    from the document's end.

    Attributes:
      before: tokens.
      between: tokens.
      max_length: N, tokens of the whole input at most.
      eos_id: the last token.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    max_length: int
    eos_id: int = 1

    def room(self, summary_length: Any) -> Any:
        """Tokens of the document that have room beside a summary of this length; int or array."""
        return self.max_length - len(self.before) - len(self.between) - summary_length - 1

    def compose(self, documents: jax.Array, summaries: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The encoder inputs of pairs.

        Args:
          documents: [B, E] int, without EOS; 0 is padding, wherever it stands.
          summaries: [B, L] int, likewise.

        Returns:
          (inputs [B, min(N, what E and L can fill)] int32, whether the document was cut [B] bool).

        Raises:
          ValueError: L leaves no room for any document.
        """
        documents, document_lengths = _without_padding(documents)
        summaries, summary_lengths = _without_padding(summaries)
        if self.room(summaries.shape[1]) < 1:
            raise ValueError(
                f"a summary of up to {summaries.shape[1]} tokens leaves no room for the document "
                f"in a reward model's input of {self.max_length} tokens"
            )
        kept = jnp.minimum(document_lengths, self.room(summary_lengths))
        # All that an input may be made of in one row, and where each of its pieces begins there.
        constants = jnp.asarray((*self.before, *self.between, self.eos_id), jnp.int32)
        constants = jnp.broadcast_to(constants, (documents.shape[0], constants.size))
        pool = jnp.concatenate([documents, summaries, constants], axis=1)
        first_constant = documents.shape[1] + summaries.shape[1]
        pieces = (
            (first_constant, len(self.before)),
            (0, kept),
            (first_constant + len(self.before), len(self.between)),
            (documents.shape[1], summary_lengths),
            (pool.shape[1] - 1, 1),
        )
        inputs = _gather(pool, pieces, min(self.max_length, pool.shape[1]))
        return inputs, document_lengths > kept


def _gather(
    pool: jax.Array, pieces: Sequence[tuple[int, int | jax.Array]], length: int
) -> jax.Array:
    """Pieces of a pool of tokens side by side.

    Args:
      pool: [B, P] int.
      pieces: where each begins in the pool, and how long it is: a number, or one for each row [B].
      length: of the rows that are returned.

    Returns:
      [B, length]; 0 after the last piece.
    """
    position = jnp.arange(length)[None, :]
    index = jnp.full((pool.shape[0], length), -1)
    start: jax.Array = jnp.zeros((1, 1), jnp.int32)
    for begin, size in pieces:
        end = start + jnp.reshape(jnp.asarray(size, jnp.int32), (-1, 1))
        inside = (position >= start) & (position < end)
        index = jnp.where(inside, begin + position - start, index)
        start = end
    return jnp.where(index < 0, 0, jnp.take_along_axis(pool, jnp.maximum(index, 0), axis=1))


def _without_padding(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, L] with those that are not 0 first, in order, and how many they are [B]."""
    order = jnp.argsort(tokens == 0, axis=1, stable=True)
    return jnp.take_along_axis(tokens, order, axis=1), jnp.sum(tokens != 0, axis=1)


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A network, how its input is made, and what is read from its output.

    Attributes:
      module: has the interface of t5x's `network.Transformer`.
      template: documents and summaries to inputs.
      head: logits to scores.
    """

    module: nn.Module
    template: InputTemplate
    head: Any  # a Head; NLIHead where classes are asked for

    def shapes(self) -> Params:
        """Shapes of the network's parameters."""
        tokens = jnp.zeros((1, 1), jnp.int32)
        return jax.eval_shape(
            lambda: self.module.init(
                jax.random.key(0), tokens, tokens, tokens, enable_dropout=False
            )
        )["params"]

    def logits(
        self,
        params: Params,
        documents: jax.Array,
        summaries: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens [B, E] and [B, L] -> (logits [B, V], whether the document was cut [B])."""
        inputs, cut = self.template.compose(documents, summaries)
        return first_logits(self.module, params, inputs, dropout_key), cut

    def score(
        self, params: Params, documents: jax.Array, summaries: jax.Array
    ) -> tuple[jax.Array, Flags]:
        """Scores documents and summaries.

        Args:
          params: of the module.
          documents: [B, E] int, without EOS; 0 is padding.
          summaries: [B, L] int, likewise.

        Returns:
          (scores [B] float32, name -> [B] bool: `truncated_documents` and the head's own).

        Raises:
          ValueError: see `InputTemplate.compose`.
        """
        logits, cut = self.logits(params, documents, summaries)
        scores, flags = self.head.score(logits)
        return scores, {"truncated_documents": cut, **flags}


def document_of(prompts: jax.Array, prefix_length: int, eos_id: int) -> jax.Array:
    """The document's tokens in a policy's prompts.

    Args:
      prompts: [B, E] int: prefix, document, EOS unless it was cut off, 0.
      prefix_length: tokens of the prefix.
      eos_id: of the policy's vocabulary.

    Returns:
      [B, E - prefix_length]; what is not the document is 0.
    """
    documents = prompts[:, prefix_length:]
    return jnp.where(documents == eos_id, 0, documents)


def summary_of(completions: jax.Array, mask: jax.Array, eos_id: int) -> jax.Array:
    """Completions [B, L] with everything but their text's tokens set to 0."""
    return jnp.where((mask > 0) & (completions != eos_id), completions, 0)
