import fractions
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from clp_jax.reporting.errors import RewardError
from clp_jax.rewards.base import NamedReward, RewardStack

PROMPTS = ["p", "q", "r", "s"]
COMPLETIONS = ["a", "bb", "ccc", "dddd"]


def length(prompts, completions):
    return [len(c) for c in completions]


def make(**rewards):
    return RewardStack([NamedReward.of(name, reward) for name, reward in rewards.items()])


@pytest.mark.parametrize(
    "scores",
    [
        (1, 2, 3, 4),
        np.array([1, 2, 3, 4]),
        jnp.array([1, 2, 3, 4], jnp.bfloat16),
        [np.float32(1), fractions.Fraction(2), 3.0, jnp.array(4)],
        {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}.values(),
    ],
    ids=lambda s: type(s).__name__,
)
def test_good_scores(scores):
    assert make(x=lambda p, c: scores)(PROMPTS, COMPLETIONS).raw[:, 0].tolist() == [1, 2, 3, 4]
    assert make(x=lambda p, c: (s for s in scores))(PROMPTS, COMPLETIONS).raw.sum() == 10


def test_true_and_false_are_scores():
    stack = make(x=lambda p, c: [True, False, np.True_, np.False_])
    assert stack(PROMPTS, COMPLETIONS).raw[:, 0].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, r"returned None; expected a sequence of 4 numbers"),
        (0.5, r"returned 0.5 \(float\); expected a sequence of 4 numbers"),
        ("1234", r"returned '1234' \(str\)"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, r"\(dict\); expected a sequence"),
        ({1.0, 2.0, 3.0, 4.0}, r"\(set\); expected a sequence"),
        ([1.0, 2.0, 3.0], "returned 3 scores for 4 completions"),
        ([], "returned 0 scores for 4 completions"),
        (np.zeros(5), "returned 5 scores for 4 completions"),
        (np.zeros((4, 1)), r"array of shape \(4, 1\); expected \(4,\)"),
        (np.float32(3), r"array of shape \(\); expected \(4,\)"),
        ([1.0, None, 3.0, 4.0], "returned None for completion 1 of 4; expected a finite number"),
        ([1.0, 2.0, float("nan"), 4.0], "returned nan for completion 2 of 4"),
        (np.array([1.0, 2.0, 3.0, -np.inf]), "returned -inf for completion 3 of 4"),
        ([1e39, 0, 0, 0], r"returned 1e\+39 for completion 0 of 4"),
        ([0, 10**400, 0, 0], "for completion 1 of 4"),
        (["1", "2", "3", "4"], r"returned '1' \(str\) for completion 0 of 4"),
        (np.array(["1", "2", "3", "4"]), r"\(str_?\) for completion 0 of 4"),
        ([1j, 0, 0, 0], r"returned 1j \(complex\) for completion 0"),
        (np.zeros(4, complex), r"\(complex128\) for completion 0"),
        ([[1.0], [2.0], [3.0], [4.0]], r"returned \[1.0\] \(list\) for completion 0"),
        ([np.zeros(1)] * 4, r"\(ndarray\) for completion 0"),
        (np.array([1, None, 2, 3]), "returned None for completion 1 of 4"),
    ],
)
def test_bad_scores(scores, message):
    with pytest.raises(RewardError, match=f"reward 'x' .*{message}"):
        make(fine=length, x=lambda prompts, completions: scores)(PROMPTS, COMPLETIONS)


def _raising_generator(prompts, completions):
    yield 1.0
    raise ZeroDivisionError("late")


def _raise(error):
    def reward(prompts, completions):
        raise error

    return reward


@pytest.mark.parametrize(
    ("reward", "kind"),
    [
        (_raise(KeyError("k")), KeyError),
        (_raise(SystemExit(3)), SystemExit),
        (_raising_generator, ZeroDivisionError),
    ],
)
def test_an_exception_inside_a_reward_is_chained(reward, kind):
    with pytest.raises(RewardError, match=f"reward 'x' raised {kind.__name__}") as info:
        make(fine=length, x=reward)(PROMPTS, COMPLETIONS)
    assert isinstance(info.value.__cause__, kind)


def test_the_first_reward_that_fails_is_reported():
    def slow(prompts, completions):
        time.sleep(0.05)
        raise KeyError

    with pytest.raises(RewardError, match="'slow'"):
        make(slow=slow, fast=_raise(KeyError()))(PROMPTS, COMPLETIONS)


