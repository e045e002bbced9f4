import jax
import numpy as np
import pytest
from flax import traverse_util

from clp_jax.algorithm import subset
from clp_jax.models.t5 import T5Config, Transformer


def paths(tree):
    return set(traverse_util.flatten_dict(tree, sep="/"))


def test_full_and_none_take_everything_and_nothing(reference):
    conditioned, shared = subset.split(reference, subset.full())
    assert (paths(conditioned), paths(shared)) == (paths(reference), set())
    conditioned, shared = subset.split(reference, subset.none())
    assert (paths(conditioned), paths(shared)) == (set(), paths(reference))


def test_attention_takes_the_four_projections_of_each_attention_block(reference):
    conditioned, _ = subset.split(reference, subset.attention())
    blocks = ["encoder/layers_0/attention"] + [
        f"decoder/layers_{layer}/{name}"
        for layer in (0, 1)
        for name in ("self_attention", "encoder_decoder_attention")
    ]
    names = {f"{b}/{p}/kernel" for b in blocks for p in ("query", "key", "value", "out")}
    assert paths(conditioned) == names


def test_first_layers_counts_in_encoder_and_decoder(reference):
    conditioned, _ = subset.split(reference, subset.attention(first_layers=1))
    assert {p.split("/")[1] for p in paths(conditioned)} == {"layers_0"}
    assert len(paths(conditioned)) == 4 + 8


def test_first_layers_reads_the_whole_number():
    assert not subset.attention(first_layers=2)("decoder/layers_12/self_attention/out/kernel")
    assert subset.attention(first_layers=13)("decoder/layers_12/self_attention/out/kernel")


def test_logits_is_the_last_linear_layer(reference):
    conditioned, _ = subset.split(reference, subset.logits())
    assert paths(conditioned) == {"decoder/logits_dense/kernel"}


def test_matching_searches_the_path(reference):
    conditioned, _ = subset.split(reference, subset.matching(r"mlp/w[io]\b|mlp/wi_0"))
    assert paths(conditioned) == {p for p in paths(reference) if "mlp/wo/" in p or "wi_0" in p}


@pytest.mark.parametrize("chosen", [subset.full(), subset.attention(), subset.none()])
def test_merge_is_the_inverse_of_split(reference, chosen):
    merged = subset.merge(*subset.split(reference, chosen))
    assert paths(merged) == paths(reference)
    jax.tree.map(np.testing.assert_array_equal, merged, dict(reference))


def test_a_regex_that_matches_nothing(reference):
    with pytest.raises(ValueError, match="matching.*atention.*matches no parameter; the model has"):
        subset.split(reference, subset.matching("atention"))


def test_a_regex_that_is_none():
    with pytest.raises(ValueError, match="is not a regular expression"):
        subset.matching("(")


def test_logits_of_a_tied_model_names_the_way_out():
    tied = Transformer(T5Config(vocab_size=8, emb_dim=8, num_heads=1, num_encoder_layers=1,
                                num_decoder_layers=1, head_dim=8, mlp_dim=8, dropout_rate=0.0,
                                logits_via_embedding=True))  # fmt: skip
    tokens = np.ones([1, 2], np.int32)
    params = jax.eval_shape(
        lambda: tied.init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False)
    )["params"]
    with pytest.raises(ValueError, match="tied to the token embedding: use matching"):
        subset.split(params, subset.logits())


def test_no_layers():
    with pytest.raises(ValueError, match="first_layers=0"):
        subset.attention(first_layers=0)
