"""Sampling: distributions against the softmax, scores against teacher forcing, and its loop."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clp_jax.models import sampling, t5

DRAWS = 20_000
CONFIG = t5.T5Config(
    vocab_size=6,  # so few that padding (0) and EOS (1) are drawn often
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=2,
    head_dim=8,
    mlp_dim=24,
    mlp_activations=("gelu", "linear"),
)
PROMPTS = np.array(
    [[5, 2, 3, 4, 1], [3, 1, 0, 0, 0], [2, 2, 5, 1, 0], [4, 0, 0, 0, 0]], dtype=np.int32
)
MODULE = t5.Transformer(CONFIG)


@functools.cache
def t5_params(vocab_size=CONFIG.vocab_size):
    module = t5.Transformer(t5.T5Config(**{**vars(CONFIG), "vocab_size": vocab_size}))
    tokens = jnp.ones((1, 2), jnp.int32)
    return module.init(jax.random.key(0), tokens, tokens, tokens, enable_dropout=False)["params"]


sample = jax.jit(sampling.sample, static_argnames=("module", "decoding", "axis_name"))


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


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
        table = self.param("table", nn.initializers.zeros, (1, 1))
        started = self.has_variable("cache", "cache_index")
        index = self.variable("cache", "cache_index", lambda: jnp.int32(0))
        row = table[jnp.minimum(index.value, len(table) - 1)]
        if started:
            index.value += 1
        return jnp.broadcast_to(row, (*decoder_input_tokens.shape, row.shape[-1]))


def table_samples(logits, n=DRAWS, **options):
    """Tokens [n, L] drawn from a table [L, V]; its last token, V, counts as EOS: none has it."""
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    decoding = sampling.Decoding(len(logits), eos_id=logits.shape[-1], **options)
    prompts = jnp.ones((n, 1), jnp.int32)
    return sample(TableModule(), {"table": jnp.array(logits)}, prompts, keys(n), decoding)


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
    weights = np.exp(np.float64(logits) - np.max(logits))
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
    module = t5.Transformer(t5.T5Config(**{**vars(CONFIG), "vocab_size": 50}))
    params = t5_params(50)
    prompt = jnp.array([[7, 30, 2]])
    start = jnp.zeros((1, 1), jnp.int32)
    logits = module.apply({"params": params}, prompt, start, start + 1, enable_dropout=False)
    samples = sample(module, params, prompt.repeat(DRAWS, 0), keys(DRAWS), sampling.Decoding(1))
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
        ({"top_p": 0.5}, 4),
        ({"top_p": 1e-6}, 1),
        ({"top_p": 0.5, "temperature": 2.0}, 10),
        ({"top_p": 0.8, "top_k": 6}, 4),
    ],
)
def test_temperature_top_k_and_top_p_restrict_and_renormalise(options, support):
    logits = 1.5 * np.random.default_rng(3).normal(size=40)
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


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=12).filter(any),
    st.integers(1, 13),
    st.floats(0.01, 1.0),
)
def test_keep_top_keeps_the_smallest_set_and_its_ties(weights, k, p):
    probs = np.float32(weights) / np.float32(sum(weights))
    ordered = np.sort(probs)[::-1]
    by_count = sampling._keep_top(jnp.array([probs]), jnp.ones((1, len(probs))), float(k))
    least = ordered[min(k, len(probs)) - 1]
    np.testing.assert_array_equal(by_count[0], np.where(probs >= least, probs, 0))

    # A share halfway between two possible ones, so that rounding does not matter.
    shares = np.cumsum(ordered)
    rank = int(np.searchsorted(shares, min(p, shares[-1])))
    share = (shares[rank] + (shares[rank - 1] if rank else 0)) / 2
    if share < shares[rank]:
        by_mass = sampling._keep_top(jnp.array([probs]), jnp.array([probs]), jnp.float32(share))
        np.testing.assert_array_equal(by_mass[0], np.where(probs >= ordered[rank], probs, 0))


def teacher_forced(params, prompts, samples):
    inputs = np.pad(samples.tokens, ((0, 0), (1, 0)))[:, :-1]
    return MODULE.apply({"params": params}, prompts, inputs, samples.mask, enable_dropout=False)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_log_probs_equal_teacher_forcing(temperature):
    prompts = np.tile(PROMPTS, (8, 1))
    decoding = sampling.Decoding(12, temperature=temperature)
    samples = sample(MODULE, t5_params(), prompts, keys(len(prompts)), decoding)
    # The case that a mask made from the tokens gets wrong: padding, and a later token.
    assert np.any((samples.tokens == 0) & (samples.mask == 1))
    assert np.any(samples.mask == 0)
    log_probs = jax.nn.log_softmax(teacher_forced(t5_params(), prompts, samples))
    taken = np.take_along_axis(np.asarray(log_probs), np.asarray(samples.tokens)[..., None], 2)
    np.testing.assert_allclose(samples.log_probs, taken[..., 0] * samples.mask, atol=1e-5, rtol=0)


def test_greedy_takes_the_most_probable_token_whatever_the_key():
    decoding = sampling.Decoding(12, temperature=0.0, top_k=3, top_p=0.5)
    samples = sample(MODULE, t5_params(), PROMPTS, keys(4), decoding)
    best = np.argmax(teacher_forced(t5_params(), PROMPTS, samples), axis=-1)
    np.testing.assert_array_equal(samples.tokens, best * (samples.mask == 1))
    other = sample(MODULE, t5_params(), PROMPTS, keys(4, seed=1), decoding)
    np.testing.assert_array_equal(samples.tokens, other.tokens)


def test_sequences_end_at_the_first_eos():
    decoding = sampling.Decoding(12, eos_id=3)
    samples = sample(MODULE, t5_params(), np.tile(PROMPTS, (8, 1)), keys(32), decoding)
    assert samples.tokens.dtype == jnp.int32
    assert samples.mask.dtype == samples.log_probs.dtype == jnp.float32
    lengths = []
    for tokens, mask, log_probs in zip(
        *jax.tree.map(np.asarray, (samples.tokens, samples.mask, samples.log_probs)), strict=True
    ):
        ends = np.flatnonzero(tokens == 3)
        length = ends[0] + 1 if len(ends) else 12
        np.testing.assert_array_equal(mask, np.arange(12) < length)
        np.testing.assert_array_equal(tokens[length:], 0)
        np.testing.assert_array_equal(log_probs[length:], 0)
        assert np.all(log_probs[:length] < 0)
        lengths.append(length)
    assert len(set(lengths)) > 3


def test_same_key_same_tokens_and_other_key_other_tokens():
    run = functools.partial(sample, MODULE, t5_params(), PROMPTS, decoding=sampling.Decoding(12))
    first, again, other = run(keys(4)), run(keys(4)), run(keys(4, seed=1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first.tokens != other.tokens)
    raw = run(jax.random.key_data(keys(4)))
    np.testing.assert_array_equal(first.tokens, raw.tokens)


def test_tokens_do_not_depend_on_the_rest_of_the_batch():
    decoding = sampling.Decoding(12)
    together = sample(MODULE, t5_params(), PROMPTS, keys(4), decoding)
    for i in range(4):
        alone = sample(MODULE, t5_params(), PROMPTS[i : i + 1], keys(4)[i : i + 1], decoding)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
        np.testing.assert_allclose(alone.log_probs[0], together.log_probs[i], atol=1e-5)
    reverse = sample(MODULE, t5_params(), PROMPTS[::-1], keys(4)[::-1], decoding)
    np.testing.assert_array_equal(reverse.tokens[::-1], together.tokens)


def test_a_shorter_limit_gives_a_prefix():
    short, long = (
        sample(MODULE, t5_params(), PROMPTS, keys(4), sampling.Decoding(n)) for n in (4, 12)
    )
    np.testing.assert_array_equal(short.tokens, long.tokens[:, :4])
    np.testing.assert_allclose(short.log_probs, long.log_probs[:, :4], atol=1e-6)


class EndsAtPrompt(nn.Module):
    """Its only possible token is 2, and from the position that the prompt's token says on, EOS."""

    steps: Any  # a list that gets one entry per decoding step

    def encode(self, encoder_input_tokens, enable_dropout=True):
        return encoder_input_tokens

    @nn.compact
    def decode(self, encoded, prompts, inputs, targets, decode=False, **unused):
        started = self.has_variable("cache", "cache_index")
        index = self.variable("cache", "cache_index", lambda: jnp.int32(0))
        if started:
            jax.debug.callback(lambda i: self.steps.append(int(i)), index.value)
            index.value += 1
        token = jnp.where(encoded[:, :1] <= index.value, 1, 2)
        return jnp.where(jnp.arange(4) == token[..., None], 0.0, -1e9)

    __hash__ = object.__hash__


