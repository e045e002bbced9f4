"""Losses of reward models against closed forms and finite differences; what they learn."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from scipy.special import log_softmax

from clp_jax.models.t5 import T5Config, Transformer
from clp_jax.models.value import first_logits
from clp_jax.reward_fitting import fit
from clp_jax.rewards.heads import NLIHead, PreferenceHead
from clp_jax.rewards.model import InputTemplate, RewardModel

TEMPLATE = InputTemplate(before=(3,), between=(4, 5), max_length=12)
DOCUMENTS = jnp.array([[6, 7, 8, 9, 10], [11, 12, 0, 0, 0], [13, 6, 0, 0, 0]])
SUMMARIES = jnp.array([[[7, 8, 0], [9, 0, 0]], [[12, 0, 0], [6, 7, 8]], [[13, 0, 0], [6, 6, 6]]])
INPUTS = [  # what the template makes of them, written out
    [[3, 6, 7, 8, 9, 10, 4, 5, 7, 8, 1, 0], [3, 6, 7, 8, 9, 10, 4, 5, 9, 1, 0, 0]],
    [[3, 11, 12, 4, 5, 12, 1, 0, 0, 0, 0, 0], [3, 11, 12, 4, 5, 6, 7, 8, 1, 0, 0, 0]],
    [[3, 13, 6, 4, 5, 13, 1, 0, 0, 0, 0, 0], [3, 13, 6, 4, 5, 6, 6, 6, 1, 0, 0, 0]],
]


@pytest.fixture(scope="module")
def logits(module, reference):
    """Logits [2, 3, V] of the first and the second summaries."""
    inputs = jnp.array(INPUTS).swapaxes(0, 1)
    read = jax.jit(functools.partial(first_logits, module))
    return [np.asarray(read(reference, each), np.float64) for each in inputs]


def nli_loss(model, *arguments):
    return jax.jit(functools.partial(fit.nli_loss, model))(*arguments)


def preference_loss(model, *arguments):
    return jax.jit(functools.partial(fit.preference_loss, model))(*arguments)


@pytest.mark.parametrize("over_labels", [False, True])
def test_nli_loss_is_the_cross_entropy_of_the_label_token(module, reference, logits, over_labels):
    head = NLIHead(("a", "b", "c"), (20, 9, 2), entailment="a", over_labels=over_labels)
    model = RewardModel(module, TEMPLATE, head)
    labels = np.array([2, 0, 1])
    loss, metrics = nli_loss(model, reference, DOCUMENTS, SUMMARIES[:, :1], labels)
    of_labels = logits[0][:, [20, 9, 2]]
    log_probs = log_softmax(of_labels if over_labels else logits[0], axis=1)
    tokens = labels if over_labels else np.array([2, 20, 9])
    assert loss == pytest.approx(-np.mean(log_probs[range(3), tokens]), rel=1e-4)
    assert metrics["loss/cross_entropy"] == loss
    assert metrics["accuracy"] == pytest.approx(np.mean(of_labels.argmax(1) == labels))
    assert metrics["data/truncated_documents"] == 0


def test_bradley_terry_in_closed_form():
    better, worse = jnp.array([1.0, -2.0, 0.0]), jnp.array([0.5, 1.0, 0.0])
    for centring in (0.0, 0.3):
        expected = [
            -math.log(1 / (1 + math.exp(-(b - w)))) + centring * (b + w) ** 2
            for b, w in zip(better.tolist(), worse.tolist(), strict=True)
        ]
        np.testing.assert_allclose(
            fit.bradley_terry_loss(better, worse, centring), expected, rtol=1e-6
        )
    # Far from 0, where exp overflows.
    assert fit.bradley_terry_loss(jnp.array([-500.0]), jnp.array([500.0]), 0.0)[0] == 1000


def test_bradley_terry_gradients_in_closed_form():
    def total(scores):
        return fit.bradley_terry_loss(scores[0], scores[1], 0.3).sum()

    better, worse = np.array([1.0, -2.0, 0.3]), np.array([0.5, 1.0, 0.2])
    found = jax.grad(total)(jnp.array([better, worse]))
    doubt = 1 / (1 + np.exp(better - worse))  # sigmoid(worse - better)
    pull = 2 * 0.3 * (better + worse)
    np.testing.assert_allclose(found, [-doubt + pull, doubt + pull], rtol=1e-5)


def test_preference_loss(module, reference, logits):
    model = RewardModel(module, TEMPLATE, PreferenceHead(9))
    loss, metrics = preference_loss(model, reference, DOCUMENTS, SUMMARIES, 0.2)
    better, worse = logits[0][:, 9], logits[1][:, 9]
    plain = np.log1p(np.exp(worse - better))
    assert loss == pytest.approx(np.mean(plain + 0.2 * (better + worse) ** 2), rel=1e-4)
    assert metrics["loss/bradley_terry"] == pytest.approx(np.mean(plain), rel=1e-4)
    assert metrics["accuracy"] == pytest.approx(np.mean(better > worse))
    assert metrics["score_difference"] == pytest.approx(np.mean(better - worse), abs=1e-4)
    assert metrics["data/truncated_documents"] == 0


def test_cut_documents_are_counted(module, reference):
    short = RewardModel(module, InputTemplate((3,), (4, 5), 9), PreferenceHead(9))
    _, metrics = preference_loss(short, reference, DOCUMENTS, SUMMARIES, 0.0)
    assert metrics["data/truncated_documents"] == 2  # 5 tokens beside summaries of 2 and of 1


def test_ties_count_half(module, reference):
    model = RewardModel(module, TEMPLATE, PreferenceHead(9))
    same = jnp.repeat(SUMMARIES[:, :1], 2, axis=1)
    _, metrics = preference_loss(model, reference, DOCUMENTS, same, 0.0)
    assert metrics["accuracy"] == 0.5


@pytest.mark.parametrize("kind", ["nli", "preference"])
def test_gradients_by_finite_differences(module, reference, kind):
    if kind == "nli":
        model = RewardModel(module, TEMPLATE, NLIHead(("a", "b"), (20, 9), entailment="a"))

        def loss(params):
            labels = jnp.array([0, 1, 1])
            return fit.nli_loss(model, params, DOCUMENTS, SUMMARIES[:, :1], labels)[0]
    else:
        model = RewardModel(module, TEMPLATE, PreferenceHead(9))

        def loss(params):
            return fit.preference_loss(model, params, DOCUMENTS, SUMMARIES, 0.2)[0]

    leaves, structure = jax.tree.flatten(reference)
    rng = np.random.default_rng(1)
    noise = [rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    direction = jax.tree.unflatten(structure, noise)

    @jax.jit
    def along(t):
        return loss(jax.tree.map(lambda x, d: x + t * d, reference, direction))

    size = 2e-4
    numeric = (along(size) - along(-size)) / (2 * size)
    analytic = float(jax.jit(jax.grad(along))(0.0))
    assert abs(analytic) > 0.01
    assert numeric == pytest.approx(analytic, rel=2e-2)


def test_dropout_follows_the_key():
    module = small_network(dropout_rate=0.3)
    model = RewardModel(module, TEMPLATE, PreferenceHead(9))
    params = init(module)
    loss = jax.jit(functools.partial(fit.preference_loss, model))
    arguments = (params, DOCUMENTS, SUMMARIES, 0.0)
    losses = [float(loss(*arguments, jax.random.key(seed))[0]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert len({*losses, float(loss(*arguments)[0])}) == 3


def test_fit_step_is_the_optimizer_on_the_gradient(module, reference):
    model = RewardModel(module, TEMPLATE, PreferenceHead(9))

    def loss(params, documents, summaries, labels, key):
        del labels, key
        return fit.preference_loss(model, params, documents, summaries, 0.1)

    optimizer = optax.sgd(1e-3)
    state = {"params": reference, "optimizer": optimizer.init(reference)}
    step = jax.jit(functools.partial(fit.fit_step, loss, optimizer))
    labels = np.zeros(3, np.int32)
    numbers = (np.int32(0), np.int32(7))
    after, metrics = step(state, DOCUMENTS, SUMMARIES, labels, *numbers)
    gradient = jax.jit(jax.grad(lambda p: loss(p, DOCUMENTS, SUMMARIES, labels, None)[0]))
    grads = gradient(reference)
    expected = jax.tree.map(lambda p, g: p - 1e-3 * g, reference, grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        after["params"],
        expected,
    )
    assert metrics["gradient_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)
    _, later = step(after, DOCUMENTS, SUMMARIES, labels, *numbers)
    assert later["loss/bradley_terry"] < metrics["loss/bradley_terry"]


def small_network(dropout_rate=0.0, **sizes):
    sizes = {"vocab_size": 24, "emb_dim": 16, "num_heads": 2, "num_encoder_layers": 1,
             "num_decoder_layers": 1, "head_dim": 8, "mlp_dim": 32} | sizes  # fmt: skip
    return Transformer(
        T5Config(**sizes, mlp_activations=("gelu", "linear"), dropout_rate=dropout_rate)
    )


def init(module):
    one = jnp.ones((1, 1), jnp.int32)
    init = jax.jit(functools.partial(module.init, enable_dropout=False))
    return init(jax.random.key(0), one, one, one)["params"]


# ------------------------------------------------------------------------------------------------
# What is learned
# ------------------------------------------------------------------------------------------------

ITEM_LENGTH = 6


def planted_items(rng, count):
    """Summaries [count, 6] of tokens 4..23, and their scores: the sum of their tokens' worth."""
    worth = np.random.default_rng(99).normal(size=24)
    items = rng.integers(4, 24, size=(count, ITEM_LENGTH))
    return items, worth[items].sum(axis=1)


