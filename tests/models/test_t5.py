"""The T5 model against a re-implementation in numpy, and its decoding against teacher forcing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_t5 import numpy_t5

from clp_jax.models import t5

SIZES = {
    "vocab_size": 23,
    "emb_dim": 12,
    "num_heads": 3,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "head_dim": 5,
    "mlp_dim": 14,
}
CONFIGS = {
    "1.0": t5.T5Config(**SIZES, mlp_activations=("relu",), logits_via_embedding=True),
    "1.1": t5.T5Config(**SIZES, mlp_activations=("gelu", "linear"), logits_via_embedding=False),
}
VERSIONS = pytest.mark.parametrize("version", sorted(CONFIGS))


def make_batch(encoder_lengths=(150, 40, 1), decoder_lengths=(25, 20, 3)):
    """Prompts and targets of differing lengths, padded with 0."""
    rng = np.random.default_rng(0)
    arrays = []
    for lengths in (encoder_lengths, decoder_lengths):
        tokens = np.zeros((len(lengths), max(lengths)), np.int32)
        for row, length in zip(tokens, lengths, strict=True):
            row[:length] = rng.integers(1, SIZES["vocab_size"], length)
        arrays.append(tokens)
    encoder_tokens, targets = arrays
    return encoder_tokens, np.pad(targets, ((0, 0), (1, 0)))[:, :-1], targets


@functools.cache
def make_params(config, seed=0):
    """Initial parameters, but larger biases and norm scales that are not all one."""
    tokens = jnp.ones((1, 2), jnp.int32)
    module = t5.Transformer(config)
    params = jax.jit(lambda k: module.init(k, tokens, tokens, tokens, enable_dropout=False))(
        jax.random.key(seed)
    )["params"]

    def perturb(path, x):
        noise = jax.random.normal(jax.random.key(len(str(path)) + x.size), x.shape)
        return x + noise * {"scale": 0.3, "rel_embedding": 1.0}.get(path[-1].key, 0.0)

    return jax.tree_util.tree_map_with_path(perturb, params)


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, encoder_tokens, inputs, targets, dropout_key=None, **segment_ids):
    return t5.Transformer(config).apply(
        {"params": params},
        encoder_tokens,
        inputs,
        targets,
        enable_dropout=dropout_key is not None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        **segment_ids,
    )


@VERSIONS
def test_forward_pass_agrees_with_numpy(version):
    config = CONFIGS[version]
    params = make_params(config)
    encoder_tokens, inputs, targets = make_batch()
    logits = forward(config, params, encoder_tokens, inputs, targets)
    for i in range(len(targets)):
        length = np.count_nonzero(targets[i])
        prompt = encoder_tokens[i][encoder_tokens[i] > 0]
        expected = numpy_t5(params, config, prompt, inputs[i, :length])
        np.testing.assert_allclose(logits[i, :length], expected, atol=1e-5)


def test_parameters_have_the_names_shapes_and_axes_of_t5x():
    attention = {
        "key/kernel": ((12, 15), ("embed", "joined_kv")),
        "out/kernel": ((15, 12), ("joined_kv", "embed")),
        "query/kernel": ((12, 15), ("embed", "joined_kv")),
        "value/kernel": ((12, 15), ("embed", "joined_kv")),
    }
    mlp = {
        "1.0": {"wi/kernel": ((12, 14), ("embed", "mlp"))},
        "1.1": {f"wi_{i}/kernel": ((12, 14), ("embed", "mlp")) for i in range(2)},
    }
    norm = ((12,), ("embed",))
    for version, config in CONFIGS.items():
        expected = {"token_embedder/embedding": ((23, 12), ("vocab", "embed"))}
        for stack, parts, norms in (
            ("encoder", ["attention"], ["pre_attention_layer_norm"]),
            (
                "decoder",
                ["self_attention", "encoder_decoder_attention"],
                ["pre_self_attention_layer_norm", "pre_cross_attention_layer_norm"],
            ),
        ):
            bias = ((3, 32), ("heads", "relpos_buckets"))
            expected[f"{stack}/relpos_bias/rel_embedding"] = bias
            expected[f"{stack}/{stack}_norm/scale"] = norm
            for i in range(2):
                layer = f"{stack}/layers_{i}"
                for part in parts:
                    expected |= {f"{layer}/{part}/{name}": x for name, x in attention.items()}
                expected |= {f"{layer}/mlp/{name}": x for name, x in mlp[version].items()}
                expected[f"{layer}/mlp/wo/kernel"] = ((14, 12), ("mlp", "embed"))
                expected |= {f"{layer}/{x}/scale": norm for x in [*norms, "pre_mlp_layer_norm"]}
        if version == "1.1":
            expected["decoder/logits_dense/kernel"] = ((12, 23), ("embed", "vocab"))

        tokens = jnp.ones((1, 2), jnp.int32)
        init = functools.partial(t5.Transformer(config).init, enable_dropout=False)
        variables = jax.eval_shape(init, jax.random.key(0), tokens, tokens, tokens)
        assert set(variables) == {"params", "params_axes"}
        flat = jax.tree_util.tree_leaves_with_path(variables["params"])
        names = ["/".join(key.key for key in path) for path, _ in flat]
        assert dict(zip(names, [x.shape for _, x in flat], strict=True)) == {
            name: shape for name, (shape, _) in expected.items()
        }
        assert all(x.dtype == jnp.float32 for _, x in flat)
        for name, (_, axes) in expected.items():
            *path, leaf = name.split("/")
            node = variables["params_axes"]
            for key in path:
                node = node[key]
            assert node[f"{leaf}_axes"].names == axes


def test_initial_scales():
    config = t5.T5Config(
        512,
        emb_dim=256,
        num_heads=4,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=64,
        mlp_dim=300,
    )
    tokens = jnp.ones((1, 2), jnp.int32)
    params = jax.jit(
        lambda k: t5.Transformer(config).init(k, tokens, tokens, tokens, enable_dropout=False)
    )(jax.random.key(0))["params"]
    layer = params["encoder"]["layers_0"]
    for x, std in (
        (params["token_embedder"]["embedding"], 1.0),
        (layer["attention"]["query"]["kernel"], (256 * 64) ** -0.5),
        (layer["attention"]["key"]["kernel"], 256**-0.5),
        (layer["attention"]["value"]["kernel"], 256**-0.5),
        (layer["attention"]["out"]["kernel"], 256**-0.5),
        (layer["mlp"]["wi"]["kernel"], 256**-0.5),
        (layer["mlp"]["wo"]["kernel"], 300**-0.5),
        (params["decoder"]["logits_dense"]["kernel"], 256**-0.5),
        (params["decoder"]["relpos_bias"]["rel_embedding"], (2 / (4 + 32)) ** 0.5),
    ):
        assert float(x.std()) == pytest.approx(std, rel=0.1)
    np.testing.assert_array_equal(params["encoder"]["encoder_norm"]["scale"], 1.0)


def decode_with_cache(config, params, encoder_tokens, inputs, project):
    """All logits [B, L, vocab], a position at a time, by the protocol of t5x's models."""
    module = t5.Transformer(config)
    dummies = [np.ones_like(x) for x in (encoder_tokens, inputs, inputs)]

    @jax.jit
    def start():
        _, made = module.apply(
            {"params": params}, *dummies, decode=True, enable_dropout=False, mutable=["cache"]
        )
        encoded = module.apply(
            {"params": params}, encoder_tokens, enable_dropout=False, method=module.encode
        )
        if project:
            encoded = module.apply({"params": params}, encoded, method=module.project_encoded)
        return made["cache"], encoded

    cache, encoded = start()

    @jax.jit
    def step(cache, token):
        return module.apply(
            {"params": params, "cache": cache},
            encoded,
            encoder_tokens,
            token,
            token,
            enable_dropout=False,
            decode=True,
            max_decode_length=inputs.shape[1],
            mutable=["cache"],
            method=module.decode,
        )

    logits = []
    for i in range(inputs.shape[1]):
        step_logits, updated = step(cache, inputs[:, i : i + 1])
        cache = updated["cache"]
        logits.append(step_logits)
    return np.concatenate(logits, axis=1)


