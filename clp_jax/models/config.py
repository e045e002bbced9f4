"""The configuration of the T5 model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from clp_jax.models.layers import ACTIVATIONS
from clp_jax.reporting.errors import unknown_name

_DTYPES = ("bfloat16", "float32")
_REMAT_POLICIES = ("none", "minimal", "full")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The sizes of a T5; its fields are those of t5x's T5Config, but for `remat_policy`.

    T5 1.1 and FLAN-T5 have mlp_activations=('gelu', 'linear') and logits_via_embedding=False; T5
    1.0 has ('relu',) and True. Each number of something, and each width, is 1 or more.

    Attributes:
      vocab_size: number of rows of the embedding.
      dtype: of the activations, also by name: bfloat16 or float32.
      emb_dim: width of the residual stream.
      num_heads: number of attention heads; num_heads * head_dim need not be emb_dim.
      num_encoder_layers: number of encoder layers.
      num_decoder_layers: number of decoder layers.
      head_dim: width of one head.
      mlp_dim: width of the feed-forward block.
      mlp_activations: names in `layers.ACTIVATIONS`; several are multiplied.
      dropout_rate: in [0, 1).
      logits_via_embedding: whether the embedding is the output layer too.
      remat_policy: what each layer keeps for the backward pass, for models whose activations do not
        fit: "none" keeps all; "minimal" keeps the results of its projections, and computes the rest
        anew; "full" keeps its input alone, which takes a third more time.

    Raises:
      ValueError: a value is out of its range, or a name is unknown.
    """

    vocab_size: int
    dtype: Any = "float32"
    emb_dim: int = 512
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    head_dim: int = 64
    mlp_dim: int = 2048
    mlp_activations: Sequence[str] = ("relu",)
    dropout_rate: float = 0.1
    logits_via_embedding: bool = False
    remat_policy: str = "none"

    def __post_init__(self) -> None:
        dtype_name = self.dtype if isinstance(self.dtype, str) else jnp.dtype(self.dtype).name
        if dtype_name not in _DTYPES:  # float16 overflows in T5's feed-forward layers
            raise ValueError(unknown_name("dtype", dtype_name, _DTYPES, "T5Config.dtype"))
        if isinstance(self.mlp_activations, str) or not self.mlp_activations:
            raise ValueError(
                f"T5Config.mlp_activations is {self.mlp_activations!r}; valid is a tuple of one or "
                "more names"
            )
        for name in self.mlp_activations:
            if name not in ACTIVATIONS:
                raise ValueError(
                    unknown_name("activation", name, ACTIVATIONS, "T5Config.mlp_activations")
                )
        if self.remat_policy not in _REMAT_POLICIES:
            raise ValueError(
                unknown_name(
                    "remat_policy", self.remat_policy, _REMAT_POLICIES, "T5Config.remat_policy"
                )
            )
        for size in (field.name for field in dataclasses.fields(self) if field.type is int):
            if getattr(self, size) < 1:
                raise ValueError(
                    f"T5Config.{size} is {getattr(self, size)}; valid is an integer >= 1"
                )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(
                f"T5Config.dropout_rate is {self.dropout_rate}; valid is a rate in [0, 1)"
            )
        # The dataclass is frozen, hence `object`.
        object.__setattr__(self, "dtype", jnp.dtype(dtype_name))
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