@pytest.mark.parametrize(
    ("ends", "expected"), [([1, 1, 1], 1), ([3, 1, 2], 3), ([3, 99, 2], 6), ([6, 1, 1], 6)]
)
def test_the_loop_stops_when_all_have_ended(ends, expected):
    module = EndsAtPrompt([])
    samples = sampling.sample(
        module, {}, jnp.array(ends)[:, None], keys(len(ends)), sampling.Decoding(6)
    )
    np.testing.assert_array_equal(samples.mask.sum(1), np.minimum(ends, 6))
    jax.effects_barrier()
    assert module.steps == list(range(expected))


def vmapped(axis_name, decoding):
    return jax.vmap(
        lambda params, prompts, keys: sampling.sample(
            MODULE, params, prompts, keys, decoding, axis_name
        ),
        axis_name=axis_name,
    )


@functools.cache
def groups():
    """Two policies, each with prompts and keys of its own."""
    params = jax.tree.map(lambda x: jnp.stack([x, 1.3 * x]), t5_params())
    return params, jnp.stack([PROMPTS, PROMPTS[::-1]]), keys(8).reshape(2, 4)


def test_vmapped_equals_separate_calls():
    decoding = sampling.Decoding(12)
    together = jax.jit(vmapped("policy", decoding))(*groups())
    assert np.any(together.tokens[0] != together.tokens[1])
    for i in range(2):
        params, prompts, key = jax.tree.map(lambda x: x[i], groups())  # noqa: B023
        alone = sample(MODULE, params, prompts, key, decoding)
        np.testing.assert_array_equal(together.tokens[i], alone.tokens)
        np.testing.assert_array_equal(together.mask[i], alone.mask)
        np.testing.assert_allclose(together.log_probs[i], alone.log_probs, atol=1e-5)


