"""Reward models: their inputs, heads, and scores on tokens and on text."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clp_jax.data import tasks
from clp_jax.models.partitioning import Placement
from clp_jax.models.t5 import T5Config, Transformer
from clp_jax.rewards import heads
from clp_jax.rewards.base import NamedReward, RewardStack
from clp_jax.rewards.heads import NLIHead, PreferenceHead
from clp_jax.rewards.learned import LearnedReward, same_vocabulary
from clp_jax.rewards.model import InputTemplate, RewardModel, document_of, summary_of

TEXTS = [
    ("The judge moves a school. It perhaps happens due to fatigue.", "The judge moved a school."),
    ("A goose sings in Lyon. The mayor buys a boat.", "The mayor bought a boat in Lyon."),
    ("The baker sells a barn. A dog waits in Rome. A cat digs for taxes.", ""),
    ("", "The poet cleaned a clock."),
    ("The pilot opens a mill. " * 20, "The pilot opened a mill with scouts in June due to rain."),
]
DOCUMENTS, SUMMARIES = zip(*TEXTS, strict=True)
NLI_HEAD = NLIHead(("entailment", "neutral", "contradiction"), (5, 9, 7))


@pytest.fixture(scope="module")
def vocabulary():
    return tasks.briefs_vocabulary()


@pytest.fixture(scope="module")
def network():
    module = Transformer(
        T5Config(256, "float32", 16, 2, 1, 1, 8, 32, ("gelu", "linear"), dropout_rate=0.0)
    )
    tokens = jnp.ones([1, 4], jnp.int32)

    @jax.jit
    def init(key):
        params = module.init(key, tokens, tokens, tokens, enable_dropout=False)["params"]
        return jax.tree.map(lambda x: 2.0 * x, params)

    return module, init(jax.random.key(0))


def make_reward(network, vocabulary, head=NLI_HEAD, max_length=64, **kwargs):
    before, between = (tuple(vocabulary.encode(text)) for text in ("it", "happens"))
    module, params = network
    template = InputTemplate(before, between, max_length, vocabulary.eos_id)
    return LearnedReward(
        RewardModel(module, template, head), lambda shapes: params, vocabulary, (-7, 0), **kwargs
    )


# Inputs


def by_hand(template, document, summary):
    """One input, as the issue's words have it: what is too long is cut from the document's end."""
    document, summary = ([t for t in tokens if t] for tokens in (document, summary))
    fixed = [*template.before, *template.between, *summary, template.eos_id]
    document = document[: template.max_length - len(fixed)]
    return [*template.before, *document, *template.between, *summary, template.eos_id]


TOKEN = st.integers(0, 9)
ROWS = st.integers(1, 4).flatmap(
    lambda b: st.tuples(
        st.integers(1, 8).flatmap(lambda w: st.lists(st.lists(TOKEN, min_size=w, max_size=w),
                                                     min_size=b, max_size=b)),
        st.integers(1, 5).flatmap(lambda w: st.lists(st.lists(TOKEN, min_size=w, max_size=w),
                                                     min_size=b, max_size=b)),
    )
)  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(ROWS, st.lists(TOKEN.filter(bool), max_size=2), st.integers(10, 20))
def test_inputs_are_those_made_by_hand(rows, before, max_length):
    documents, summaries = map(np.array, rows)
    template = InputTemplate(tuple(before), (11,), max_length, 1)
    inputs, cut = jax.device_get(jax.jit(template.compose)(documents, summaries))
    assert inputs.shape[1] <= max_length
    for document, summary, row, was_cut in zip(documents, summaries, inputs, cut, strict=True):
        expected = by_hand(template, document, summary)
        assert row[: len(expected)].tolist() == expected
        assert not row[len(expected) :].any()
        kept = len(expected) - len(before) - 2 - np.count_nonzero(summary)
        assert bool(was_cut) == (kept < np.count_nonzero(document))


def test_no_room_for_a_document():
    template = InputTemplate((3,), (4,), 8, 1)
    template.compose(jnp.ones((1, 9), int), jnp.ones((1, 4), int))
    with pytest.raises(ValueError, match="summary of up to 5 tokens leaves no room .* 8 tokens"):
        template.compose(jnp.ones((1, 9), int), jnp.ones((1, 5), int))


def test_documents_and_summaries_are_found_in_what_the_policy_has():
    prompts = jnp.array([[3, 4, 5, 6, 1, 0], [3, 4, 5, 6, 7, 8]])
    assert document_of(prompts, 2, 1).tolist() == [[5, 6, 0, 0], [5, 6, 7, 8]]
    completions, mask = jnp.array([[5, 6, 1, 0], [5, 6, 7, 8]]), jnp.array([[1, 1, 1, 0]] * 2)
    assert summary_of(completions, mask, 1).tolist() == [[5, 6, 0, 0], [5, 6, 7, 0]]


# Heads


def test_heads_are_closed_forms_of_the_logits():
    logits = jax.random.normal(jax.random.key(0), (6, 12)) * 4
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores, flags = NLI_HEAD.score(logits)
    np.testing.assert_allclose(scores, np.log(probabilities[:, 5]), rtol=1e-5)
    assert flags == {}
    three = probabilities[:, [5, 9, 7]]
    over_labels = NLIHead(NLI_HEAD.labels, NLI_HEAD.tokens, "neutral", over_labels=True)
    np.testing.assert_allclose(
        over_labels.score(logits)[0], np.log(three[:, 1] / three.sum(1)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(PreferenceHead(3).score(logits)[0], logits[:, 3])


def test_a_floor_is_counted():
    logits = jnp.zeros((3, 12)).at[:, 2].set(jnp.array([0.0, 5.0, 9.0]))
    scores, flags = NLIHead(NLI_HEAD.labels, NLI_HEAD.tokens, floor=-6.0).score(logits)
    np.testing.assert_allclose(scores, [-np.log(12), -np.log(11 + np.exp(5)), -6], rtol=1e-5)
    assert flags["floored"].tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("a", "b"), (1, 2), "c"), "no label 'c' among"),
        ((("a", "b"), (1, 1), "a"), "they must differ"),
        ((("a",), (1,), "a"), "two or more"),
        ((("a", "b"), (1, 2), "a", False, 0.5), "floor=0.5 must be <= 0"),
    ],
)
def test_impossible_heads(arguments, message):
    with pytest.raises(ValueError, match=message):
        NLIHead(*arguments)


def test_label_tokens_of_a_vocabulary(vocabulary):
    make = heads.make_nli_head
    texts = {"entailment": "The", "not_entailment": "goose"}
    head = make(vocabulary, 256, {"label_tokens": texts, "floor": -9.0})
    assert head.tokens == tuple(vocabulary.encode(text)[0] for text in texts.values())
    assert head.floor == -9.0
    ids = make(vocabulary, 256, {"label_tokens": {"entailment": 4, "other": 5}})
    assert ids.tokens == (4, 5)
    with pytest.raises(ValueError, match="begin with the tokens .* must differ"):  # "1" and "0"
        make(vocabulary, 256, {})
    with pytest.raises(ValueError, match="label 'entailment': the vocabulary has no token for '€'"):
        make(vocabulary, 256, {"label_tokens": {"entailment": "€", "other": 5}})
    with pytest.raises(ValueError, match="label 'other': token 256 is not in .* of 256"):
        make(vocabulary, 256, {"label_tokens": {"entailment": 4, "other": 256}})
    with pytest.raises(ValueError, match=r"unknown label 'entailed'.*nearest: entailment"):
        make(vocabulary, 256, {"label_tokens": texts, "entailment": "entailed"})
    with pytest.raises(ValueError, match="token 256 is not in"):
        heads.make_preference_head(vocabulary, 256, {"token": 256})
    assert heads.make_preference_head(vocabulary, 256, {}).token == 1


# Scores


@pytest.mark.parametrize("head", [NLI_HEAD, PreferenceHead(3)])
def test_scores_do_not_depend_on_batches_and_padding(network, vocabulary, head):
    """On the device from the policy's tokens, together; on the host from text, one by one."""
    prefix = "summarize: "
    reward = make_reward(
        network, vocabulary, head, policy_vocabulary=tasks.briefs_vocabulary(), prompt_prefix=prefix
    )
    assert reward.on_device
    alone = [reward.score_texts([d], [s])[0][0] for d, s in TEXTS]
    together, flags = reward.score_texts(DOCUMENTS * 9, SUMMARIES * 9)
    np.testing.assert_allclose(together, alone * 9, rtol=1e-5, atol=1e-5)
    assert flags["truncated_documents"].tolist() == [False, False, False, False, True] * 9
    assert np.ptp(alone) > 1e-2

    for extra in (0, 7):
        prompts = padded([[*vocabulary.encode(prefix + d), 1] for d in DOCUMENTS], extra)
        completions = padded([[*vocabulary.encode(s), 1] for s in SUMMARIES], extra)
        mask = jnp.asarray(completions > 0, jnp.float32)
        # What stands behind the end of a completion is not read.
        completions = np.where(completions == 0, 77, completions)
        scored = jax.jit(reward.score_tokens)(reward.params, prompts, completions, mask)
        np.testing.assert_allclose(scored.scores, alone, rtol=1e-5, atol=1e-5)
        assert float(scored.metrics["truncated_documents"]) == 1


