"""The T5 encoder-decoder (Raffel et al. 2020) in Flax linen: versions 1.0 and 1.1.

The module interface (`encode`, `decode`, `__call__`), the parameters' names and shapes and their
logical axes are those of `t5x.examples.t5.network`, so that either plugs in. Beside them stand
`Transformer.project_encoded`, which a sampler calls once so that cross-attention does not project
the encoded prompt anew for each token, and a key-value cache written in place.

Padding is token 0. Logits are float32 whatever the dtype of the activations.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clp_jax.models import layers
from clp_jax.models.attention import KeyValue, padding_mask, segment_mask
from clp_jax.models.config import T5Config

# One pair of keys and values per decoder layer.
ProjectedEncoded = tuple[KeyValue, ...]


def _attention(config: T5Config) -> layers.Attention:
    return layers.Attention(
        config.num_heads, config.head_dim, config.emb_dim, config.dropout_rate, config.dtype
    )


def _mlp(config: T5Config) -> layers.MlpBlock:
    return layers.MlpBlock(
        config.mlp_dim, config.mlp_activations, config.dropout_rate, config.dtype
    )


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward block, each normed before and added to its input."""

    config: T5Config

    def setup(self) -> None:
        """Declares the layer's parts."""
        cfg = self.config
        self.pre_attention_layer_norm = layers.LayerNorm(dtype=cfg.dtype)
        self.attention = _attention(cfg)
        self.pre_mlp_layer_norm = layers.LayerNorm(dtype=cfg.dtype)
        self.mlp = _mlp(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self, x: jax.Array, mask: jax.Array, bias: jax.Array, deterministic: bool
    ) -> jax.Array:
        """Maps [B, L, emb] to [B, L, emb], given a mask and a bias of `Attention`."""
        y = self.pre_attention_layer_norm(x)
        y = self.attention(y, self.attention.project(y), mask, bias, deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
        return x + self.dropout(y, deterministic=deterministic)


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoded prompt, and a feed-forward block."""

    config: T5Config

    def setup(self) -> None:
        """Declares the layer's parts."""
        cfg = self.config
        self.pre_self_attention_layer_norm = layers.LayerNorm(dtype=cfg.dtype)
        self.self_attention = _attention(cfg)
        self.pre_cross_attention_layer_norm = layers.LayerNorm(dtype=cfg.dtype)
        self.encoder_decoder_attention = _attention(cfg)
        self.pre_mlp_layer_norm = layers.LayerNorm(dtype=cfg.dtype)
        self.mlp = _mlp(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self,
        x: jax.Array,
        encoded: jax.Array | KeyValue,
        self_mask: jax.Array,
        cross_mask: jax.Array,
        bias: jax.Array,
        deterministic: bool,
        cache_index: jax.Array | None = None,
    ) -> jax.Array:
        """Maps [B, L, emb] to [B, L, emb]; with a `cache_index`, L is 1 and the cache is used."""
        y = self.pre_self_attention_layer_norm(x)
        if cache_index is None:
            key_value = self.self_attention.project(y)
        else:
            key_value = self.self_attention.project_to_cache(y, cache_index)
        y = self.self_attention(y, key_value, self_mask, bias, deterministic)
        x = x + self.dropout(y, deterministic=deterministic)

        y = self.pre_cross_attention_layer_norm(x)
        if not isinstance(encoded, KeyValue):
            encoded = self.encoder_decoder_attention.project(encoded)
        y = self.encoder_decoder_attention(y, encoded, cross_mask, None, deterministic)
        x = x + self.dropout(y, deterministic=deterministic)

        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
        return x + self.dropout(y, deterministic=deterministic)


def _rematerialised(
    layer: type[nn.Module], config: T5Config, static_argnums: tuple[int, ...]
) -> Callable[[T5Config], Any]:
    """The class of a layer whose backward pass keeps what `config.remat_policy` says."""
    if config.remat_policy == "none":
        return layer
    keep = None
    if config.remat_policy == "minimal":
        keep = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
    return nn.remat(layer, policy=keep, static_argnums=static_argnums)


class Encoder(nn.Module):
    """The stack of encoder layers."""

    config: T5Config
    token_embedder: layers.Embed

    def setup(self) -> None:
        """Declares the layers."""
        cfg = self.config
        self.relpos_bias = layers.RelativePositionBiases(cfg.num_heads, bidirectional=True)
        layer = _rematerialised(EncoderLayer, cfg, static_argnums=(4,))
        self.layers = [layer(cfg) for _ in range(cfg.num_encoder_layers)]
        self.encoder_norm = layers.LayerNorm(dtype=cfg.dtype)
        self.embedding_dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))
        self.final_dropout = nn.Dropout(cfg.dropout_rate)

    def __call__(self, tokens: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        """Encodes token ids [B, L], given a mask of `Attention`: [B, L, emb]."""
        bias = self.relpos_bias(tokens.shape[1], tokens.shape[1])
        x = self.embedding_dropout(self.token_embedder(tokens), deterministic=deterministic)
        for layer in self.layers:
            x = layer(x, mask, bias, deterministic)
        return self.final_dropout(self.encoder_norm(x), deterministic=deterministic)


class Decoder(nn.Module):
    """The stack of decoder layers and the output layer."""

    config: T5Config
    token_embedder: layers.Embed

    def setup(self) -> None:
        """Declares the layers."""
        cfg = self.config
        self.relpos_bias = layers.RelativePositionBiases(cfg.num_heads, bidirectional=False)
        layer = _rematerialised(DecoderLayer, cfg, static_argnums=(6,))
        self.layers = [layer(cfg) for _ in range(cfg.num_decoder_layers)]
        self.decoder_norm = layers.LayerNorm(dtype=cfg.dtype)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))
        if not cfg.logits_via_embedding:
            # float32, as the softmax over the vocabulary needs it.
            self.logits_dense = layers.Dense(cfg.vocab_size, ("embed", "vocab"))

    def project_encoded(self, encoded: jax.Array) -> ProjectedEncoded:
        """Each layer's keys and values of the encoded prompt."""
        return tuple(layer.encoder_decoder_attention.project(encoded) for layer in self.layers)

    def _init_or_step_cache(self, tokens: jax.Array) -> tuple[jax.Array, ...] | None:
        """Makes the cache, or else steps it: the step's index, self-attention mask and bias."""
        if not self.has_variable("cache", "cache_index"):
            self.put_variable("cache", "cache_index", jnp.zeros((), jnp.int32))
            for layer in self.layers:
                layer.self_attention.init_cache(*tokens.shape)
            return None
        if tokens.shape[1] != 1:
            raise ValueError(
                f"decoder_input_tokens are {tokens.shape}; with a cache, valid is one token per "
                f"sequence: {(tokens.shape[0], 1)}"
            )
        index: jax.Array = self.get_variable("cache", "cache_index")
        self.put_variable("cache", "cache_index", index + 1)
        length = self.layers[0].self_attention.cache_length()
        return index, jnp.arange(length) <= index, self.relpos_bias.row(index, length)

    def __call__(
        self,
        encoded: jax.Array | ProjectedEncoded,
        tokens: jax.Array,
        self_mask: jax.Array,
        cross_mask: jax.Array,
        deterministic: bool,
        decode: bool = False,
    ) -> jax.Array:
        """The states [B, L, emb] from which `logits` predicts what follows each token [B, L]."""
        step = self._init_or_step_cache(tokens) if decode else None
        if step is None:
            cache_index, bias = None, self.relpos_bias(tokens.shape[1], tokens.shape[1])
        else:
            cache_index, self_mask, bias = step
        per_layer: Sequence[jax.Array | KeyValue] = (
            encoded if isinstance(encoded, tuple) else [encoded] * len(self.layers)
        )
        x = self.dropout(self.token_embedder(tokens), deterministic=deterministic)
        for layer, source in zip(self.layers, per_layer, strict=True):
            x = layer(x, source, self_mask, cross_mask, bias, deterministic, cache_index)
        return self.dropout(self.decoder_norm(x), deterministic=deterministic)

    def logits(self, states: jax.Array) -> jax.Array:
        """The float32 logits [..., vocab] of `states` [..., emb]."""
        if self.config.logits_via_embedding:
            return self.token_embedder.attend(states) / math.sqrt(self.config.emb_dim)
        return self.logits_dense(states)