# Background


def test_submit_returns_before_scoring_finishes_and_rewards_run_side_by_side():
    meet = threading.Barrier(2)
    go = threading.Event()

    def waits(prompts, completions):
        assert go.wait(20)
        meet.wait(20)
        return [1.0] * 4

    def waits_too(prompts, completions):
        meet.wait(20)
        time.sleep(0.02)
        return [2.0] * 4

    stack = make(waits=waits, waits_too=waits_too)
    handle = stack.submit(PROMPTS, COMPLETIONS)
    assert not go.is_set()  # submit came back although no reward can have ended
    assert handle.seconds == {}
    go.set()
    scores = handle.result()
    assert list(scores) == ["waits", "waits_too"]
    assert scores["waits"].tolist() == [1] * 4
    assert set(handle.seconds) == {"waits", "waits_too"}
    assert 0.02 <= handle.seconds["waits_too"] < 20


def test_a_reward_never_runs_beside_itself():
    running = threading.Lock()

    def alone(prompts, completions):
        assert running.acquire(blocking=False)
        time.sleep(0.02)
        running.release()
        return [0.0] * 4

    stack = make(alone=alone)
    for handle in [stack.submit(PROMPTS, COMPLETIONS) for _ in range(3)]:
        handle.result()


def first_words(prompts, completions):
    return [f"{p}{c}" for p, c in zip(prompts, completions, strict=True)]


SEEN = first_words(PROMPTS, COMPLETIONS)


class Swapped:
    def __call__(self, completions, prompts):
        self.seen = first_words(prompts, completions)
        return [0.0] * len(completions)


@pytest.mark.parametrize(
    "signature",
    [
        "prompts, completions",
        "completions, prompts",
        "completions, prompts, **columns",
        "completions, prompts, /",
        "completions, **columns",
        "*, completions, prompts",
        "*, prompts, completions, **columns",
        "summary, completions, prompts",
        "x, completions",
        "prompts, x",
        "x, y",
        "x, y, /",
        "*texts",
    ],
)
def test_texts_go_to_the_parameters_of_their_names_in_any_order(signature):
    names = [part.strip() for part in signature.replace("*", "").split(",")]
    namespace = {}
    exec(f"def reward({signature}): return seen(locals())", namespace)

    def seen(given):
        given = {**given.get("columns", {}), **given}
        if signature.endswith("/") and "completions" in names:  # its names cannot be used
            prompts, completions = given["completions"], given["prompts"]
        elif "texts" in names:
            prompts, completions = given["texts"]
        else:
            prompts = given["prompts"] if "prompts" in given else given["x"]
            completions = next(given[n] for n in ("completions", "y", "x") if n in given)
        assert first_words(prompts, completions) == SEEN
        assert given.get("summary", SEEN) == SEEN
        return [1.0] * len(completions)

    namespace["seen"] = seen
    stack = RewardStack([NamedReward("r", namespace["reward"], (0, 1))])
    assert stack(PROMPTS, COMPLETIONS, {"summary": SEEN}).raw.tolist() == [[1.0]] * 4


def test_a_method_with_its_texts_swapped():
    reward = Swapped()
    make(r=reward)(PROMPTS, COMPLETIONS)
    assert reward.seen == SEEN


class Tensor:
    """As torch's: it does not become a number before it is detached."""

    def __init__(self, value):
        self._value = value

    def detach(self):
        return self._value

    def __array__(self, *args, **kwargs):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad")

    __float__ = __array__


def test_scores_that_are_differentiated_are_taken_as_numbers():
    stack = make(
        each=lambda p, c: [Tensor(float(len(x))) for x in c],
        whole=lambda p, c: Tensor(np.array([len(x) for x in c], np.float64)),
    )
    assert stack(PROMPTS, COMPLETIONS).raw.tolist() == [[n, n] for n in (1, 2, 3, 4)]


class Stubborn:
    def __float__(self):
        raise RuntimeError("no")

    __array__ = __float__


def test_whatever_a_score_raises_is_the_rewards_failure():
    stack = make(r=lambda p, c: [1.0, Stubborn(), 1.0, 1.0])
    with pytest.raises(RewardError, match=r"reward 'r' returned .*Stubborn.* for completion 1"):
        stack(PROMPTS, COMPLETIONS)
