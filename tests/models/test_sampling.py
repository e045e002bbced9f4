"""Sampling from a T5: scores against teacher forcing, ends, independence, and the loop."""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clp_jax.models import sampling, t5
from clp_jax.models.decoding import Decoding

CONFIG = t5.T5Config(
    vocab_size=6,  # so few that padding (0) and EOS (1) are drawn often
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=24,
    mlp_activations=("gelu", "linear"),
)
PROMPTS = np.array(
    [[5, 2, 3, 4, 1], [3, 1, 0, 0, 0], [2, 2, 5, 1, 0], [4, 0, 0, 0, 0]], dtype=np.int32
)
MODULE = t5.Transformer(CONFIG)


@functools.cache
def t5_params():
    tokens = jnp.ones((1, 2), jnp.int32)
    init = jax.jit(lambda key: MODULE.init(key, tokens, tokens, tokens, enable_dropout=False))
    return init(jax.random.key(0))["params"]


sample = jax.jit(sampling.sample, static_argnames=("module", "decoding", "axis_name"))


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@jax.jit
def teacher_forced(params, prompts, samples):
    inputs = jnp.pad(samples.tokens, ((0, 0), (1, 0)))[:, :-1]
    return MODULE.apply({"params": params}, prompts, inputs, samples.mask, enable_dropout=False)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_log_probs_equal_teacher_forcing(temperature):
    prompts = np.tile(PROMPTS, (8, 1))
    decoding = Decoding(12, temperature=temperature)
    samples = sample(MODULE, t5_params(), prompts, keys(len(prompts)), decoding)
    # The case that a mask made from the tokens gets wrong: padding, and a later token.
    assert np.any((samples.tokens == 0) & (samples.mask == 1))
    assert np.any(samples.mask == 0)
    log_probs = jax.nn.log_softmax(teacher_forced(t5_params(), prompts, samples))
    taken = np.take_along_axis(np.asarray(log_probs), np.asarray(samples.tokens)[..., None], 2)
    np.testing.assert_allclose(samples.log_probs, taken[..., 0] * samples.mask, atol=1e-5, rtol=0)


def test_greedy_takes_the_most_probable_token_whatever_the_key():
    decoding = Decoding(12, temperature=0.0, top_k=3, top_p=0.5)
    samples = sample(MODULE, t5_params(), PROMPTS, keys(4), decoding)
    best = np.argmax(teacher_forced(t5_params(), PROMPTS, samples), axis=-1)
    np.testing.assert_array_equal(samples.tokens, best * (samples.mask == 1))
    other = sample(MODULE, t5_params(), PROMPTS, keys(4, seed=1), decoding)
    np.testing.assert_array_equal(samples.tokens, other.tokens)


def test_sequences_end_at_the_first_eos():
    prompts = np.tile(PROMPTS, (8, 1))
    samples = sample(MODULE, t5_params(), prompts, keys(32), Decoding(12))
    assert samples.tokens.dtype == jnp.int32
    assert samples.mask.dtype == samples.log_probs.dtype == jnp.float32
    lengths = []
    for tokens, mask, log_probs in zip(
        *jax.tree.map(np.asarray, (samples.tokens, samples.mask, samples.log_probs)), strict=True
    ):
        ends = np.flatnonzero(tokens == 1)
        length = ends[0] + 1 if len(ends) else 12
        np.testing.assert_array_equal(mask, np.arange(12) < length)
        np.testing.assert_array_equal(tokens[length:], 0)
        np.testing.assert_array_equal(log_probs[length:], 0)
        assert np.all(log_probs[:length] < 0)
        lengths.append(length)
    assert len(set(lengths)) > 3