class Transformer(nn.Module):
    """The encoder-decoder, with the interface of t5x's `network.Transformer`."""

    config: T5Config

    def setup(self) -> None:
        """Declares the embedding and the two stacks."""
        cfg = self.config
        self.token_embedder = layers.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)
        self.encoder = Encoder(cfg, self.token_embedder)
        self.decoder = Decoder(cfg, self.token_embedder)

    def encode(
        self,
        encoder_input_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        enable_dropout: bool = True,
    ) -> jax.Array:
        """Encodes prompts.

        Args:
          encoder_input_tokens: [B, K] int; 0 is padding.
          encoder_segment_ids: [B, K] int, of packed examples; tokens see their own segment only.
          enable_dropout: needs an rng named 'dropout' if True.

        Returns:
          [B, K, emb].
        """
        mask = padding_mask(encoder_input_tokens)
        if encoder_segment_ids is not None:
            mask = mask & segment_mask(encoder_segment_ids, encoder_segment_ids)
        return self.encoder(encoder_input_tokens, mask, not enable_dropout)

    def project_encoded(self, encoded: jax.Array) -> ProjectedEncoded:
        """Each decoder layer's keys and values of `encoded` [B, K, emb].

        Pass them to `decode` in place of `encoded`, so that they are computed once and not at each
        decoding step.
        """
        return self.decoder.project_encoded(encoded)

    def decode(
        self,
        encoded: jax.Array | ProjectedEncoded,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        decoder_positions: jax.Array | None = None,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        return_states: bool = False,
    ) -> jax.Array:
        """The logits of each next token, given the encoded prompt and the tokens before it.

        With `decode=True`, a first call without a 'cache' collection makes it (pass
        mutable=['cache']), for as many positions as `decoder_input_tokens` has. Each later call
        takes the cache and one token per sequence, and fills one position; the caller has to stop
        at the cache's end. Decoding takes no packed examples.

        Args:
          encoded: [B, K, emb], or what `project_encoded` returned for it.
          encoder_input_tokens: [B, K] int; only tells which are padding (0).
          decoder_input_tokens: [B, L] int, the tokens before those to predict.
          decoder_target_tokens: [B, L] int; positions where it is 0 are not attended to, so a mask
            of the completion does as well. Unused with `decode=True`.
          encoder_segment_ids: [B, K] int, of packed examples.
          decoder_segment_ids: [B, L] int, of packed examples.
          decoder_positions: unused, as positions are relative; t5x's interface has it.
          enable_dropout: needs an rng named 'dropout' if True.
          decode: whether to make or use the cache.
          max_decode_length: unused, as the cache knows it; t5x's interface has it.
          return_states: stop before the output layer, which `logits` then is.

        Returns:
          [B, L, vocab] float32, or states [B, L, emb].

        Raises:
          ValueError: more than one token per sequence with a cache; segments when decoding, or of
            one side alone.
        """
        del decoder_positions, max_decode_length
        self_mask = jnp.tril(jnp.ones((decoder_input_tokens.shape[1],) * 2, jnp.bool_))
        cross_mask = padding_mask(encoder_input_tokens)
        if not decode:
            self_mask = self_mask & padding_mask(decoder_target_tokens)
        if encoder_segment_ids is not None or decoder_segment_ids is not None:
            if decode or encoder_segment_ids is None or decoder_segment_ids is None:
                raise ValueError("segment ids go to encoder and decoder both, and not to decoding")
            self_mask = self_mask & segment_mask(decoder_segment_ids, decoder_segment_ids)
            cross_mask = cross_mask & segment_mask(decoder_segment_ids, encoder_segment_ids)
        states = self.decoder(
            encoded, decoder_input_tokens, self_mask, cross_mask, not enable_dropout, decode
        )
        return states if return_states else self.decoder.logits(states)

    def logits(self, states: jax.Array) -> jax.Array:
        """The float32 logits [..., vocab] of what `decode` gave with `return_states`."""
        return self.decoder.logits(states)

    def __call__(
        self,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        encoder_positions: jax.Array | None = None,
        decoder_positions: jax.Array | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
    ) -> jax.Array:
        """`encode`, then `decode`; see there for the arguments. Returns [B, L, vocab] float32."""
        del encoder_positions, decoder_positions
        encoded = self.encode(encoder_input_tokens, encoder_segment_ids, enable_dropout)
        return self.decode(
            encoded,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            enable_dropout=enable_dropout,
            decode=decode,
        )
