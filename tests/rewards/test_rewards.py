import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clp_jax.reporting.errors import RewardError
from clp_jax.rewards.base import Mixture, NamedReward, RewardStack
from clp_jax.rewards.host import Scored

PROMPTS = ["p", "q", "r", "s"]
COMPLETIONS = ["a", "bb", "ccc", "dddd"]


def length(prompts, completions):
    return [len(c) for c in completions]


def make(**rewards):
    return RewardStack([NamedReward.of(name, reward) for name, reward in rewards.items()])


class TokenSum:
    """Σ of the completion's tokens + the prompt's first."""

    on_device = True
    range = (0.0, 100.0)

    def score_tokens(self, params, prompt_tokens, completion_tokens, completion_mask):
        return prompt_tokens[:, 0] + jnp.sum(completion_tokens * completion_mask, axis=1)


TOKENS = {
    "prompt_tokens": jnp.array([[1, 5], [2, 5], [3, 5], [4, 5]], jnp.int32),
    "completion_tokens": jnp.array([[10, 7], [20, 7], [30, 7], [40, 7]], jnp.int32),
    "completion_mask": jnp.array([[1.0, 0.0]] * 4),
}
TOKEN_SUMS = [11.0, 22.0, 33.0, 44.0]


def test_a_mixture_is_the_weighted_sum_of_normalised_scores_each_scored_once():
    calls = []

    def words(prompts, completions, summary):
        calls.append(summary)
        return [float(s) for s in summary]

    words.range = (19, 29)
    stack = RewardStack(
        [
            NamedReward.of("rouge", words),
            NamedReward.of("mix", Mixture({"nli": 0.9, "rouge": 0.1})),
            NamedReward.of("even", Mixture({"rouge": 0.5, "nli": 0.5}), (-1, 3)),
        ],
        [NamedReward.of("nli", TokenSum(), (-7, 0)), NamedReward.of("unused", lambda: None)],
    )
    rouge, nli = np.array([19, 29, 24, 39.0]), np.array(TOKEN_SUMS)
    scores = stack(PROMPTS, COMPLETIONS, {"summary": rouge.tolist()}, **TOKENS)
    rouge_1, nli_1 = (rouge - 19) / 10, (nli + 7) / 7
    mix, even = 0.9 * nli_1 + 0.1 * rouge_1, (nli_1 + rouge_1) / 2
    np.testing.assert_allclose(scores.raw, np.stack([rouge, mix, even], 1), rtol=1e-6)
    np.testing.assert_allclose(
        scores.normalised, np.stack([rouge_1, mix, (even + 1) / 4], 1), rtol=1e-6
    )
    assert scores.raw.dtype == scores.normalised.dtype == np.float32
    assert len(calls) == 1
    assert stack.names == ("rouge", "mix", "even")
    assert stack.num_objectives == 3
    assert stack.ranges == {"rouge": (19, 29), "mix": (0, 1), "even": (-1, 3)}
    assert stack.describe().splitlines() == [
        "rouge: host, (19, 29) -> (0, 1)",
        "mix: 0.9 nli + 0.1 rouge, (0, 1) -> (0, 1)",
        "even: 0.5 rouge + 0.5 nli, (-1, 3) -> (0, 1)",
        "nli: device, (-7, 0) -> (0, 1) (in mixtures only)",
    ]


def test_bad_stacks():
    with pytest.raises(ValueError, match="no rewards"):
        RewardStack([])
    with pytest.raises(ValueError, match="two rewards are called 'a'"):
        RewardStack([NamedReward.of("a", length)], [NamedReward.of("a", length)])
    mixture = NamedReward.of("mix", Mixture({"lenght": 1.0}))
    with pytest.raises(ValueError, match=r"'lenght' \(from mixture 'mix'\); nearest: length"):
        RewardStack([NamedReward.of("length", length), mixture])
    outer = NamedReward.of("outer", Mixture({"mix": 1.0}))
    with pytest.raises(ValueError, match=r"component 'mix' \(from mixture 'outer'\)"):
        RewardStack(
            [outer, NamedReward.of("mix", Mixture({"a": 1.0})), NamedReward.of("a", length)]
        )

    class NoScores:
        on_device = True

    with pytest.raises(ValueError, match="reward 'x' is on_device but has no score_tokens"):
        make(x=NoScores())
    with pytest.raises(ValueError, match=r"reward 'x' is 3 \(int\)"):
        make(x=3)
    for refused in (lambda texts, **columns: [], lambda texts, prompts: [], lambda prompts: []):
        with pytest.raises(ValueError, match=r"has the signature \("):
            make(x=refused)


