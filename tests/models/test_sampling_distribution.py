"""The distribution that tokens are drawn from, against the softmax and against definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clp_jax.models import decoding as decoding_lib
from clp_jax.models import sampling, t5
from clp_jax.models.decoding import Decoding

DRAWS = 20_000

sample = jax.jit(sampling.sample, static_argnames=("module", "decoding", "axis_name"))


class TableModule(nn.Module):
    """Has the interface of t5x's module. Its logits are a table [position, vocab]."""

    def encode(self, encoder_input_tokens, enable_dropout=True):
        return encoder_input_tokens[..., None].astype(jnp.float32)

    @nn.compact
    def decode(
        self,
        encoded,
        encoder_input_tokens,
        decoder_input_tokens,
        decoder_target_tokens,
        enable_dropout=True,
        decode=False,
        max_decode_length=None,
    ):
        table = self.get_variable("params", "table")
        started = self.has_variable("cache", "cache_index")
        index = self.variable("cache", "cache_index", lambda: jnp.int32(0))
        row = table[jnp.minimum(index.value, len(table) - 1)]
        if started:
            index.value += 1
        return jnp.broadcast_to(row, (*decoder_input_tokens.shape, row.shape[-1]))


def table_samples(logits, n=DRAWS, **options):
    """Tokens [n, L] drawn from a table [L, V]; its last token, V, counts as EOS: none has it."""
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    decoding = Decoding(len(logits), eos_id=logits.shape[-1], **options)
    prompts = jnp.ones((n, 1), jnp.int32)
    return sample(
        TableModule(),
        {"table": jnp.array(logits)},
        prompts,
        jax.random.split(jax.random.key(0), n),
        decoding,
    )


def chi_square(tokens, probs):
    """The p-value of the counts of `tokens` under `probs`; tokens of probability 0 must not be."""
    counts = np.bincount(tokens, minlength=len(probs))
    assert counts[probs == 0].sum() == 0
    rare = probs * len(tokens) < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(probs[~rare], probs[rare].sum()) * len(tokens)
    likely = expected > 0
    return stats.chisquare(counts[likely], expected[likely] * counts.sum() / expected.sum()).pvalue


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("vocab_size", [1, 2, 7, 40, 333])
def test_frequencies_are_those_of_the_softmax(vocab_size):
    logits = 2.0 * np.random.default_rng(vocab_size).normal(size=vocab_size)
    samples = table_samples(logits)
    if vocab_size == 1:
        np.testing.assert_array_equal(samples.tokens, 0)
    else:
        assert chi_square(np.asarray(samples.tokens[:, 0]), softmax(logits)) > 1e-3
    expected = np.log(softmax(logits))[samples.tokens]
    np.testing.assert_allclose(samples.log_probs, expected, atol=1e-5)


def test_frequencies_of_a_t5_are_those_of_its_softmax():
    config = t5.T5Config(
        50, emb_dim=16, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, head_dim=8
    )
    module = t5.Transformer(config)
    prompt = jnp.array([[7, 30, 2]])
    start = jnp.zeros((1, 1), jnp.int32)
    init = jax.jit(lambda key: module.init(key, prompt, start, start, enable_dropout=False))
    params = init(jax.random.key(0))["params"]
    logits = jax.jit(
        lambda p: module.apply({"params": p}, prompt, start, start + 1, enable_dropout=False)
    )(params)
    samples = sample(
        module,
        params,
        prompt.repeat(DRAWS, 0),
        jax.random.split(jax.random.key(0), DRAWS),
        Decoding(1),
    )
    assert chi_square(np.asarray(samples.tokens[:, 0]), softmax(logits[0, 0])) > 1e-3


def test_positions_are_independent():
    logits = np.log([[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.1, 0.4]])
    tokens = np.asarray(table_samples(logits).tokens)
    joint = np.outer(*np.exp(logits)).ravel()
    assert chi_square(4 * tokens[:, 0] + tokens[:, 1], joint) > 1e-3


