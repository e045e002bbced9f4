"""Judges by name; rewards as judges."""

import itertools
import sys
import types

import pytest

from clp_jax.evaluation import judges
from clp_jax.evaluation.judge import COMPREHENSIVENESS, CONCISENESS, CRITERIA, Question, Verdict
from clp_jax.evaluation.judges import ChatJudge, RewardJudge, make_judge
from clp_jax.reporting.errors import RewardError

FIRST, SECOND, EQUAL, NONE = Verdict


def brevity(prompts, completions, **columns):
    brevity.calls.append(list(zip(columns["document"], completions, strict=True)))
    return [-len(completion) for completion in completions]


def vowels(prompts, completions, document):
    return [sum(completion.count(v) for v in "aeiou") for completion in completions]


def broken(prompts, completions):
    raise KeyError("weights")


@pytest.fixture
def my_rewards(monkeypatch):
    module = types.ModuleType("my_rewards")
    module.brevity, module.vowels, module.broken = brevity, vowels, broken
    brevity.calls = []
    monkeypatch.setitem(sys.modules, "my_rewards", module)


def all_questions(*triples):
    """Of both criteria: [(document, first, second)]."""
    return [Question(criterion, *t) for t, criterion in itertools.product(triples, CRITERIA)]


TRIPLES = [("d", "xaa", "xyzzy"), ("d", "xyzzy", "xaa"), ("e", "same", "same"), ("e", "ab", "cd")]


def test_the_higher_score_is_preferred_each_criterion_with_its_reward(my_rewards):
    judge = RewardJudge.of("reward:my_rewards.brevity,my_rewards.vowels")
    found = judge(all_questions(*TRIPLES))
    assert found[0::2] == [FIRST, SECOND, EQUAL, EQUAL]
    assert found[1::2] == [FIRST, SECOND, EQUAL, FIRST]
    # Every text is scored once for its document.
    (scored,) = brevity.calls
    assert sorted(scored) == sorted(
        [("d", "xaa"), ("d", "xyzzy"), ("e", "same"), ("e", "ab"), ("e", "cd")]
    )
    judge.close()


def test_one_reward_serves_both_criteria(my_rewards):
    judge = RewardJudge.of("reward: my_rewards.brevity")
    assert judge(all_questions(*TRIPLES)) == [FIRST] * 2 + [SECOND] * 2 + [EQUAL] * 4
    assert judge([]) == []
    assert judge(all_questions(*TRIPLES)[:1]) == [FIRST]
    judge.close()


def test_rouge_compares_with_the_reference():
    judge = RewardJudge.of("reward:rouge")
    texts = ("the cat sat", "a dog ran")
    question = Question(CONCISENESS, "d", *texts, reference="a dog ran off")
    assert judge([question, question._replace(reference="the cat")]) == [SECOND, FIRST]
    with pytest.raises(ValueError, match=r"'rouge' needs a column .*'summary' .*the evaluation"):
        judge([question._replace(reference="")])
    judge.close()


def test_the_same_text_scores_differently_for_another_document():
    judge = RewardJudge.of("reward:briefs_quality")
    from clp_jax.data.briefs import corpus

    one, two = corpus.generate("train", 2)
    pair = one["summary"], two["summary"]
    questions = [Question(COMPREHENSIVENESS, row["document"], *pair) for row in (one, two)]
    assert judge(questions) == [FIRST, SECOND]
    judge.close()


def test_a_reward_that_fails_is_named(my_rewards):
    with pytest.raises(RewardError, match="reward 'broken' raised KeyError"):
        RewardJudge.of("reward:my_rewards.broken")(all_questions(*TRIPLES))


# By name


def test_judges_by_name(my_rewards, monkeypatch):
    module = types.ModuleType("my_judges")
    module.always = lambda questions: ["first"] * len(questions)
    module.Second = type("Second", (), {"__call__": lambda self, q: ["second"] * len(q)})
    module.number = 5
    monkeypatch.setitem(sys.modules, "my_judges", module)
    asked = [Question(CONCISENESS, *triple) for triple in TRIPLES[:2]]
    assert make_judge("my_judges.always")(asked) == ["first", "first"]
    assert make_judge("my_judges.Second")(asked) == ["second", "second"]
    judge = make_judge("reward:my_rewards.brevity", concurrency=3, timeout=5.0)
    assert judge(asked) == [FIRST, SECOND]
    assert judges.identity(judge, "given") == "reward:my_rewards.brevity"
    assert judges.identity(module.always, "my_judges.always") == "my_judges.always"
    judge = make_judge("http://localhost:8000/v1", "m", concurrency=1)
    assert isinstance(judge, ChatJudge)
    assert judges.identity(judge, "given") == judge.identity
    with pytest.raises(ValueError, match=r"--judge=my_judges.number: 5 is not callable"):
        make_judge("my_judges.number")
    with pytest.raises(ValueError, match=r"unknown attribute 'alway'.*nearest: always"):
        make_judge("my_judges.alway")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("http://localhost/v1", {}, "needs --judge_model"),
        ("reward:rouge", {"model": "m"}, "go with a URL; --judge is 'reward:rouge'"),
        ("a.b", {"api_key_env": "KEY"}, "go with a URL; --judge is 'a.b'"),
        ("reward:ruge", {}, "unknown reward 'ruge'"),
        ("reward:nli=nowhere", {}, "nowhere holds no reward model"),
        ("reward:rouge,rouge,rouge", {}, "names 3 rewards; expected one for both criteria, or two"),
        ("rouge", {}, "--judge='rouge' is none of http://HOST/v1, reward:NAME, my_module.my_judge"),
        ("no_such_module.judge", {}, "no module 'no_such_module'"),
    ],
)
def test_names_that_are_none(spec, options, message):
    with pytest.raises(ValueError, match=message):
        make_judge(spec, **options)