def test_same_key_same_tokens_and_other_key_other_tokens():
    run = functools.partial(sample, MODULE, t5_params(), PROMPTS, decoding=Decoding(12))
    first, again, other = run(keys(4)), run(keys(4)), run(keys(4, seed=1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first.tokens != other.tokens)
    raw = run(jax.random.key_data(keys(4)))
    np.testing.assert_array_equal(first.tokens, raw.tokens)


def test_tokens_do_not_depend_on_the_rest_of_the_batch():
    decoding = Decoding(12)
    together = sample(MODULE, t5_params(), PROMPTS, keys(4), decoding)
    for i in range(4):
        alone = sample(MODULE, t5_params(), PROMPTS[i : i + 1], keys(4)[i : i + 1], decoding)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
        np.testing.assert_allclose(alone.log_probs[0], together.log_probs[i], atol=1e-5)
    reverse = sample(MODULE, t5_params(), PROMPTS[::-1], keys(4)[::-1], decoding)
    np.testing.assert_array_equal(reverse.tokens[::-1], together.tokens)


def test_a_shorter_limit_gives_a_prefix():
    short, long = (sample(MODULE, t5_params(), PROMPTS, keys(4), Decoding(n)) for n in (4, 12))
    np.testing.assert_array_equal(short.tokens, long.tokens[:, :4])
    np.testing.assert_allclose(short.log_probs, long.log_probs[:, :4], atol=1e-6)


class EndsAtPrompt(nn.Module):
    """Its only possible token is 2, and from the position that the prompt's token says on, EOS."""

    record: Callable[[int], None]  # called at each decoding step

    def encode(self, encoder_input_tokens, enable_dropout=True):
        return encoder_input_tokens

    @nn.compact
    def decode(self, encoded, prompts, inputs, targets, decode=False, **unused):
        started = self.has_variable("cache", "cache_index")
        index = self.variable("cache", "cache_index", lambda: jnp.int32(0))
        if started:
            jax.debug.callback(lambda i: self.record(int(i)), index.value)
            index.value += 1
        token = jnp.where(encoded[:, :1] <= index.value, 1, 2)
        return jnp.where(jnp.arange(4) == token[..., None], 0.0, -1e9)


@pytest.mark.parametrize(
    ("ends", "expected"), [([1, 1, 1], 1), ([3, 1, 2], 3), ([3, 99, 2], 6), ([6, 1, 1], 6)]
)
def test_the_loop_stops_when_all_have_ended(ends, expected):
    steps = []
    samples = sampling.sample(
        EndsAtPrompt(steps.append),
        {},
        jnp.array(ends)[:, None],
        keys(len(ends)),
        Decoding(6),
    )
    np.testing.assert_array_equal(samples.mask.sum(1), np.minimum(ends, 6))
    jax.effects_barrier()
    assert steps == list(range(expected))


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


def lowered(axis_name):
    return jax.jit(vmapped(axis_name, Decoding(12))).lower(*groups())


@functools.cache
def compiled():
    return lowered("policy").compile()


def test_vmapped_equals_separate_calls():
    decoding = Decoding(12)
    together = compiled()(*groups())
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


def test_axis_name_spares_a_select_over_the_cache():
    def lowered_selects(axis_name):
        text = lowered(axis_name).as_text().splitlines()
        return sum("stablehlo.select" in x and "tensor<2x4x2x12x8xf32>" in x for x in text)

    # The cache has shape [policies, batch, heads, positions, head_dim], for keys and for values.
    assert lowered_selects("policy") == 0
    assert lowered_selects(None) == 2  # so the test would see them
    # Each is written in place: no other operation but an update of a slice makes a whole cache.
    made = re.findall(r"= f32\[2,4,2,12,8\]\S* ([\w-]+)\(", compiled().as_text())
    assert made.count("dynamic-update-slice") == 2
    assert not set(made) & {"select", "scatter", "add", "convert", "transpose"}


def test_the_loop_has_no_needless_work():
    function = functools.partial(sampling.sample, MODULE, decoding=Decoding(12))
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
    decoding = Decoding(12)
    plain = sample(
        Wrapped(t5.Transformer(CONFIG)), {"inner": t5_params()}, PROMPTS, keys(4), decoding
    )
    ours = sample(MODULE, t5_params(), PROMPTS, keys(4), decoding)
    np.testing.assert_array_equal(plain.tokens, ours.tokens)
    np.testing.assert_allclose(plain.log_probs, ours.log_probs, atol=1e-5)


def test_wrong_number_of_keys():
    with pytest.raises(ValueError, match=r"keys has shape \(3,\) for 4 prompts"):
        sampling.sample(MODULE, t5_params(), PROMPTS, keys(3), Decoding(2))
