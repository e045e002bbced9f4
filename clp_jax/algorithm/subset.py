"""The index set S of conditioned parameters (Sec. 3.2), as a predicate on parameter paths.

A path is the '/'-joined name of a parameter, e.g. 'decoder/layers_0/self_attention/query/kernel'.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Protocol

from flax import traverse_util

Params = Mapping[str, Any]


class Subset(Protocol):
    """S: says of each parameter path whether the parameter has one replica per objective."""

    def __call__(self, path: str) -> bool:
        """Whether the parameter at `path` is in S."""


@dataclasses.dataclass(frozen=True)
class full:
    """Every parameter: full-CLP."""

    def __call__(self, path: str) -> bool:
        """True."""
        return True


@dataclasses.dataclass(frozen=True)
class none:
    """No parameter: the prompting baseline, which is steered by its prompt alone."""

    def __call__(self, path: str) -> bool:
        """False."""
        return False


@dataclasses.dataclass(frozen=True)
class attention:
    """The query, key, value and output projections of every attention layer: attn-CLP.

    Attributes:
      first_layers: only the first this many layers of the encoder and of the decoder; None for all.
        The paper's T5-large runs use 12 of 24 (App. C.6).
    """

    first_layers: int | None = None

    def __post_init__(self):
        if self.first_layers is not None and self.first_layers < 1:
            raise ValueError(
                f"attention(first_layers={self.first_layers}) must be at least 1, or None for all"
            )

    def __call__(self, path: str) -> bool:
        """Whether `path` lies in an attention block of one of the layers."""
        match = re.search(
            r"layers_(\d+)/(attention|self_attention|encoder_decoder_attention)/", path
        )
        if match is None:
            return False
        return self.first_layers is None or int(match[1]) < self.first_layers


@dataclasses.dataclass(frozen=True)
class logits:
    """The final linear layer: logit-CLP. A model with tied embeddings has no such parameter."""

    def __call__(self, path: str) -> bool:
        """Whether `path` lies in the layer that gives the logits."""
        return "logits_dense" in path.split("/")


@dataclasses.dataclass(frozen=True)
class matching:
    """Every parameter whose path the regular expression is found in (`re.search`)."""

    regex: str

    def __post_init__(self):
        try:
            re.compile(self.regex)
        except re.error as error:
            raise ValueError(
                f"matching({self.regex!r}) is not a regular expression: {error}"
            ) from error

    def __call__(self, path: str) -> bool:
        """Whether the regular expression is found in `path`."""
        return re.search(self.regex, path) is not None


def split(params: Params, subset: Subset) -> tuple[dict, dict]:
    """θ -> (θ[S], θ[S^C]), two trees of disjoint leaves.

    Args:
      params: nested dict of parameters.
      subset: S.

    Returns:
      (conditioned, shared); either may be empty.

    Raises:
      ValueError: S selects no parameter, though it is not `none()`.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    conditioned = {path: leaf for path, leaf in flat.items() if subset(path)}
    if not conditioned and subset != none():
        raise ValueError(
            f"the subset {subset} matches no parameter; the model has {len(flat)}, for example "
            f"{', '.join(list(flat)[:: max(1, len(flat) // 4)][:4])}"
            + (
                ". Its logits are tied to the token embedding: use matching('token_embedder')"
                if subset == logits() and "token_embedder/embedding" in flat
                else ""
            )
        )
    shared = {path: leaf for path, leaf in flat.items() if path not in conditioned}
    return (
        traverse_util.unflatten_dict(conditioned, sep="/"),
        traverse_util.unflatten_dict(shared, sep="/"),
    )


def merge(conditioned: Params, shared: Params) -> dict:
    """θ[S] ⊕ θ[S^C], the inverse of `split`."""
    return traverse_util.unflatten_dict(
        traverse_util.flatten_dict(conditioned) | traverse_util.flatten_dict(shared)
    )