@pytest.mark.slow
def test_bradley_terry_recovers_a_planted_ranking():
    module = small_network(emb_dim=32, mlp_dim=64)
    model = RewardModel(module, InputTemplate((), (3,), 12), PreferenceHead(1))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 1500))

    def loss(params, documents, summaries, labels, key):
        del labels, key
        return fit.preference_loss(model, params, documents, summaries, 0.001)

    step = jax.jit(functools.partial(fit.fit_step, loss, optimizer), donate_argnums=0)
    params = init(module)
    state = {"params": params, "optimizer": optimizer.init(params)}
    rng = np.random.default_rng(0)
    train, scores = planted_items(rng, 2000)
    documents = np.full((64, 2), 2, np.int32)
    for i in range(1500):
        pairs = rng.integers(0, len(train), size=(64, 2))
        one, two = scores[pairs].T
        first = rng.random(64) < 1 / (1 + np.exp(two - one))
        ordered = np.where(first[:, None], pairs, pairs[:, ::-1])
        labels = np.zeros(64, np.int32)
        numbers = (np.int32(0), np.int32(i))
        state, _ = step(state, documents, train[ordered].astype(np.int32), labels, *numbers)
    held_out, planted = planted_items(np.random.default_rng(1), 300)
    learned, _ = model.score(state["params"], jnp.full((300, 2), 2), jnp.asarray(held_out))
    learned = np.asarray(learned)
    tau = scipy.stats.kendalltau(planted, learned).statistic
    print(f"Kendall tau {tau:.3f}")
    assert tau >= 0.9
    # The scores are those that the pairs were drawn with, but for a constant.
    slope = np.polyfit(planted, learned, 1)[0]
    assert slope == pytest.approx(1, abs=0.2)
    assert abs(np.mean(learned)) < 1  # centred
