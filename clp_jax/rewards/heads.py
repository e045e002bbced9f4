"""What a reward model's score is: the label of NLI, or the scalar of a preference model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from clp_jax.reporting.errors import unknown_name

Flags = dict[str, jax.Array]

# TRUE (Honovich et al. 2022) answers "1" or "0".
TRUE_LABELS = {"entailment": "1", "not_entailment": "0"}


class Head(Protocol):
    """What is read from the logits of the first decoder position."""

    def score(self, logits: jax.Array) -> tuple[jax.Array, Flags]:
        """Logits [B, V] -> (scores [B], what to count of them, name -> [B] bool)."""


@dataclasses.dataclass(frozen=True)
class NLIHead:
    """The log-probability of the entailment label (Roit et al. 2023), range (-inf, 0].

    Attributes:
      labels: names of the classes.
      tokens: the token of each, written first where the class holds; all different.
      entailment: which of `labels` is the reward.
      over_labels: whether probabilities are over the label tokens alone, as in MiniCheck (Tang et
        al. 2024), or over the whole vocabulary.
      floor: least score in nats, <= 0; None for none. How many scores it raised is logged.

    Raises:
      ValueError: an attribute is out of its range.
    """

    labels: tuple[str, ...]
    tokens: tuple[int, ...]
    entailment: str = "entailment"
    over_labels: bool = False
    floor: float | None = None

    def __post_init__(self):
        if self.entailment not in self.labels:
            raise ValueError(f"no label {self.entailment!r} among {self.labels}")
        if len(self.labels) < 2 or len(self.tokens) != len(self.labels):
            raise ValueError(f"{self.labels} need one token each, and there must be two or more")
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError(
                f"labels {self.labels} begin with the tokens {self.tokens}; they must differ"
            )
        if self.floor is not None and self.floor > 0:
            raise ValueError(f"floor={self.floor} must be <= 0, as a log-probability is")

    def label_log_probs(self, logits: jax.Array) -> jax.Array:
        """Logits [B, V] -> log-probabilities of the labels, [B, C] float32."""
        tokens = jnp.asarray(self.tokens)
        if self.over_labels:
            return jax.nn.log_softmax(logits[:, tokens])
        return jax.nn.log_softmax(logits)[:, tokens]

    def score(self, logits: jax.Array) -> tuple[jax.Array, Flags]:
        """See `Head.score`."""
        scores = self.label_log_probs(logits)[:, self.labels.index(self.entailment)]
        if self.floor is None:
            return scores, {}
        return jnp.maximum(scores, self.floor), {"floored": scores < self.floor}


@dataclasses.dataclass(frozen=True)
class PreferenceHead:
    """A scalar: the logit of one token, for Bradley-Terry models (Eisenstein et al. 2023).

    Attributes:
      token: which.
    """

    token: int = 1

    def score(self, logits: jax.Array) -> tuple[jax.Array, Flags]:
        """See `Head.score`."""
        return logits[:, self.token], {}


def make_nli_head(vocabulary: Any, vocab_size: int, fields: Mapping[str, Any]) -> NLIHead:
    """The head of an NLI model.

    Args:
      vocabulary: of the reward model.
      vocab_size: of its network.
      fields: `label_tokens` {label: its text, or the id of its token}, default TRUE's "1" and "0";
        or `labels` and `tokens`, as saved. `entailment`, `over_labels`, `floor`: see `NLIHead`.

    Raises:
      ValueError: a label whose token the vocabulary or the network lacks, or two with the same.
    """
    if "label_tokens" in fields or "tokens" not in fields:
        label_tokens = dict(fields.get("label_tokens", TRUE_LABELS))
        labels = tuple(label_tokens)
        tokens = tuple(_token(vocabulary, label, t) for label, t in label_tokens.items())
    else:
        labels, tokens = tuple(fields["labels"]), tuple(fields["tokens"])
    for label, token in zip(labels, tokens, strict=True):
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"label {label!r}: token {token} is not in the model's vocabulary of {vocab_size}"
            )
    entailment = fields.get("entailment", "entailment")
    if entailment not in labels:
        raise ValueError(unknown_name("label", entailment, labels, "entailment"))
    rest = {name: fields[name] for name in ("over_labels", "floor") if name in fields}
    return NLIHead(labels, tokens, entailment, **rest)


def make_preference_head(
    vocabulary: Any, vocab_size: int, fields: Mapping[str, Any]
) -> PreferenceHead:
    """The head of a preference model; `fields` may have `token`, its text or id.

    Raises:
      ValueError: the vocabulary or the network lacks the token.
    """
    token = fields.get("token", PreferenceHead.token)
    token = _token(vocabulary, "token", token)
    if not 0 <= token < vocab_size:
        raise ValueError(f"token {token} is not in the model's vocabulary of {vocab_size}")
    return PreferenceHead(token)


def _token(vocabulary: Any, label: str, token: str | int) -> int:
    """The id of a token, given by its id or as text, of which the first piece counts."""
    if isinstance(token, int):
        return token
    pieces = vocabulary.encode(token)
    if not pieces or vocabulary.unk_id in pieces:
        raise ValueError(
            f"label {label!r}: the vocabulary has no token for {token!r}; choose other text, or "
            "give the id of a token"
        )
    return pieces[0]