def test_device_scores_under_jit_and_a_transfer_guard():
    stack = RewardStack([NamedReward.of("d", TokenSum()), NamedReward.of("h", length, (0, 10))])
    stack.dispatch(*TOKENS.values()).result()  # compiles
    with jax.transfer_guard("disallow"):
        on_device = stack.dispatch(*TOKENS.values())
        host_scores = stack.submit(PROMPTS, COMPLETIONS).result()
        device_scores = on_device.result()
        scores = stack.combine(device_scores, host_scores)
    assert device_scores["d"].dtype == jnp.float32
    assert scores.raw.tolist() == list(map(list, zip(TOKEN_SUMS, [1, 2, 3, 4], strict=True)))
    np.testing.assert_allclose(scores.normalised, scores.raw / [100, 10], rtol=1e-6)
    assert list(host_scores) == ["h"]
    with pytest.raises(ValueError, match=r"no scores for the rewards \['d'\]; given: \['h'\]"):
        stack.combine({}, host_scores)
    with pytest.raises(ValueError, match=r"rewards \['d'\] run on the device"):
        stack(PROMPTS, COMPLETIONS)
    with pytest.raises(RewardError, match="reward 'd' returned nan for completion 1 of 4"):
        stack.combine({"d": jnp.array([0, jnp.nan, 0, 0])}, host_scores)
    with pytest.raises(RewardError, match="reward 'd' returned 3 scores for 4 completions"):
        stack.combine({"d": jnp.zeros(3)}, host_scores)


def test_no_device_rewards():
    stack = make(length=length)
    assert stack.dispatch(*TOKENS.values()).result() == {}
    assert stack.submit([], []).result()["length"].shape == (0,)
    assert stack([], []).normalised.shape == (0, 1)


def test_device_scores_of_another_type_become_float32():
    class Integers(TokenSum):
        def score_tokens(self, params, prompt_tokens, completion_tokens, completion_mask):
            return completion_tokens[:, 0]

    scores = make(i=Integers()).dispatch(*TOKENS.values()).result()["i"]
    assert scores.dtype == jnp.float32
    assert scores.tolist() == [10, 20, 30, 40]


def test_no_host_rewards():
    stack = make(d=TokenSum())
    assert stack.submit(PROMPTS, COMPLETIONS).result() == {}
    assert stack.columns == ()
    assert stack(PROMPTS, COMPLETIONS, **TOKENS).raw[:, 0].tolist() == TOKEN_SUMS


def test_bad_device_rewards():
    class Wide(TokenSum):
        def score_tokens(self, params, prompt_tokens, completion_tokens, completion_mask):
            return completion_mask

    class Broken(TokenSum):
        def score_tokens(self, params, prompt_tokens, completion_tokens, completion_mask):
            raise KeyError("head")

    with pytest.raises(RewardError, match=r"reward 'w' returned shape \(4, 2\); expected \(4,\)"):
        make(w=Wide()).dispatch(*TOKENS.values())
    with pytest.raises(RewardError, match="reward 'b' raised KeyError") as info:
        make(b=Broken()).dispatch(*TOKENS.values())
    assert isinstance(info.value.__cause__, KeyError)


def test_parameters_are_an_argument_of_the_program():
    class Scaled(TokenSum):
        params = jnp.float32(1)

        def score_tokens(self, params, *tokens):
            return params * super().score_tokens(None, *tokens)

    reward = Scaled()
    stack = make(d=reward)
    for scale in (1.0, 2.0):
        reward.params = jnp.float32(scale)
        scores = stack.dispatch(*TOKENS.values()).result()["d"]
        np.testing.assert_allclose(scores, scale * np.array(TOKEN_SUMS))


def test_rewards_may_have_numbers_of_their_own_logged():
    class Counting(TokenSum):
        def score_tokens(self, *arguments):
            return Scored(super().score_tokens(*arguments), {"small": jnp.int32(3)})

    def counting(prompts, completions):
        return Scored((c for c in map(len, completions)), {"calls": 7})

    stack = make(d=Counting(), h=counting)
    on_device, on_host = stack.dispatch(*TOKENS.values()), stack.submit(PROMPTS, COMPLETIONS)
    scores = stack.combine(on_device.result(), on_host.result())
    assert scores.raw.T.tolist() == [TOKEN_SUMS, [1, 2, 3, 4]]
    assert on_device.metrics == {"d/small": 3.0}
    assert on_host.metrics == {"h/calls": 7.0}


