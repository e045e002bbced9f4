"""Hugging Face directories of random parameters, and what is expected of them."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clp_jax.models import hf_checkpoints, t5

SIZES = {
    "vocab_size": 23,
    "emb_dim": 12,
    "num_heads": 3,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "head_dim": 5,
    "mlp_dim": 14,
}
CONFIGS = {
    f"{version}-{'tied' if tied else 'untied'}": t5.T5Config(
        **SIZES, mlp_activations=activations, logits_via_embedding=tied
    )
    for version, activations in (("1.0", ("relu",)), ("1.1", ("gelu", "linear")))
    for tied in (True, False)
}
EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
WEIGHTS = "model.safetensors"
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
QUERY = "decoder.block.2.layer.1.EncDecAttention.q.weight"
OUR_QUERY = "decoder/layers_2/encoder_decoder_attention/query/kernel"


@functools.cache
def expected_shapes(config):
    """What the model itself says of its parameters."""
    module, tokens = t5.Transformer(config), jnp.ones((1, 2), jnp.int32)
    return jax.eval_shape(
        lambda: module.init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False)
    )["params"]


@functools.cache
def make_params(config, dtype="float32"):
    """Random values that `dtype` holds exactly, in float32."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(jnp.dtype(dtype)).astype(np.float32),
        expected_shapes(config),
    )


def assert_trees_equal(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for ours_leaf, leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert ours_leaf.dtype == leaf.dtype
        assert np.asarray(ours_leaf).tobytes() == np.asarray(leaf).tobytes()


def as_shapes(tree, dtype):
    return jax.tree.map(lambda x: (tuple(x.shape), jnp.dtype(dtype)), tree)


def has_all(*parts):
    """A pattern of messages that have all of the parts, in any order."""
    return "(?s)" + "".join(f"(?=.*{re.escape(part)})" for part in parts)


def assert_refused(path, *parts):
    """Each way of reading raises, before it reads a tensor; the message has all of the parts."""
    config = CONFIGS["1.1-untied"]
    for read in (
        hf_checkpoints.shapes,
        hf_checkpoints.read_config,
        functools.partial(hf_checkpoints.load, expected=expected_shapes(config)),
        functools.partial(hf_checkpoints.check_config, config=config),
    ):
        with pytest.raises(ValueError, match=has_all(*parts)):
            read(path)


def write_directory(path, config=CONFIGS["1.1-untied"], fields=None, tensors=None, without=()):
    """Writes a good directory, then edits its config.json and its tensors; returns the path."""
    hf_checkpoints.save(path, make_params(config), config)
    content = json.loads((path / "config.json").read_text()) | (fields or {})
    content = {name: value for name, value in content.items() if name not in without}
    (path / "config.json").write_text(json.dumps(content))
    arrays = load_file(path / WEIGHTS) | (tensors or {})
    arrays = {name: array for name, array in arrays.items() if name not in without}
    save_file(arrays, path / WEIGHTS)
    return path
