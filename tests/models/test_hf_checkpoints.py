"""Hugging Face directories in and out, without torch: layout, round trips, wrong leaves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hf_directories import (
    BIAS,
    CONFIGS,
    EVERY_CONFIG,
    OUR_QUERY,
    QUERY,
    WEIGHTS,
    as_shapes,
    assert_refused,
    assert_trees_equal,
    expected_shapes,
    has_all,
    make_params,
    write_directory,
)
from safetensors.numpy import load_file

from clp_jax.models import hf_checkpoints


@pytest.mark.parametrize("max_shard_bytes", [10**9, 3000], ids=["whole", "shards"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@EVERY_CONFIG
def test_round_trip(config, dtype, max_shard_bytes, tmp_path):
    params = make_params(config, dtype)
    hf_checkpoints.save(tmp_path, params, config, dtype, max_shard_bytes)
    assert hf_checkpoints.recognises(tmp_path)
    assert as_shapes(hf_checkpoints.shapes(tmp_path), "float32") == as_shapes(params, "float32")
    assert {x.dtype for x in jax.tree.leaves(hf_checkpoints.shapes(tmp_path))} == {jnp.dtype(dtype)}
    assert_trees_equal(hf_checkpoints.load(tmp_path, expected_shapes(config)), params)
    assert hf_checkpoints.read_config(tmp_path) == config
    hf_checkpoints.check_config(tmp_path, dataclasses.replace(config, dtype="bfloat16"))
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (max_shard_bytes == 3000) == (not (tmp_path / WEIGHTS).exists())
    for file in tmp_path.glob("model-*.safetensors"):
        shard = load_file(file)
        assert len(shard) == 1 or sum(x.nbytes for x in shard.values()) <= max_shard_bytes


def test_values_are_loaded_in_the_expected_type(tmp_path):
    config = CONFIGS["1.0-tied"]
    hf_checkpoints.save(tmp_path, make_params(config), config)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params(config))
    assert_trees_equal(hf_checkpoints.load(tmp_path, half), half)


def test_names_and_layout(tmp_path):
    """As in transformers' T5: [out, in], [buckets, heads], three parts of a decoder layer."""
    config = CONFIGS["1.1-untied"]
    params = make_params(config)
    hf_checkpoints.save(tmp_path, jax.tree.map(jnp.asarray, params), config)
    found = load_file(tmp_path / WEIGHTS)
    norm, attention = ["layer_norm"], ["q", "k", "v", "o"]
    parts = {"SelfAttention": attention, "EncDecAttention": attention}
    parts["DenseReluDense"] = ["wi_0", "wi_1", "wo"]
    names = {"shared.weight", "lm_head.weight"}
    for stack, num_layers, kinds in (
        ("encoder", 2, ("SelfAttention", "DenseReluDense")),
        ("decoder", 3, ("SelfAttention", "EncDecAttention", "DenseReluDense")),
    ):
        names |= {f"{stack}.final_layer_norm.weight", BIAS.replace("encoder", stack)}
        for i in range(num_layers):
            for k, kind in enumerate(kinds):
                leaves = [*norm, *(f"{kind}.{name}" for name in parts[kind])]
                names |= {f"{stack}.block.{i}.layer.{k}.{leaf}.weight" for leaf in leaves}
    assert found.keys() == names
    flat = traverse_util.flatten_dict(params, sep="/")
    for theirs, ours in (
        (QUERY, flat[OUR_QUERY].T),
        ("shared.weight", flat["token_embedder/embedding"]),
        ("lm_head.weight", flat["decoder/logits_dense/kernel"].T),
        (BIAS, flat["encoder/relpos_bias/rel_embedding"].T),
        (
            "encoder.block.1.layer.1.layer_norm.weight",
            flat["encoder/layers_1/pre_mlp_layer_norm/scale"],
        ),
        (
            "decoder.block.0.layer.0.SelfAttention.o.weight",
            flat["decoder/layers_0/self_attention/out/kernel"].T,
        ),
        (
            "decoder.block.1.layer.2.DenseReluDense.wi_1.weight",
            flat["decoder/layers_1/mlp/wi_1/kernel"].T,
        ),
    ):
        np.testing.assert_array_equal(found[theirs], ours)