def test_seconds_of_each_reward_and_what_the_device_hides():
    def slow(prompts, completions):
        time.sleep(0.2)
        return [0] * 4

    stack = make(d=TokenSum(), slow=slow, fast=length)
    on_device, on_host = stack.dispatch(*TOKENS.values()), stack.submit(PROMPTS, COMPLETIONS)
    on_device.result(time.perf_counter() - 5)
    on_host.result()
    assert 5 < on_device.seconds["d"] < 6
    assert on_host.seconds["fast"] < 0.2 <= on_host.seconds["slow"] < 2
    start, end = on_host.spans["slow"]
    assert on_host.hidden(start - 1)["slow"] == 0
    assert on_host.hidden(end + 1) == {"slow": 1, "fast": 1}
    assert on_host.hidden(start + (end - start) / 4)["slow"] == pytest.approx(0.25)


def test_close():
    closed = []
    length_2 = type("Length", (), {"__call__": lambda self, prompts, completions: [0]})()
    length_2.close = lambda: closed.append(1)
    make(a=length_2, b=length).close()
    assert closed == [1]


# Columns


def test_which_columns_a_reward_gets():
    seen = {}

    def everything(prompts, completions, **columns):
        seen["everything"] = columns
        return [0] * 4

    def named(prompts, completions, summary, id=None, scale=3):
        seen["named"] = (summary, id, scale)
        return [0] * 4

    def keyword_only(prompts, completions, *, document):
        seen["keyword_only"] = document
        return [0] * 4

    def renamed(x, y, /, **kwargs):
        seen["renamed"] = sorted(kwargs)
        return [0] * 4

    def declared(prompts, completions, **columns):
        return [0] * 4

    declared.columns = ("title", "summary")
    rewards = (everything, named, keyword_only, renamed, declared)
    stack = make(**{f.__name__: f for f in rewards})
    assert stack.columns == ("summary", "document", "title")
    columns = {
        "summary": ["s"] * 4,
        "document": ["d"] * 4,
        "title": ["t"] * 4,
        "id": ["i"] * 4,
        "prompts": ["a field that is called as a parameter"] * 4,
    }
    stack(PROMPTS, COMPLETIONS, columns)
    assert seen["everything"] == {k: v for k, v in columns.items() if k != "prompts"}
    assert seen["named"] == (["s"] * 4, ["i"] * 4, 3)
    assert seen["keyword_only"] == ["d"] * 4
    assert seen["renamed"] == ["document", "id", "prompts", "summary", "title"]


def test_a_missing_column():
    def reward(prompts, completions, summary):
        return [0.0] * 4

    stack = make(mine=reward)
    stack.check_columns(["document", "summary"], "train.jsonl")
    with pytest.raises(
        ValueError, match=r"'mine' needs a .*'summary' \(from train.jsonl\).*sumary"
    ):
        stack.check_columns(iter(["document", "sumary"]), "train.jsonl")
    with pytest.raises(ValueError, match=r"'mine' needs .* \(from the batch\)"):
        stack(PROMPTS, COMPLETIONS)


def test_columns_must_be_a_tuple():
    def reward(prompts, completions, **columns):
        return [0.0] * 4

    reward.columns = "summary"
    with pytest.raises(ValueError, match="columns of reward 'mine' is 'summary'"):
        make(mine=reward)


def test_lists_of_different_lengths():
    stack = make(length=length)
    with pytest.raises(ValueError, match="the prompts: 3 values for 4 completions"):
        stack(PROMPTS[:3], COMPLETIONS)
    with pytest.raises(ValueError, match="column 'id': 2 values for 4 completions"):
        stack(PROMPTS, COMPLETIONS, {"id": [1, 2]})


def test_a_reward_cannot_change_what_the_others_see():
    def vandal(prompts, completions, ids):
        prompts.clear()
        completions.reverse()
        ids.clear()
        return [0] * 4

    stack = make(vandal=vandal, length=length)
    ids, completions = [1, 2, 3, 4], list(COMPLETIONS)
    for _ in range(3):
        assert stack(PROMPTS, completions, {"ids": ids}).raw[:, 1].tolist() == [1, 2, 3, 4]
    assert ids == [1, 2, 3, 4]


class Reordered:
    """Tells prompts, completions and mask apart by their names alone."""

    on_device, range = True, (0, 1)

    def score_tokens(self, params, completion_mask, completion_tokens, prompt_tokens):
        of_completions = jnp.sum(completion_tokens * completion_mask, axis=1)
        return of_completions + 1000.0 * prompt_tokens[:, 0]


def test_tokens_go_to_the_parameters_of_their_names_in_any_order():
    prompts, completions, mask = map(np.asarray, TOKENS.values())
    expected = (completions * mask).sum(axis=1) + 1000 * prompts[:, 0]
    scores = make(r=Reordered()).dispatch(*TOKENS.values()).result()
    np.testing.assert_allclose(scores["r"], expected)
