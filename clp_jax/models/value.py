"""What a T5 says at its first decoder position; the value network reads its values there."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def predict_values(
    module: nn.Module, params: Any, encoder_input_tokens: jax.Array, num_objectives: int
) -> jax.Array:
    """The value estimate V̂_i(x) of each objective i, for each prompt x.

    The value network has the architecture of the policy. V̂_i(x) is the logit of token id i at the
    first decoder position (Wang et al. 2024, App. B.1). It is differentiable in `params`.

    Args:
      module: has the interface of t5x's `network.Transformer`.
      params: its 'params' collection.
      encoder_input_tokens: [B, K] int; the prompts, 0 is padding.
      num_objectives: m, in [1, vocabulary size].

    Returns:
      [B, m] float32.

    Raises:
      ValueError: `num_objectives` is out of its range.
    """
    logits = first_logits(module, params, encoder_input_tokens)
    if not 1 <= num_objectives <= logits.shape[-1]:
        raise ValueError(
            f"num_objectives is {num_objectives}; valid is an integer in [1, {logits.shape[-1]}], "
            "the size of the vocabulary"
        )
    return logits[:, :num_objectives]


def first_logits(
    module: nn.Module,
    params: Any,
    encoder_input_tokens: jax.Array,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """The logits of the first token that the decoder would write.

    Args:
      module: has the interface of t5x's `network.Transformer`.
      params: its 'params' collection.
      encoder_input_tokens: [B, K] int; 0 is padding.
      dropout_key: None for no dropout.

    Returns:
      [B, V] float32.
    """
    variables = {"params": params}
    rngs: list[dict[str, jax.Array]] = [{}, {}]
    if dropout_key is not None:
        rngs = [{"dropout": key} for key in jax.random.split(dropout_key)]
    enable_dropout = dropout_key is not None
    encoded = module.apply(
        variables,
        encoder_input_tokens,
        enable_dropout=enable_dropout,
        method=module.encode,
        rngs=rngs[0],
    )
    # The decoder starts with padding, as in T5. The target only says that the position is real.
    start = jnp.zeros((encoder_input_tokens.shape[0], 1), jnp.int32)
    logits: Any = module.apply(
        variables,
        encoded,
        encoder_input_tokens,
        start,
        jnp.ones_like(start),
        enable_dropout=enable_dropout,
        method=module.decode,
        rngs=rngs[1],
    )
    return logits[:, 0].astype(jnp.float32)