@VERSIONS
@pytest.mark.parametrize("project", [False, True])
def test_cached_decoding_equals_teacher_forcing(version, project):
    config = CONFIGS[version]
    params = make_params(config)
    encoder_tokens, inputs, targets = make_batch()
    inputs[0, 5] = 0  # a pad token that was sampled is a token as any other
    targets = np.maximum(targets, 1)  # and so are those after the end
    forced = forward(config, params, encoder_tokens, inputs, targets)
    cached = decode_with_cache(config, params, encoder_tokens, inputs, project)
    np.testing.assert_allclose(
        jax.nn.log_softmax(cached), jax.nn.log_softmax(forced), rtol=0, atol=1e-5
    )


def test_masked_targets_are_not_attended_to():
    config = CONFIGS["1.1"]
    params = make_params(config)
    encoder_tokens, inputs, targets = make_batch()
    targets[0, 4] = 0
    changed = inputs.copy()
    changed[0, 4] = inputs[0, 4] % 20 + 1
    logits, after = (forward(config, params, encoder_tokens, x, targets) for x in (inputs, changed))
    np.testing.assert_array_equal(logits[0, 5:], after[0, 5:])
    assert np.abs(logits[0, 4] - after[0, 4]).max() > 1e-3


def test_packed_examples_do_not_see_each_other():
    config = CONFIGS["1.1"]
    params = make_params(config)
    encoder_tokens, inputs, targets = make_batch((6, 4), (5, 3))
    separate = forward(config, params, encoder_tokens, inputs, targets)

    def pack(x, first, second):
        return np.concatenate([x[0, :first], x[1, :second]])[None]

    packed = forward(
        config,
        params,
        pack(encoder_tokens, 6, 4),
        pack(inputs, 5, 3),
        pack(targets, 5, 3),
        encoder_segment_ids=np.repeat([1, 2], (6, 4))[None],
        decoder_segment_ids=np.repeat([1, 2], (5, 3))[None],
    )
    np.testing.assert_allclose(packed[0, :5], separate[0], atol=1e-5)
    np.testing.assert_allclose(packed[0, 5:], separate[1, :3], atol=1e-5)


