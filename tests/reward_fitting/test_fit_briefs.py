"""An NLI model that starts from nothing learns what documents of briefs entail."""

import functools
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clp_jax.data.briefs import corpus, pairs
from clp_jax.data.briefs.language import Claims, parse_summary, summary_text
from clp_jax.data.briefs.rewards import entailment_score
from clp_jax.data.briefs.world import SLOTS
from clp_jax.machine import host_memory
from clp_jax.models.t5 import T5Config, Transformer
from clp_jax.reward_fitting import fit
from clp_jax.rewards.heads import NLIHead
from clp_jax.rewards.model import InputTemplate, RewardModel

# Tokens; words come behind them.
UNMARKED, ENTAILMENT, NOT_ENTAILMENT, BETWEEN = range(1, 5)
DOCUMENT, HYPOTHESIS = 48, 22  # tokens at most
TRAIN, HELD_OUT, BATCH_SIZE, STEPS = 60_000, 2000, 64, 6000


def draw_any(brief, chance):
    """A hypothesis of `pairs.nli`: none to five details, other facts, malformed ones."""
    return pairs.draw_summary(brief, pairs.HYPOTHESIS_DETAILS, chance)


def draw_one_claim(brief, chance):
    """One detail, by value or hypernym: as the document has it, or another one."""
    slot = chance.choice([slot for slot in SLOTS if slot.name in brief.facts.statements])
    value = brief.facts.statements[slot.name].value
    stated = {slot.values: value, tuple(slot.groups): slot.hypernym(value)}
    phrases = chance.choice(list(stated))
    claimed = stated[phrases]
    if chance.random() < 0.5:
        others = [phrase for phrase in phrases if phrase != claimed]
        mentioned = [phrase for phrase in others if phrase in brief.document]
        claimed = chance.choice(mentioned if mentioned and chance.random() < 0.5 else others)
    return summary_text(Claims(brief.facts.core, {slot.name: claimed}))


def draw_core(brief, chance):
    """None to two details, of the document's event or of another one."""
    core = brief.facts.core
    if chance.random() < 0.6:
        core = pairs.other_core(core, chance)
    details = pairs.stated_details(brief.facts, {0: 0.3, 1: 0.5, 2: 0.2}, chance)
    return summary_text(Claims(core, details))


def draw_form(brief, chance):
    """What the document states, well-formed or not."""
    details = pairs.stated_details(brief.facts, pairs.HYPOTHESIS_DETAILS, chance)
    text = summary_text(Claims(brief.facts.core, details))
    return pairs.malformed(text, chance) if chance.random() < 0.6 else text


def draw_mixed(brief, chance):
    """What is learned from: more of what is rare in `pairs.nli`."""
    draws = {draw_any: 0.35, draw_one_claim: 0.3, draw_core: 0.25, draw_form: 0.1}
    (draw,) = chance.choices(list(draws), list(draws.values()))
    return draw(brief, chance)


def probability(brief, hypothesis):
    """That it is true, given the document."""
    return math.exp(entailment_score(brief.facts, parse_summary(hypothesis)))


def marks(brief, hypothesis):
    """For each word of a hypothesis, what the document has to say of it, as a word."""
    claims, facts = parse_summary(hypothesis), brief.facts
    if claims is None:
        return [f"<{UNMARKED}>"] * (len(split(hypothesis)) - 1) + ["malformed"]
    agent, verb, object_ = (
        "same" if getattr(claims.core, part) == getattr(facts.core, part) else "other"
        for part in ("agent", "verb", "object")
    )
    found = [f"<{UNMARKED}>", agent, verb, f"<{UNMARKED}>", object_]
    for slot in SLOTS:
        if phrase := claims.details.get(slot.name):
            statement, mark = facts.statements.get(slot.name), "other"
            if statement is None:
                mark = "unstated"
            elif phrase in (statement.value, slot.hypernym(statement.value)):
                mark = f"{'value' if phrase == statement.value else 'kind'}-{statement.hedge}"
            found += [mark] * len(phrase.split())
    sixths = round(6 * max(math.log(probability(brief, hypothesis)), -2.0))
    return [*found, f"log-probability{sixths}"]


