"""Answers that are kept on disk, so that a run that was stopped does not ask again."""

import json

import pytest
from chat_server import ChatServer, completion

from clp_jax.evaluation.answers import Remembering
from clp_jax.evaluation.judge import CONCISENESS, Answer, Question, Verdict
from clp_jax.evaluation.judges import ChatJudge

FIRST, SECOND, EQUAL, NONE = Verdict
QUESTIONS = [Question(CONCISENESS, f"document {i}", f"one {i}", "two") for i in range(10)]


class Counting:
    """FIRST where the document's number is even; fails at its `fails`-th question.

    Attributes:
      asked: the questions that came.
      calls: how many each call had.
    """

    batch_size = 4

    def __init__(self, fails=None, verdict=None):
        self.asked, self.calls, self._fails, self._verdict = [], [], fails, verdict

    def __call__(self, questions):
        self.calls.append(len(questions))
        for question in questions:
            self.asked.append(question)
            if len(self.asked) == self._fails:
                raise ConnectionError("the line is dead")
            even = int(question.document.split()[1]) % 2 == 0
            yield self._verdict or Answer(FIRST if even else SECOND, f"because {question.first}")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


def verdicts(answers):
    return [answer.verdict for answer in answers]


def test_questions_come_in_batches_each_asked_once(path):
    judge = Counting()
    found = Remembering(judge, path, "me")([*QUESTIONS, QUESTIONS[3]])
    assert verdicts(found) == [FIRST, SECOND] * 5 + [SECOND]
    assert found[3].text == "because one 3"
    assert judge.calls == [4, 4, 2]
    assert judge.asked == QUESTIONS


def test_the_file_can_be_read(path):
    Remembering(Counting(), path, "me")(QUESTIONS)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 10
    assert {k: rows[1][k] for k in ("criterion", "first", "second", "verdict", "text")} == {
        "criterion": CONCISENESS,
        "first": "one 1",
        "second": "two",
        "verdict": "second",
        "text": "because one 1",
    }


def test_what_was_answered_is_not_asked_again(path, capsys):
    with pytest.raises(ConnectionError, match="the line is dead"):
        Remembering(Counting(fails=7), path, "me")(QUESTIONS)
    judge = Counting()
    found = Remembering(judge, path, "me")(QUESTIONS)
    assert judge.asked == QUESTIONS[6:]
    assert verdicts(found) == [FIRST, SECOND] * 5
    assert f"6 answers are in {path} already" in capsys.readouterr().err
    judge = Counting(fails=1)
    assert Remembering(judge, path, "me")(QUESTIONS) == found
    assert judge.calls == []


def test_a_line_that_was_being_written_is_dropped(path):
    Remembering(Counting(), path, "me")(QUESTIONS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    judge = Counting()
    Remembering(judge, path, "me")(QUESTIONS)
    assert judge.asked == QUESTIONS[9:]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("field", ["criterion", "document", "first", "second", "reference"])
def test_another_question_is_another_question(path, field):
    Remembering(Counting(), path, "me")(QUESTIONS[:1])
    judge = Counting()
    other = QUESTIONS[0]._replace(**{field: "other 1"})
    Remembering(judge, path, "me")([QUESTIONS[0], other])
    assert judge.asked == [other]


def test_another_judge_is_asked_itself(path):
    first = Remembering(Counting(verdict="equal"), path, "me")(QUESTIONS)
    judge = Counting()
    assert verdicts(Remembering(judge, path, "you")(QUESTIONS)) == [FIRST, SECOND] * 5
    assert judge.asked == QUESTIONS
    assert Remembering(Counting(fails=1), path, "me")(QUESTIONS) == first


def test_malformed_answers_are_asked_again_only_if_that_is_wanted(path):
    def judge(questions):
        return [SECOND, *[NONE] * (len(questions) - 1)]

    Remembering(judge, path, "me")(QUESTIONS)
    kept = Remembering(Counting(fails=1), path, "me")(QUESTIONS)
    assert verdicts(kept) == [SECOND] + [NONE] * 9
    again = Counting()
    found = Remembering(again, path, "me", malformed_again=True)(QUESTIONS)
    assert again.asked == QUESTIONS[1:]
    assert verdicts(found) == [SECOND, *[SECOND, FIRST] * 4, SECOND]
    # The later line of a question counts.
    assert Remembering(Counting(fails=1), path, "me")(QUESTIONS) == found


def test_long_and_strange_answers_are_kept(path):
    texts = ["\ud800 \u2028 \r\n ü", "x" * 10_000]

    def judge(questions):
        return [Answer(FIRST, text) for text in texts]

    found = Remembering(judge, path, "me")(QUESTIONS[:2])
    assert [answer.text for answer in found] == [texts[0], "x" * 500]
    assert Remembering(Counting(fails=1), path, "me")(QUESTIONS[:2]) == found


def test_twenty_malformed_answers_and_nothing_else_end_it(path, monkeypatch):
    many = [Question(CONCISENESS, f"document {i}", "one", "two") for i in range(500)]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ChatServer()
    judge = ChatJudge(server.url, "m", concurrency=4)
    try:
        server.script = [(200, completion("No."))] * 500
        server.delay = lambda request: 0.01
        with pytest.raises(ValueError, match="first 20 answers are all malformed; .* 'No.'"):
            Remembering(judge, path, "me")(many)
        assert len(server.requests) <= 40
        assert len(path.read_text().splitlines()) == 20
        # Another one: of the first, questions may still be under way.
        server.stop()
        judge.close()
        server = ChatServer()
        # One at a time: the answers come in the order of the script.
        judge = ChatJudge(server.url, "m", concurrency=1)
        server.script = [(200, completion("No."))] * 19 + [(200, completion("SUMMARY1"))]
        server.script += [(200, completion("No."))] * 30
        found = Remembering(judge, path, "you")(many[:50])
    finally:
        server.stop()
        judge.close()
    assert sorted(verdicts(found)) == [FIRST] + [NONE] * 49


@pytest.mark.parametrize(
    "line", ["[]", "{}", "nonsense", '{"key": "a", "verdict": "third", "text": ""}', "\xff"]
)
def test_a_file_of_something_else_is_refused(path, line):
    path.write_bytes(
        b'{"key": "a", "verdict": "first", "text": ""}\n' + line.encode("latin") + b"\n"
    )
    with pytest.raises(ValueError, match=f"{path}: line 2 is not an answer"):
        Remembering(Counting(), path, "me")