def padded(rows, extra):
    width = max(map(len, rows)) + extra
    return np.array([row + [0] * (width - len(row)) for row in rows])


def test_scores_are_those_of_the_network_on_the_joined_text(network, vocabulary):
    module, params = network
    reward = make_reward(network, vocabulary, max_length=512)
    scores, _ = reward.score_texts(DOCUMENTS, SUMMARIES)
    apply = jax.jit(functools.partial(module.apply, enable_dropout=False))
    for (document, summary), score in zip(TEXTS, scores, strict=True):
        text = vocabulary.encode(f"it {document} happens {summary}")
        inputs, start = jnp.array([[*text, 1]]), jnp.zeros((1, 1), jnp.int32)
        logits = apply({"params": params}, inputs, start, jnp.ones_like(start))
        assert float(jax.nn.log_softmax(logits[0, 0])[5]) == pytest.approx(score, abs=1e-5)


def test_devices_that_cannot_share_a_model_are_told_so(network, vocabulary):
    reward = make_reward(network, vocabulary, policy_vocabulary=vocabulary)
    mesh = types.SimpleNamespace(shape={"data": 1, "model": 3}, size=3)
    message = "reward 'nli': its model: axis .* which NUM_PARTITIONS=3 does not divide"
    with pytest.raises(ValueError, match=message):
        RewardStack([NamedReward.of("nli", reward)]).place(Placement(mesh))