def split(text):
    """Its words; the full stop is one."""
    return text.replace(".", " .").split()


class Words(dict):
    """Words -> tokens: a word gets one when it is first seen."""

    def rows(self, texts, width):
        """Lists of words -> [N, width], padded with 0."""
        rows = np.zeros((len(texts), width), np.int32)
        for row, text in zip(rows, texts, strict=True):
            row[: len(text)] = [
                int(w[1:-1]) if w[0] == "<" else self.setdefault(w, BETWEEN + 1 + len(self))
                for w in text
            ]
        return rows


def examples(words, draw, part, size):
    """Documents [N, E], hypotheses [N, 1, L], and {"labels": [N], "marks": [N, L]}."""
    briefs = [corpus.draw(part, index) for index in range(size)]
    hypotheses = [
        draw(brief, random.Random(f"{draw.__name__}/{part}/{index}"))
        for index, brief in enumerate(briefs)
    ]
    both = list(zip(briefs, hypotheses, strict=True))
    targets = {
        "labels": np.array([int(probability(*each) < 0.5) for each in both]),
        "marks": words.rows([marks(*each) for each in both], HYPOTHESIS),
    }
    documents = words.rows([split(brief.document) for brief in briefs], DOCUMENT)
    return documents, words.rows(list(map(split, hypotheses)), HYPOTHESIS)[:, None], targets


def make_model(vocab_size):
    """A T5 of 0.2 M parameters with one token for each label."""
    config = T5Config(
        vocab_size=vocab_size, emb_dim=64, num_heads=4, head_dim=32, mlp_dim=192,
        dropout_rate=0.0, num_encoder_layers=3, num_decoder_layers=1,
    )  # fmt: skip
    head = NLIHead(pairs.LABELS, (ENTAILMENT, NOT_ENTAILMENT), "entailment", over_labels=True)
    return RewardModel(Transformer(config), InputTemplate((), (BETWEEN,), 72), head)


def first_params(model):
    """Random ones, with which encoder tokens attend to equal ones, half of the heads to others.

    Without such heads it was not learned in a thousand steps whether a word of the hypothesis is
    one of the document's.
    """
    one = jnp.ones((1, 1), jnp.int32)
    init = jax.jit(functools.partial(model.module.init, enable_dropout=False))
    params = init(jax.random.key(0), one, one, one)["params"]
    encoder = params["encoder"]
    for index in range(model.module.config.num_encoder_layers):
        attention = encoder[f"layers_{index}"]["attention"]
        query, key = attention["query"]["kernel"], attention["key"]["kernel"]
        attention["query"]["kernel"] = 2 * key * query.std() / key.std()
    biases = encoder["relpos_bias"]
    biases["rel_embedding"] = biases["rel_embedding"].at[:2, 0].set(-8.0)
    return params


def make_optimizer():
    """Adam, at rates of their own for the biases of relative positions and the embedding."""

    def adam(learning_rate):
        last = learning_rate / 100
        return optax.adam(optax.warmup_cosine_decay_schedule(0, learning_rate, 200, STEPS, last))

    def kinds(params):
        def kind(path, _):
            name = jax.tree_util.keystr(path)
            named = (kind for kind in ("rel_embedding", "token_embedder") if kind in name)
            return next(named, "kernel")

        return jax.tree_util.tree_map_with_path(kind, params)

    rates = {"rel_embedding": 0.03, "token_embedder": 0.003, "kernel": 0.001}
    by_kind = optax.partition({kind: adam(rate) for kind, rate in rates.items()}, kinds)
    return optax.chain(optax.clip_by_global_norm(1.0), by_kind)


