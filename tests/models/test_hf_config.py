"""config.json of Hugging Face directories: what is written, read, and refused."""

import dataclasses
import json

import numpy as np
import pytest
from hf_directories import (
    CONFIGS,
    EVERY_CONFIG,
    WEIGHTS,
    assert_refused,
    assert_trees_equal,
    expected_shapes,
    has_all,
    make_params,
    write_directory,
)

from clp_jax.models import hf_checkpoints


@EVERY_CONFIG
def test_config_json(config, tmp_path):
    generation = {"max_new_tokens": 7}
    hf_checkpoints.save(
        tmp_path, make_params(config), config, "bfloat16", eos_id=3, generation=generation
    )
    fields = json.loads((tmp_path / "config.json").read_text())
    gated = len(config.mlp_activations) == 2
    expected = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": 12,
        "d_kv": 5,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "dense_act_fn": "gelu_new" if gated else "relu",
        "is_gated_act": gated,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": config.logits_via_embedding,
        "scale_decoder_outputs": config.logits_via_embedding,
        "decoder_start_token_id": 0,
        "eos_token_id": 3,
        "torch_dtype": "bfloat16",
    }
    assert expected.items() <= fields.items()
    ids = {"decoder_start_token_id": 0, "eos_token_id": 3, "pad_token_id": 0}
    assert json.loads((tmp_path / "generation_config.json").read_text()) == ids | generation


def test_what_older_files_leave_out_is_as_it_was_then(tmp_path):
    absent = ("num_decoder_layers", "feed_forward_proj", "dense_act_fn", "is_gated_act")
    absent += ("relative_attention_max_distance", "decoder_start_token_id", "tie_word_embeddings")
    config = dataclasses.replace(CONFIGS["1.0-tied"], num_decoder_layers=2)
    path = write_directory(tmp_path, config, without=(*absent, "scale_decoder_outputs"))
    assert hf_checkpoints.read_config(path) == config


@pytest.mark.parametrize("activation", ["silu", "swish", "sigmoid", "tanh", "linear", "gelu"])
@pytest.mark.parametrize("gated", [True, False])
def test_other_activations(activation, gated, tmp_path):
    activations = (activation, "linear") if gated else (activation,)
    config = dataclasses.replace(CONFIGS["1.0-tied"], mlp_activations=activations)
    hf_checkpoints.save(tmp_path, make_params(config), config)
    assert hf_checkpoints.read_config(tmp_path) == config


def test_tied_but_not_scaled_is_an_output_layer_of_its_own(tmp_path):
    """As transformers 5 writes a T5 1.1 that it tied itself."""
    config = CONFIGS["1.1-untied"]
    fields = {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    for names in ("lm_head.weight",), ("lm_head.weight", "shared.weight"):
        copy = make_params(config)["token_embedder"]["embedding"]
        path = write_directory(
            tmp_path, fields=fields, tensors={"encoder.embed_tokens.weight": copy}, without=names
        )
        params = hf_checkpoints.load(path, expected_shapes(config))
        np.testing.assert_array_equal(params["decoder"]["logits_dense"]["kernel"], copy.T)
        np.testing.assert_array_equal(params["token_embedder"]["embedding"], copy)


@pytest.mark.parametrize("tied", [False, True, None])
def test_mt5_has_an_output_layer_of_its_own(tied, tmp_path):
    config = CONFIGS["1.1-untied"]
    without = ("scale_decoder_outputs", *(["tie_word_embeddings"] if tied is None else []))
    path = write_directory(
        tmp_path, fields={"model_type": "mt5", "tie_word_embeddings": tied}, without=without
    )
    assert_trees_equal(hf_checkpoints.load(path, expected_shapes(config)), make_params(config))
    without = (*without, "lm_head.weight")
    path = write_directory(
        tmp_path, fields={"model_type": "mt5", "tie_word_embeddings": tied}, without=without
    )
    assert_refused(
        path, *(["mt5", "model_type 't5'"] if tied else [WEIGHTS, "lacks lm_head.weight"])
    )


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"model_type": "umt5"}, ("unknown model_type 'umt5'", "mt5, t5")),
        ({"model_type": None}, ("unknown model_type 'None'",)),
        ({"feed_forward_proj": "gated-gello"}, ("'gated-gello'", "nearest: gated-gelu")),
        ({"feed_forward_proj": "gelu"}, ("unknown feed_forward_proj 'gelu'", "gelu_new")),
        ({"dense_act_fn": "relu"}, ("dense_act_fn is 'relu'", "expected 'gelu_new'")),
        ({"is_gated_act": False}, ("is_gated_act is False", "expected True")),
        ({"layer_norm_epsilon": 1e-5}, ("layer_norm_epsilon is 1e-05", "1e-06")),
        ({"relative_attention_num_buckets": 64}, ("num_buckets is 64", "32")),
        ({"relative_attention_max_distance": 256}, ("max_distance is 256", "128")),
        ({"pad_token_id": 3}, ("pad_token_id is 3", "0")),
        ({"decoder_start_token_id": 2}, ("decoder_start_token_id is 2", "0")),
        ({"is_encoder_decoder": False}, ("is_encoder_decoder is False", "True")),
        ({"d_model": "12"}, ("d_model is '12'", "integer >= 1")),
        ({"num_layers": 0}, ("num_layers is 0", "integer >= 1")),
        ({"dropout_rate": 1}, ("dropout_rate is 1", "[0, 1)")),
        ({"tie_word_embeddings": 0}, ("tie_word_embeddings is 0", "true or false")),
        ({"scale_decoder_outputs": True}, ("tie_word_embeddings is False", "not scaled")),
    ],
)
def test_a_config_of_what_our_t5_is_not_is_refused(fields, parts, tmp_path):
    path = write_directory(tmp_path, fields=fields)
    assert_refused(path, str(path / "config.json"), *parts)


def test_a_missing_size_is_refused(tmp_path):
    path = write_directory(tmp_path, without=("d_ff",))
    assert_refused(path, str(path / "config.json"), "d_ff is missing")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            {"vocab_size": 24},
            ("vocab_size is 23 there", "t5.T5Config.vocab_size is 24 here", "= 23"),
        ),
        ({"num_heads": 4}, ("num_heads is 3 there", "t5.T5Config.num_heads is 4 here")),
        ({"emb_dim": 8}, ("d_model is 12 there", "t5.T5Config.emb_dim is 8 here")),
        ({"num_encoder_layers": 3}, ("num_layers is 2 there", "num_encoder_layers is 3 here")),
        ({"num_decoder_layers": 2}, ("num_decoder_layers is 3 there", "is 2 here")),
        ({"head_dim": 4}, ("d_kv is 5 there", "t5.T5Config.head_dim is 4 here")),
        ({"mlp_dim": 8}, ("d_ff is 14 there", "t5.T5Config.mlp_dim is 8 here")),
        (
            {"mlp_activations": ("gelu",)},
            ("feed_forward_proj is gated-gelu there", "('gelu',) here"),
        ),
        (
            {"mlp_activations": ("silu", "linear")},
            ("is gated-gelu there", "('silu', 'linear') here"),
        ),
        (
            {"logits_via_embedding": True},
            ("lm_head", "logits_via_embedding is True here", "= False"),
        ),
    ],
)
def test_check_config_names_what_differs(change, parts, tmp_path):
    path, config = write_directory(tmp_path), dataclasses.replace(CONFIGS["1.1-untied"], **change)
    with pytest.raises(ValueError, match=has_all(str(path / "config.json"), *parts)):
        hf_checkpoints.check_config(path, config)