def test_rewards_of_text(network, vocabulary):
    reward = make_reward(network, vocabulary)
    assert not reward.on_device
    scored = reward(["unused"] * 5, SUMMARIES, document=DOCUMENTS)
    np.testing.assert_array_equal(scored.scores, reward.score_texts(DOCUMENTS, SUMMARIES)[0])
    assert scored.metrics == {"truncated_documents": 1.0}
    assert reward([], [], document=[]).scores.shape == (0,)
    long = "The pilot opened a mill. " * 20
    with pytest.raises(ValueError, match=r"summary 1 has \d+ tokens, .* input of 64 has room for"):
        reward(["", ""], ["", long], document=["", ""])


def test_when_the_policys_tokens_are_read(network, vocabulary, tmp_path):
    from clp_jax.data.vocabulary import main

    (tmp_path / "text.jsonl").write_text('{"document": "a bb ccc", "summary": "dd e"}\n')
    main(
        [
            f"--input={tmp_path / 'text.jsonl'}",
            "--vocab_size=24",
            f"--output={tmp_path / 'm.model'}",
        ]
    )
    import seqio

    other = seqio.SentencePieceVocabulary(str(tmp_path / "m.model"))
    assert same_vocabulary(vocabulary, tasks.briefs_vocabulary())
    assert not same_vocabulary(vocabulary, other)
    assert not same_vocabulary(vocabulary, None)
    assert not make_reward(network, vocabulary, policy_vocabulary=other).on_device
    joined = make_reward(network, vocabulary, policy_vocabulary=vocabulary, prompt_prefix="tl;dr:")
    assert not joined.on_device  # a token might span prefix and document


def test_a_policy_that_does_not_fit(network, vocabulary):
    reward = make_reward(network, vocabulary, policy_vocabulary=vocabulary)
    reward.check_policy("summarize: ", 40)
    with pytest.raises(ValueError, match="begin with 'summarize: ', those of the task .* 'tldr: '"):
        reward.check_policy("tldr: ", 40)
    with pytest.raises(ValueError, match="completions of up to 64 tokens leave no room"):
        reward.check_policy("summarize: ", 64)