def restricted(logits, temperature=1.0, top_k=0, top_p=1.0):
    """The definition: keep the k most probable, of those the nucleus, and renormalise."""
    probs = softmax(np.asarray(logits) / temperature)
    order = np.argsort(-probs)
    if top_k:
        probs[order[top_k:]] = 0.0
        probs /= probs.sum()
    if top_p < 1:
        kept = 1 + np.searchsorted(np.cumsum(probs[order]), top_p)
        probs[order[kept:]] = 0.0
    return probs / probs.sum()


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({"temperature": 0.5}, 40),
        ({"temperature": 3.0}, 40),
        ({"top_k": 1}, 1),
        ({"top_k": 6}, 6),
        ({"top_k": 1000}, 40),
        ({"top_p": 0.5}, 3),
        ({"top_p": 1e-6}, 1),
        ({"top_p": 0.5, "temperature": 2.0}, 12),
        ({"top_p": 0.9, "top_k": 6}, 5),
    ],
)
def test_temperature_top_k_and_top_p_restrict_and_renormalise(options, support):
    logits = np.random.default_rng(3).normal(size=40)
    probs = restricted(logits, **options)
    assert np.count_nonzero(probs) == support
    samples = table_samples(logits, **options)
    tokens = np.asarray(samples.tokens[:, 0])
    if support == 1:
        np.testing.assert_array_equal(tokens, np.argmax(logits))
    else:
        assert chi_square(tokens, probs) > 1e-3
    # The reported log-probabilities are the model's, whatever the decoding.
    expected = np.log(softmax(logits))[tokens]
    np.testing.assert_allclose(samples.log_probs[:, 0], expected, atol=1e-5)


keep_top = jax.jit(decoding_lib._keep_top)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=12, max_size=12).filter(any),
    st.integers(1, 13),
    st.floats(0.01, 1.0),
)
def test_keep_top_keeps_the_smallest_set_and_its_ties(weights, k, p):
    probs = np.float32(weights) / np.float32(sum(weights))
    ordered = np.sort(probs)[::-1]
    by_count = keep_top(probs[None], np.ones((1, 12), np.float32), np.float32(k))
    least = ordered[min(k, 12) - 1]
    np.testing.assert_array_equal(by_count[0], np.where(probs >= least, probs, 0))

    # A share halfway between two that can be reached, so that rounding does not matter.
    shares = np.cumsum(ordered)
    rank = np.searchsorted(shares, min(p, shares[-1]))
    share = np.float32((shares[rank] + (shares[rank - 1] if rank else 0)) / 2)
    by_mass = keep_top(probs[None], probs[None], share)
    np.testing.assert_array_equal(by_mass[0], np.where(probs >= ordered[rank], probs, 0))


@pytest.mark.parametrize("prob", [1e-30, 0.25, 0.99999994])
def test_keep_top_tells_neighbouring_floats_apart(prob):
    probs = np.zeros((1, 12), np.float32)
    probs[0, 3] = prob
    probs[0, 5] = np.nextafter(np.float32(prob), np.float32(2))
    kept = keep_top(probs, np.ones((1, 12), np.float32), np.float32(1))
    np.testing.assert_array_equal(np.flatnonzero(kept[0]), [5])


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("max_decode_length", 0, "an integer >= 1"),
        ("max_decode_length", 2.5, "an integer >= 1"),
        ("temperature", -0.1, "a finite number >= 0"),
        ("temperature", float("nan"), "a finite number >= 0"),
        ("temperature", float("inf"), "a finite number >= 0"),
        ("top_k", -1, "an integer >= 0"),
        ("top_k", 0.9, "an integer >= 0"),
        ("top_p", 0.0, r"a number in \(0, 1\]"),
        ("top_p", 1.5, r"a number in \(0, 1\]"),
        ("top_p", float("nan"), r"a number in \(0, 1\]"),
        ("eos_id", 0, "an integer >= 1"),
    ],
)
def test_decoding_names_a_bad_value(field, value, valid):
    with pytest.raises(ValueError, match=rf"Decoding.{field} is {value}; valid is {valid}"):
        Decoding(**{"max_decode_length": 4, field: value})


def test_a_draw_at_an_edge_goes_to_the_next():
    weights = jnp.array([[0.0, 0.25, 0.0, 0.25, 0.5, 0.0]] * 4)
    uniforms = jnp.array([[0.0], [0.25], [0.5], [1 - 2**-24]], jnp.float32)
    np.testing.assert_array_equal(decoding_lib._invert_cumulative(weights, uniforms), [1, 3, 4, 4])
