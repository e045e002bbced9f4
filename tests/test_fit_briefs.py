"""An NLI model that starts from nothing learns what a document of briefs entails."""

import functools
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clp_jax.data import tasks
from clp_jax.data.briefs import corpus
from clp_jax.data.briefs.language import Claims, parse_summary, summary_text
from clp_jax.data.briefs.rewards import entailment_score
from clp_jax.data.briefs.world import SLOTS
from clp_jax.models.t5 import T5Config, Transformer
from clp_jax.rewards import fit
from clp_jax.rewards.heads import NLIHead
from clp_jax.rewards.model import InputTemplate, RewardModel

COMPANIONS = next(slot for slot in SLOTS if slot.name == "companion").values
STEPS, BATCH_SIZE, HELD_OUT = 1500, 64, 1000


def examples(split, size):
    """(document, hypothesis, whether it is entailed) of `size` documents that state a companion.

    The hypothesis claims the core fact and one companion, in half of the cases the one that the
    document states, else another one. A document that states it behind "supposedly" entails neither
    and is left out.
    """
    rows, index = [], 0
    while len(rows) < size:
        brief = corpus.draw(split, index)
        index += 1
        statement = brief.facts.statements.get("companion")
        if statement is None or statement.hedge == "supposedly":
            continue
        chance = random.Random(f"companions/{split}/{index}")
        others = [value for value in COMPANIONS if value != statement.value]
        value = statement.value if chance.random() < 0.5 else chance.choice(others)
        hypothesis = summary_text(Claims(brief.facts.core, {"companion": value}))
        probability = math.exp(entailment_score(brief.facts, parse_summary(hypothesis)))
        rows.append((brief.document, hypothesis, probability >= 0.5))
    return rows


def tokens(vocabulary, rows):
    """Documents [N, 64], hypotheses [N, 1, 16] and labels [N] (0 is entailment)."""

    def padded(texts, width):
        encoded = [vocabulary.encode(text) for text in texts]
        assert max(map(len, encoded)) <= width
        return np.array([each + [0] * (width - len(each)) for each in encoded], np.int32)

    documents, hypotheses, entailed = zip(*rows, strict=True)
    labels = 1 - np.array(entailed, np.int32)
    return padded(documents, 64), padded(hypotheses, 16)[:, None], labels


@pytest.fixture
def optimised():
    """Programs as users have them: what is done with these takes longer than to compile them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.very_slow
def test_an_nli_model_learns_what_documents_state(optimised):
    vocabulary = tasks.briefs_vocabulary()
    config = T5Config(
        vocab_size=256, emb_dim=64, num_heads=4, head_dim=16, mlp_dim=192, dropout_rate=0.0,
        num_encoder_layers=2, num_decoder_layers=1,
    )  # fmt: skip
    head = NLIHead(("entailment", "not_entailment"), (3, 4), "entailment", over_labels=True)
    template = InputTemplate((), tuple(vocabulary.encode("summarize:")), 84)
    model = RewardModel(Transformer(config), template, head)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.warmup_constant_schedule(0, 1e-3, 200))
    )
    loss = functools.partial(fit.nli_loss, model)
    step = jax.jit(functools.partial(fit.fit_step, loss, optimizer), donate_argnums=0)
    one = jnp.ones((1, 1), jnp.int32)
    init = jax.jit(functools.partial(model.module.init, enable_dropout=False))
    params = init(jax.random.key(0), one, one, one)["params"]
    state = {"params": params, "optimizer": optimizer.init(params)}
    train = tokens(vocabulary, examples("train", 20_000))
    order = np.random.default_rng(0)
    for i in range(STEPS):
        rows = order.integers(0, len(train[2]), BATCH_SIZE)
        batch = [each[rows] for each in train]
        state, _ = step(state, *batch, np.int32(0), np.int32(i))

    documents, hypotheses, labels = tokens(vocabulary, examples("validation", HELD_OUT))
    score = jax.jit(lambda *pairs: model.score(state["params"], *pairs)[0])

    def accuracy(documents):
        """Of "entailment", where its probability is at least 1/2."""
        scores = score(documents, hypotheses[:, 0])
        return np.mean((np.asarray(scores) >= math.log(0.5)) == (labels == 0))

    print(
        f"accuracy {accuracy(documents):.3f}, with other documents {accuracy(documents[::-1]):.3f}"
    )
    assert abs(labels.mean() - 0.5) < 0.05
    assert accuracy(documents) >= 0.95
    # Nothing of it is in the hypotheses alone.
    assert accuracy(documents[::-1]) <= 0.6