def test_duplicates_of_the_embedding_are_read_past(tmp_path):
    config = CONFIGS["1.0-tied"]
    embedding = make_params(config)["token_embedder"]["embedding"]
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    extra = dict.fromkeys(names, embedding) | {unused: np.ones((32, 3), np.float32)}
    for without in ((), ("shared.weight",), ("shared.weight", *names[:1])):
        path = write_directory(tmp_path, config, tensors=extra, without=without)
        assert_trees_equal(hf_checkpoints.load(path, expected_shapes(config)), make_params(config))
        hf_checkpoints.check_config(path, config)


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "lm_head.weight"])
def test_contradictory_duplicates_are_refused(name, tmp_path):
    config = CONFIGS["1.0-tied"]
    other = make_params(config)["token_embedder"]["embedding"].copy()
    other[-1, -1] += 1e-3
    path = write_directory(tmp_path, config, tensors={name: other})
    parts = (
        str(path / WEIGHTS),
        name,
        "shared.weight",
        "expected are equal",
        "token_embedder/embedding",
    )
    with pytest.raises(ValueError, match=has_all(*parts)):
        hf_checkpoints.load(path, expected_shapes(config))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (QUERY, OUR_QUERY),
        (BIAS, "encoder/relpos_bias/rel_embedding"),
        ("shared.weight", "token_embedder/embedding"),
        ("lm_head.weight", "decoder/logits_dense/kernel"),
        ("decoder.final_layer_norm.weight", "decoder/decoder_norm/scale"),
    ],
)
def test_a_missing_leaf_a_wrong_shape_and_a_wrong_type_are_refused(theirs, ours, tmp_path):
    where = (WEIGHTS, theirs, f"our {ours}")
    path = write_directory(tmp_path)
    array = load_file(path / WEIGHTS)[theirs]
    shape = f"expected is {list(array.shape)}"
    assert_refused(write_directory(tmp_path, without=(theirs,)), "lacks", *where, shape)
    transposed = np.ascontiguousarray(np.expand_dims(array, 0).T)
    path = write_directory(tmp_path, tensors={theirs: transposed})
    assert_refused(path, *where, f"has shape {list(transposed.shape)}", shape)
    path = write_directory(tmp_path, tensors={theirs: array.astype(np.int8)})
    assert_refused(path, *where, "is I8", "F32, F16, BF16")


def test_an_extra_leaf_is_refused(tmp_path):
    name = "decoder.block.3.layer.1.EncDecAttention.q.weight"
    path = write_directory(tmp_path, tensors={name: np.ones((15, 12), np.float32)})
    assert_refused(path, str(path / WEIGHTS), name, f"nearest: {QUERY}", "config.json")


def test_save_refuses_what_it_cannot_write(tmp_path):
    config = CONFIGS["1.1-untied"]
    params = make_params(config)
    for kwargs, parts in (
        ({"dtype": "float64"}, ("unknown dtype 'float64'", "float32")),
        (
            {"config": dataclasses.replace(config, mlp_dim=15)},
            ("mlp/wi_0/kernel", "(12, 14)", "15"),
        ),
        ({"config": CONFIGS["1.1-tied"]}, ("logits_dense/kernel", "no such parameter")),
        ({"config": CONFIGS["1.0-untied"]}, ("mlp/wi/kernel is missing", "(12, 14)")),
        ({"config": dataclasses.replace(config, mlp_activations=("elu",))}, ("('elu',)", "silu")),
        ({"config": dataclasses.replace(config, mlp_activations=("linear", "gelu"))}, ("alone",)),
    ):
        with pytest.raises(ValueError, match=has_all(*parts)):
            hf_checkpoints.save(tmp_path / "new", params, **({"config": config} | kwargs))
        assert not (tmp_path / "new").exists()
    large = jax.tree.map(lambda x: x * 1e6, params)
    with pytest.raises(ValueError, match=has_all("too large for float16", "bfloat16 or float32")):
        hf_checkpoints.save(tmp_path / "new", large, config, "float16")
