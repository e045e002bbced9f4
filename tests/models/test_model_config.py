"""The configuration of the T5 model, and the gin files of its sizes."""

import math
import pathlib
import re

import gin
import jax
import jax.numpy as jnp
import pytest

from clp_jax.models import t5

GIN_FILES = sorted((pathlib.Path(__file__).parents[2] / "gin" / "models").glob("*.gin"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mlp_activations", ("gelou", "linear"), r"'gelou' .*T5Config.mlp_activations.*gelu"),
        ("mlp_activations", (), r"mlp_activations is \(\); valid is a tuple of one or more"),
        ("mlp_activations", "relu", r"mlp_activations is 'relu'; valid is a tuple"),
        ("dtype", "bfloat61", r"'bfloat61' .*T5Config.dtype.*nearest: bfloat16"),
        ("dtype", jnp.int32, r"'int32' .*T5Config.dtype"),
        ("dropout_rate", 1.0, r"dropout_rate is 1.0; valid is a rate in \[0, 1\)"),
        ("dropout_rate", float("nan"), r"dropout_rate is nan; valid"),
        ("num_heads", 0, r"num_heads is 0; valid is an integer >= 1"),
        ("num_decoder_layers", 0, r"num_decoder_layers is 0; valid is an integer >= 1"),
    ],
)
def test_config_names_a_bad_value(field, value, message):
    with pytest.raises(ValueError, match=message):
        t5.T5Config(**{"vocab_size": 8, field: value})


def count_by_formula(config):
    joined = config.num_heads * config.head_dim
    attention = 4 * config.emb_dim * joined
    mlp = (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim
    encoder = config.num_encoder_layers * (attention + mlp + 2 * config.emb_dim)
    decoder = config.num_decoder_layers * (2 * attention + mlp + 3 * config.emb_dim)
    embeddings = (1 if config.logits_via_embedding else 2) * config.vocab_size * config.emb_dim
    return encoder + decoder + embeddings + 2 * config.emb_dim + 2 * 32 * config.num_heads


@pytest.mark.parametrize("path", GIN_FILES, ids=lambda path: path.stem)
def test_gin_file_makes_the_model_that_its_header_says(path):
    gin.clear_config()
    try:
        macros = ["DROPOUT_RATE = 0.0", "ACTIVATION_DTYPE = 'bfloat16'"]
        gin.parse_config(f"include '{path}'\n" + "\n".join(macros))
        module = gin.query_parameter("%MODULE").scoped_configurable_fn()
    finally:
        gin.clear_config()
    assert isinstance(module, t5.Transformer)
    version_1_0 = path.stem.startswith("t5_1_0")
    assert module.config.logits_via_embedding == version_1_0
    assert module.config.mlp_activations == (("relu",) if version_1_0 else ("gelu", "linear"))
    assert (module.config.vocab_size, module.config.dtype) == (32128, jnp.bfloat16)
    if path.stem in ("t5_1_0", "t5_1_1"):
        return
    (stated,) = re.findall(r"([\d,]+) parameters", path.read_text())
    assert int(stated.replace(",", "")) == count_by_formula(module.config)
    if path.stem in ("tiny", "t5_1_0_small"):
        tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
        params = jax.eval_shape(
            lambda key, x: module.init(key, x, x, x, enable_dropout=False),
            jax.random.key(0),
            tokens,
        )["params"]
        assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == count_by_formula(
            module.config
        )