def equations(jaxpr):
    """Every equation of a jaxpr and of those inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def loop_body(function, *args):
    """The body of the sampling loop: of the while_loop that carries the most."""
    loops = [
        eqn.params["body_jaxpr"].jaxpr
        for eqn in equations(jax.make_jaxpr(function)(*args).jaxpr)
        if eqn.primitive.name == "while"
    ]
    return max(loops, key=lambda body: len(body.outvars))


@pytest.mark.parametrize(("axis_name", "selects"), [("policy", 0), (None, 4)])
def test_axis_name_spares_a_select_over_the_cache(axis_name, selects):
    body = loop_body(vmapped(axis_name, sampling.Decoding(12)), *groups())
    cache_shape = (2, 4, 2, 12, 8)  # policies, batch, heads, positions, head_dim
    assert sum(x.aval.shape == cache_shape for x in body.outvars) == 4
    found = [eqn for eqn in equations(body) if eqn.primitive.name == "select_n"]
    assert sum(eqn.outvars[0].aval.shape == cache_shape for eqn in found) == selects


def test_the_loop_has_no_needless_work():
    function = functools.partial(sampling.sample, MODULE, decoding=sampling.Decoding(12))
    body = loop_body(lambda p, x, k: function(p, x, k), t5_params(), PROMPTS, keys(4))
    names = {eqn.primitive.name for eqn in equations(body)}
    assert not names & {"sort", "top_k", "while", "scan", "random_bits", "pure_callback"}
    # The encoded prompts [4, 5, 16] are projected before the loop, not in it.
    shapes = {x.aval.shape for eqn in equations(body) for x in eqn.invars}
    assert (4, 5, 16) not in shapes
    assert (4, 2, 5, 8) in shapes


class Wrapped(nn.Module):
    """A T5 with the interface of t5x's module and nothing more."""

    inner: nn.Module

    def encode(self, *args, **kwargs):
        return self.inner.encode(*args, **kwargs)

    def decode(self, *args, **kwargs):
        return self.inner.decode(*args, **kwargs)


def test_a_module_without_project_encoded_will_do():
    decoding = sampling.Decoding(12)
    plain = sample(
        Wrapped(t5.Transformer(CONFIG)), {"inner": t5_params()}, PROMPTS, keys(4), decoding
    )
    ours = sample(MODULE, t5_params(), PROMPTS, keys(4), decoding)
    np.testing.assert_array_equal(plain.tokens, ours.tokens)
    np.testing.assert_allclose(plain.log_probs, ours.log_probs, atol=1e-5)


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
        sampling.Decoding(**{"max_decode_length": 4, field: value})


def test_wrong_number_of_keys():
    with pytest.raises(ValueError, match=r"keys has shape \(3,\) for 4 prompts"):
        sampling.sample(MODULE, t5_params(), PROMPTS, keys(3), sampling.Decoding(2))
