"""T5 in numpy, for tests: one example at a time, without padding, loops over heads and pairs."""

import functools
import math

import jax
import numpy as np


@functools.cache
def brute_force_bucket(distance, bidirectional, num_buckets=32, max_distance=128):
    """T5's definition in exact integer arithmetic; distance = key position - query position."""
    offset = 0
    if bidirectional:
        num_buckets //= 2
        offset = num_buckets if distance > 0 else 0
        back = abs(distance)
    else:
        back = max(-distance, 0)
    exact = num_buckets // 2
    if back < exact:
        return offset + back
    num_log = num_buckets - exact
    # The largest t with back / exact >= (max_distance / exact) ** (t / num_log).
    fits = [
        t for t in range(num_log) if (back**num_log) * exact**t >= max_distance**t * exact**num_log
    ]
    return offset + exact + max(fits)


def numpy_norm(x, params):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * params["scale"]


def numpy_attention(params, queries_from, keys_from, num_heads, rel_embedding=None, causal=False):
    query, key, value = (
        source @ params[name]["kernel"]
        for name, source in (("query", queries_from), ("key", keys_from), ("value", keys_from))
    )
    head_dim = query.shape[-1] // num_heads
    mixed = np.zeros_like(query)
    for head in range(num_heads):
        columns = slice(head * head_dim, (head + 1) * head_dim)
        for i in range(len(query)):
            visible = range(i + 1) if causal else range(len(key))
            logits = np.array([query[i, columns] @ key[j, columns] for j in visible])
            if rel_embedding is not None:
                buckets = [brute_force_bucket(j - i, not causal) for j in visible]
                logits = logits + rel_embedding[head, buckets]
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            mixed[i, columns] = sum(w * value[j, columns] for w, j in zip(weights, visible))  # noqa: B905
    return mixed @ params["out"]["kernel"]


def numpy_mlp(params, x):
    if "wi" in params:
        hidden = np.maximum(x @ params["wi"]["kernel"], 0.0)
    else:
        gate = x @ params["wi_0"]["kernel"]
        cubic = math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate**3)
        hidden = 0.5 * gate * (1.0 + np.tanh(cubic)) * (x @ params["wi_1"]["kernel"])
    return hidden @ params["wo"]["kernel"]


def numpy_t5(params, config, encoder_tokens, decoder_tokens):
    """Logits [L, vocab] of one unpadded example, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    table, heads = params["token_embedder"]["embedding"], config.num_heads
    enc, dec = params["encoder"], params["decoder"]

    x = table[encoder_tokens]
    for i in range(config.num_encoder_layers):
        layer = enc[f"layers_{i}"]
        y = numpy_norm(x, layer["pre_attention_layer_norm"])
        x = x + numpy_attention(
            layer["attention"], y, y, heads, enc["relpos_bias"]["rel_embedding"]
        )
        x = x + numpy_mlp(layer["mlp"], numpy_norm(x, layer["pre_mlp_layer_norm"]))
    encoded = numpy_norm(x, enc["encoder_norm"])

    x = table[decoder_tokens]
    for i in range(config.num_decoder_layers):
        layer = dec[f"layers_{i}"]
        y = numpy_norm(x, layer["pre_self_attention_layer_norm"])
        bias = dec["relpos_bias"]["rel_embedding"]
        x = x + numpy_attention(layer["self_attention"], y, y, heads, bias, causal=True)
        y = numpy_norm(x, layer["pre_cross_attention_layer_norm"])
        x = x + numpy_attention(layer["encoder_decoder_attention"], y, encoded, heads)
        x = x + numpy_mlp(layer["mlp"], numpy_norm(x, layer["pre_mlp_layer_norm"]))
    x = numpy_norm(x, dec["decoder_norm"])
    if config.logits_via_embedding:
        return x @ table.T / math.sqrt(config.emb_dim)
    return x @ dec["logits_dense"]["kernel"]