def marking_loss(model, params, documents, hypotheses, targets, dropout_key=None):
    """`fit.nli_loss`, and the cross-entropy of the marks where the encoder has the hypothesis.

    Both are of the same encoder states, as two passes took longer. The states are given logits as
    the decoder's are. With the label alone, which says nothing of single words, the model learned
    far slower.
    """
    inputs, _ = model.template.compose(documents, hypotheses[:, 0])
    apply = functools.partial(model.module.apply, {"params": params}, enable_dropout=False)
    encoded = apply(inputs, method="encode")
    start = jnp.zeros((len(inputs), 1), jnp.int32)
    logits = apply(encoded, inputs, start, start + 1, method="decode")[:, 0]
    log_probs = model.head.label_log_probs(logits)
    label_loss = -jnp.mean(jnp.take_along_axis(log_probs, targets["labels"][:, None], axis=1))
    # A mark for each token of the hypothesis, at the same place.
    placed, _ = model.template.compose(documents.clip(max=UNMARKED), targets["marks"])
    embedding = params["token_embedder"]["embedding"]
    mark_logits = encoded @ embedding.T / math.sqrt(embedding.shape[1])
    each = optax.softmax_cross_entropy_with_integer_labels(mark_logits, placed)
    loss = label_loss + jnp.mean(each, where=placed > BETWEEN)
    return loss, {"loss/cross_entropy": label_loss}


@pytest.fixture
def optimised():
    """Programs as users have them: what is done with these takes longer than to compile them."""
    host_memory.keep_freed_memory()
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.very_slow
def test_an_nli_model_learns_what_documents_entail(optimised):
    """From labels, and marks that say which words they are for."""
    words = Words()
    train = examples(words, draw_mixed, "train", TRAIN)
    held_out = {
        draw: examples(words, draw, "validation", HELD_OUT)
        for draw in (draw_any, draw_one_claim, draw_core, draw_form)
    }
    model = make_model(BETWEEN + 1 + len(words))
    optimizer = make_optimizer()
    params = first_params(model)
    state = {"params": params, "optimizer": optimizer.init(params)}
    loss = functools.partial(marking_loss, model)
    update = jax.jit(functools.partial(fit.fit_step, loss, optimizer), donate_argnums=0)
    score = jax.jit(lambda *inputs: model.score(*inputs)[0])

    def accuracy(draw, order=slice(None)):
        """Of "entailment" where its probability is at least 1/2, the documents in that order."""
        documents, hypotheses, targets = held_out[draw]
        scores = score(state["params"], documents[order], hypotheses[:, 0])
        return np.mean((np.asarray(scores) >= math.log(0.5)) == (targets["labels"] == 0))

    documents, hypotheses, targets = jax.tree.map(lambda each: each[:BATCH_SIZE], train)
    _, metrics = loss(params, documents, hypotheses, targets)
    nli_loss, _ = fit.nli_loss(model, params, documents, hypotheses, targets["labels"])
    np.testing.assert_allclose(metrics["loss/cross_entropy"], nli_loss, rtol=1e-5)

    chance = np.random.default_rng(0)
    for step in range(STEPS):
        rows = chance.integers(0, TRAIN, BATCH_SIZE)
        batch = jax.tree.map(lambda each, rows=rows: each[rows], train)
        state, _ = update(state, *batch, np.int32(0), np.int32(step))
        if (step + 1) % 500 == 0:
            print(step + 1, {draw.__name__: accuracy(draw) for draw in held_out}, flush=True)

    exchanged = slice(None, None, -1)
    for draw, (_, _, targets) in held_out.items():
        print(f"{draw.__name__}: {accuracy(draw):.3f} of {HELD_OUT}, "
              f"{1 - targets['labels'].mean():.3f} are entailed, "
              f"with other documents {accuracy(draw, exchanged):.3f}")  # fmt: skip
    assert accuracy(draw_any) >= 0.95
    # Little of it is in the hypotheses alone.
    assert accuracy(draw_any, exchanged) <= 0.6
