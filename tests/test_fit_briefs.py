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
from clp_jax.models.t5 import T5Config, Transformer
from clp_jax.rewards import fit
from clp_jax.rewards.heads import NLIHead
from clp_jax.rewards.model import InputTemplate, RewardModel

ENTAILMENT, NOT_ENTAILMENT, BETWEEN = 2, 3, 4
BLANKS = range(5, 10)  # tokens, one for each detail that is left out; words come behind them
TRAIN, HELD_OUT, BATCH_SIZE = 30_000, 1000, 64
# Steps at the end of which a stage ends.
FILLING, ONE_CLAIM, ALL = 1500, 4000, 7000


def draw_blanks(brief, chance):
    """A hypothesis whose details are left out, and what the document says of each of them."""
    details, said = {}, []
    for slot in SLOTS:
        if slot.name not in brief.facts.statements or chance.random() > 0.7:
            continue
        statement = brief.facts.statements[slot.name]
        preposition = " ".join(
            word
            for word in statement.value.split()
            if all(word in phrase.split() for phrase in slot.phrases)
        )
        blank = f"<{BLANKS[len(details)]}>"
        details[slot.name] = f"{preposition} {blank}"
        said += [blank, statement.hedge, statement.value.removeprefix(preposition)]
    return summary_text(Claims(brief.facts.core, details)), " ".join(said)


def draw_one_claim(brief, chance):
    """A hypothesis that claims one detail: as the document has it, its hypernym, or another one."""
    slot = chance.choice([slot for slot in SLOTS if slot.name in brief.facts.statements])
    value = brief.facts.statements[slot.name].value
    stated = (value, slot.hypernym(value))
    claimed = stated[chance.random() < 0.15]
    if chance.random() < 0.45:
        others = [phrase for phrase in slot.phrases if phrase not in stated]
        mentioned = [phrase for phrase in others if phrase in brief.document]
        claimed = chance.choice(mentioned if mentioned and chance.random() < 0.5 else others)
    return labelled(brief, summary_text(Claims(brief.facts.core, {slot.name: claimed})))


def draw_any(brief, chance):
    """A hypothesis of `pairs.nli`: none to five details, other facts, malformed ones."""
    return labelled(brief, pairs.draw_summary(brief, pairs.HYPOTHESIS_DETAILS, chance))


def labelled(brief, hypothesis):
    """With its label: 0 where it is at least as likely true as not, else 1."""
    probability = math.exp(entailment_score(brief.facts, parse_summary(hypothesis)))
    return hypothesis, int(probability < 0.5)


class Words(dict):
    """Words -> tokens: a word gets one when it is first seen."""

    def rows(self, texts, width):
        """Texts -> [N, width], padded with 0."""
        rows = np.zeros((len(texts), width), np.int32)
        for row, text in zip(rows, texts, strict=True):
            words = text.replace(".", " .").split()
            row[: len(words)] = [
                int(w[1:-1]) if w[0] == "<" else self.setdefault(w, BLANKS.stop + len(self))
                for w in words
            ]
        return rows


def examples(words, draw, split, size):
    """Documents [N, 48], hypotheses [N, 1, 20], and labels [N] or what fills the blanks [N, 16]."""
    briefs = [corpus.draw(split, index) for index in range(size)]
    drawn = [
        draw(brief, random.Random(f"{draw.__name__}/{split}/{index}"))
        for index, brief in enumerate(briefs)
    ]
    hypotheses, targets = zip(*drawn, strict=True)
    labels = words.rows(targets, 16) if draw is draw_blanks else np.array(targets, np.int32)
    documents = words.rows([brief.document for brief in briefs], 48)
    return documents, words.rows(hypotheses, 20)[:, None], labels


def filling_loss(model, params, documents, summaries, targets, dropout_key=None):
    """The cross-entropy of what fills the blanks."""
    inputs, _ = model.template.compose(documents, summaries[:, 0])
    shifted = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    logits = model.module.apply({"params": params}, inputs, shifted, targets, enable_dropout=False)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.mean(each, where=targets > 0), {}


