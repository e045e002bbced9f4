"""What a T5 says of completions, and at its first decoder position, where values are read."""

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
    # The decoder starts with padding, as in T5. The mask only says that the position is real.
    start = jnp.zeros((encoder_input_tokens.shape[0], 1), jnp.int32)
    inputs = (encoder_input_tokens, start, jnp.ones_like(start))
    logits = completion_logits(module, params, *inputs, dropout_key)
    return logits[:, 0].astype(jnp.float32)


def completion_logits(
    module: nn.Module,
    params: Any,
    prompts: jax.Array,
    completions: jax.Array,
    mask: jax.Array,
    dropout_key: jax.Array | None = None,
    **options: bool,
) -> jax.Array:
    """The teacher-forced logits of completions.

    Args:
      module: has the interface of t5x's `network.Transformer`.
      params: its 'params' collection.
      prompts: [B, K] int; 0 is padding.
      completions: [B, L] int.
      mask: [B, L]; says which completion tokens exist.
      dropout_key: None for no dropout.
      **options: `return_states` of `t5.Transformer.decode`, for what the logits are made of.

    Returns:
      [B, L, V] float32; with `return_states`, [B, L, emb].
    """
    rngs: list[dict[str, jax.Array]] = [{}, {}]
    if dropout_key is not None:
        rngs = [{"dropout": key} for key in jax.random.split(dropout_key)]
    use_dropout = {"enable_dropout": dropout_key is not None}
    encoded: Any = module.apply(
        {"params": params}, prompts, **use_dropout, rngs=rngs[0], method=module.encode
    )
    decoded: Any = module.apply(
        {"params": params},
        encoded,
        prompts,
        jnp.pad(completions, ((0, 0), (1, 0)))[:, :-1],
        mask.astype(jnp.int32),  # read as "which positions are not padding"
        **use_dropout,
        **options,
        rngs=rngs[1],
        method=module.decode,
    )
    return decoded