def primitives(jaxpr):
    """Every equation of a jaxpr and of those inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


@VERSIONS
def test_bfloat16_keeps_softmax_statistics_and_logits_in_float32(version):
    exact = CONFIGS[version]
    config = t5.T5Config(**{**vars(exact), "dtype": "bfloat16"})
    assert config == t5.T5Config(**{**vars(exact), "dtype": jnp.bfloat16})
    assert hash(config) != hash(exact)
    params = make_params(exact)
    encoder_tokens, inputs, targets = make_batch()

    logits = forward(config, params, encoder_tokens, inputs, targets)
    assert logits.dtype == jnp.float32
    expected = forward(exact, params, encoder_tokens, inputs, targets)
    difference = np.abs(logits - expected)[targets > 0]
    assert 0 < difference.max() < 0.05 * np.abs(expected).max()

    jaxpr = jax.make_jaxpr(forward, static_argnums=0)(
        config, params, encoder_tokens, inputs, targets
    ).jaxpr
    equations = list(primitives(jaxpr))
    for name in ("exp", "rsqrt", "reduce_sum"):
        found = [eqn for eqn in equations if eqn.primitive.name == name]
        assert found
        assert all(eqn.outvars[0].aval.dtype == jnp.float32 for eqn in found), name
    hidden = [eqn for eqn in equations if eqn.primitive.name == "dot_general"]
    assert sum(eqn.invars[0].aval.dtype == jnp.bfloat16 for eqn in hidden) > 20
    cache = jax.eval_shape(
        lambda x: t5.Transformer(config).apply(
            {"params": params}, x, x, x, decode=True, enable_dropout=False, mutable=["cache"]
        ),
        encoder_tokens,
    )[1]["cache"]
    key = cache["decoder"]["layers_0"]["self_attention"]["cached_key"]
    assert (key.dtype, key.shape) == (jnp.bfloat16, (3, 3, 150, 5))


def test_dropout_follows_its_key_and_is_off_on_demand():
    one_layer = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    config = t5.T5Config(**{**vars(CONFIGS["1.0"]), **one_layer, "dropout_rate": 0.5})
    params = make_params(config)
    batch = make_batch((9, 4), (5, 3))

    first, again, other = (
        forward(config, params, *batch, dropout_key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    no_rate = t5.T5Config(**{**vars(config), "dropout_rate": 0.0})
    np.testing.assert_allclose(
        forward(config, params, *batch),
        forward(no_rate, params, *batch, dropout_key=jax.random.key(1)),
        atol=1e-5,
    )


def test_decoding_refuses_what_it_cannot_do():
    config = CONFIGS["1.1"]
    module, params = t5.Transformer(config), make_params(config)
    tokens = jnp.ones((2, 4), jnp.int32)

    def decode(variables, *args):
        return jax.eval_shape(
            lambda v, *a: module.apply(v, *a, decode=True, enable_dropout=False, mutable=["cache"]),
            variables,
            *args,
        )

    _, made = decode({"params": params}, tokens, tokens, tokens)
    with pytest.raises(ValueError, match=r"\(2, 4\).*one token per sequence: \(2, 1\)"):
        decode({"params": params, **made}, tokens, tokens, tokens)
    with pytest.raises(ValueError, match="segment ids"):
        decode({"params": params}, tokens, tokens, tokens, tokens, tokens)
    with pytest.raises(ValueError, match="segment ids"):
        jax.eval_shape(
            lambda: forward(config, params, tokens, tokens, tokens, decoder_segment_ids=tokens)
        )