def make_model(vocab_size):
    """A T5 of 0.2 M parameters with one token for each label."""
    config = T5Config(
        vocab_size=vocab_size, emb_dim=64, num_heads=4, head_dim=32, mlp_dim=192,
        dropout_rate=0.0, num_encoder_layers=2, num_decoder_layers=1,
    )  # fmt: skip
    head = NLIHead(pairs.LABELS, (ENTAILMENT, NOT_ENTAILMENT), "entailment", over_labels=True)
    return RewardModel(Transformer(config), InputTemplate((), (BETWEEN,), 70), head)


def choose(step, chance):
    """What a step learns: by stages, with some filling to the end."""
    if step < FILLING or chance.random() >= 0.85:
        return draw_blanks
    return draw_one_claim if step < ONE_CLAIM or chance.random() < 0.4 else draw_any


def make_optimizer():
    """Adam, at rates of their own for the biases of relative positions and the embedding.

    With one rate for all, the blanks were filled in more slowly.
    """

    def adam(learning_rate):
        return optax.adam(optax.warmup_cosine_decay_schedule(0, learning_rate, 200, ALL, 1e-5))

    def kinds(params):
        def kind(path, _):
            name = jax.tree_util.keystr(path)
            named = (kind for kind in ("rel_embedding", "token_embedder") if kind in name)
            return next(named, "kernel")

        return jax.tree_util.tree_map_with_path(kind, params)

    rates = {"rel_embedding": 0.09, "token_embedder": 0.009, "kernel": 0.0015}
    by_kind = optax.partition({kind: adam(rate) for kind, rate in rates.items()}, kinds)
    return optax.chain(optax.clip_by_global_norm(1.0), by_kind)


@pytest.fixture
def optimised():
    """Programs as users have them: what is done with these takes longer than to compile them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.very_slow
def test_an_nli_model_learns_what_documents_entail(optimised):
    """In three stages: filling in details, as T5's pretraining does; one claim; all hypotheses."""
    words = Words()
    train = {
        draw: examples(words, draw, "train", TRAIN)
        for draw in (draw_blanks, draw_one_claim, draw_any)
    }
    held_out = {
        draw: examples(words, draw, "validation", HELD_OUT) for draw in (draw_one_claim, draw_any)
    }
    model = make_model(BLANKS.stop + len(words))
    optimizer = make_optimizer()
    one = jnp.ones((1, 1), jnp.int32)
    init = jax.jit(functools.partial(model.module.init, enable_dropout=False))
    params = init(jax.random.key(0), one, one, one)["params"]
    state = {"params": params, "optimizer": optimizer.init(params)}
    nli, filling = (
        jax.jit(
            functools.partial(fit.fit_step, functools.partial(loss, model), optimizer),
            donate_argnums=0,
        )
        for loss in (fit.nli_loss, filling_loss)
    )
    score = jax.jit(lambda *inputs: model.score(*inputs)[0])

    def accuracy(draw, order=slice(None)):
        """Of "entailment" where its probability is at least 1/2, the documents in that order."""
        documents, hypotheses, labels = held_out[draw]
        scores = score(state["params"], documents[order], hypotheses[:, 0])
        return np.mean((np.asarray(scores) >= math.log(0.5)) == (labels == 0))

    chance = np.random.default_rng(0)
    for step in range(ALL):
        draw = choose(step, chance)
        batch = BATCH_SIZE // 2 if draw is draw_blanks else BATCH_SIZE
        rows = chance.integers(0, TRAIN, batch)
        update = filling if draw is draw_blanks else nli
        state, _ = update(state, *(each[rows] for each in train[draw]), np.int32(0), np.int32(step))
        if (step + 1) % 500 == 0:
            print(step + 1, {draw.__name__: accuracy(draw) for draw in held_out}, flush=True)

    exchanged = slice(None, None, -1)
    for draw in held_out:
        entailed = 1 - held_out[draw][2].mean()
        print(f"{draw.__name__}: {accuracy(draw):.3f} of {HELD_OUT}, {entailed:.3f} are entailed, "
              f"with other documents {accuracy(draw, exchanged):.3f}")  # fmt: skip
    assert accuracy(draw_one_claim) >= 0.95
    # Several claims, whose probabilities multiply, take longer to learn.
    assert accuracy(draw_any) >= 0.85
    # Little of it is in the hypotheses alone.
    assert accuracy(draw_one_claim, exchanged) <= 0.6
