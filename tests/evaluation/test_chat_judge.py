"""A chat model as the judge, against a server of the test's own."""

import threading
import time

import pytest
from chat_server import completion, shorter

from clp_jax.evaluation import judges
from clp_jax.evaluation.judge import COMPREHENSIVENESS, CONCISENESS, Answer, Question, Verdict
from clp_jax.evaluation.judges import ChatJudge, read_verdict

FIRST, SECOND, EQUAL, NONE = Verdict


@pytest.fixture
def chat(chat_server):
    """ChatJudge of the server; closed at the end."""
    made = []

    def chat_(**options):
        options = {"backoff": 0.0, "base_url": chat_server.url, "model": "m", **options}
        made.append(ChatJudge(**options))
        return made[-1]

    yield chat_
    for judge in made:
        judge.close()


def asked(count, criterion=CONCISENESS):
    """Questions whose shorter summary is the first where the number is even."""
    texts = [("ab", "abc") if i % 2 == 0 else ("abc", "ab") for i in range(count)]
    return [Question(criterion, f"document {i}", *pair) for i, pair in enumerate(texts)]


def test_what_is_sent(chat_server, chat, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sesame")
    question = Question(CONCISENESS, "A {brace} and an article.", "one {first}", "two", "hidden")
    judge = chat(base_url=chat_server.url + "/", model="some/model", api_key_env="JUDGE_KEY")
    assert list(judge([question])) == [Answer(SECOND, "SUMMARY2")]
    ((path, headers, request),) = chat_server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer sesame"
    (message,) = request.pop("messages")
    assert request == {"model": "some/model", "temperature": 0.0}
    assert message["role"] == "user"
    for text in ("A {brace} and an article.", "one {first}", "SUMMARY1:\none", "SUMMARY2:\ntwo"):
        assert text in message["content"]
    assert "hidden" not in message["content"]
    assert "sesame" not in judge.identity
    list(chat(temperature=None, max_tokens=9)([question]))
    _, headers, request = chat_server.requests[-1]
    assert "Authorization" not in headers
    assert {**request, "messages": None} == {"model": "m", "max_tokens": 9, "messages": None}


def test_each_criterion_has_its_own_standard():
    concise = judges.prompt(Question(CONCISENESS, "d", "a", "b"))
    comprehensive = judges.prompt(Question(COMPREHENSIVENESS, "d", "a", "b"))
    assert "conciseness" in concise
    assert "comprehensiveness" not in concise
    assert "quality and comprehensiveness" in comprehensive
    assert "conciseness" not in comprehensive


def test_answers_are_in_order_however_long_each_takes(chat_server, chat):
    chat_server.delay = lambda request: (
        0.1 if "document 0" in request["messages"][0]["content"] else 0
    )
    found = [answer.verdict for answer in chat(concurrency=4)(asked(12))]
    assert found == [FIRST, SECOND] * 6
    assert len(chat_server.requests) == 12


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_requests_at_a_time(chat_server, chat, concurrency):
    barrier = threading.Barrier(concurrency)

    def together(request):
        barrier.wait(10)
        return shorter(request)

    chat_server.script = [together] * 6
    assert len(list(chat(concurrency=concurrency)(asked(6)))) == 6
    assert chat_server.most == concurrency


@pytest.mark.parametrize(
    "answer",
    [
        completion("I cannot say."),
        completion("SUMMARY1 or SUMMARY2"),
        completion(""),
        completion(None),
        completion(["SUMMARY1"]),
        completion("SUMMARY1", finish_reason="length"),
        completion("SUMMARY1", finish_reason="content_filter"),
        {"choices": [{"message": {"content": "SUMMARY1", "refusal": "no"}}]},
        {"choices": []},
        {"choices": ["SUMMARY1"]},
        {"choices": [{"text": "SUMMARY1"}]},
        {"verdict": "SUMMARY1"},
        ["SUMMARY1"],
        b"SUMMARY1",
        b"<html>",
        b"\xff\xfe",
        b"",
    ],
)
def test_a_malformed_answer_is_no_verdict(chat_server, chat, answer):
    chat_server.script = [(200, answer)]
    assert [a.verdict for a in chat(concurrency=1)(asked(2))] == [NONE, SECOND]
    assert len(chat_server.requests) == 2


def test_what_was_answered_is_kept_with_the_verdict(chat_server, chat):
    whole = completion("SUMMARY2.", finish_reason="stop")
    chat_server.script = [(200, completion("Neither.")), (200, b"<html>"), (200, whole)]
    found = list(chat(concurrency=1)(asked(3)))
    assert found == [Answer(NONE, "Neither."), Answer(NONE, "<html>"), Answer(SECOND, "SUMMARY2.")]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("SUMMARY1", FIRST),
        (" summary2.\n", SECOND),
        ("**SUMMARY 1**", FIRST),
        ("ANSWER: SUMMARY2", SECOND),
        ("Answer:\n\n`SUMMARY1`", FIRST),
        ("The answer is SUMMARY2.", SECOND),
        ("<think>SUMMARY1 is long. SUMMARY2</think>\n\nSUMMARY1", FIRST),
        ("SUMMARY1\nSUMMARY2", NONE),
        ("Not SUMMARY1", NONE),
        ("SUMMARY1 is worse than SUMMARY2", NONE),
        ("SUMMARY12", NONE),
        ("SUMMARY3", NONE),
        ("1", NONE),
        ("SUMMARY", NONE),
        ("<think>SUMMARY1", NONE),
        ("SUMMARY1?", NONE),
    ],
)
def test_reading_a_verdict(text, verdict):
    assert read_verdict(text) == verdict


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_tried_again(chat_server, chat, status):
    chat_server.script = [(status, b"busy")] * 2
    assert [a.verdict for a in chat(retries=2)(asked(1))] == [FIRST]
    assert len(chat_server.requests) == 3
    chat_server.script = [(status, b"busy")] * 2
    with pytest.raises(ConnectionError, match=rf"failed \(2 attempts\): status {status}"):
        list(chat(retries=1)(asked(1)))


def test_a_server_that_is_slow(chat_server, chat):
    slow = iter([5.0, 0.0])
    chat_server.delay = lambda request: next(slow)
    assert [a.verdict for a in chat(timeout=0.2, retries=1)(asked(1))] == [FIRST]
    assert len(chat_server.requests) == 2
    chat_server.delay = lambda request: 5.0
    with pytest.raises(ConnectionError, match=r"failed \(2 attempts\): .*Timeout"):
        list(chat(timeout=0.1, retries=1)(asked(1)))


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_other_errors_stop(chat_server, chat, status, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sesame")
    chat_server.script = [(status, {"error": {"code": "invalid_api_key", "message": "no"}})] * 50
    judge = chat(concurrency=2, api_key_env="JUDGE_KEY")
    with pytest.raises(
        ConnectionError, match=rf"\(1 attempt\): status {status}.*invalid"
    ) as raised:
        list(judge(asked(50)))
    assert "sesame" not in str(raised.value)
    assert len(chat_server.requests) <= 10  # those that waited for their turn are not sent


@pytest.mark.parametrize("code", ["content_filter", "context_length_exceeded"])
def test_a_question_that_the_server_refuses_has_no_verdict(chat_server, chat, code):
    chat_server.script = [(400, {"error": {"code": code, "message": "SUMMARY1"}})]
    refused, answer = chat(concurrency=1)(asked(2))
    assert refused.verdict == NONE
    assert code in refused.text
    assert answer.verdict == SECOND
    assert len(chat_server.requests) == 2
    chat_server.script = [(401, {"error": {"code": code}})]
    with pytest.raises(ConnectionError, match="status 401"):
        list(chat()(asked(1)))


def test_an_error_does_not_wait_for_those_behind_it(chat_server, chat):
    chat_server.script = [(404, b"")]
    chat_server.delay = lambda request: 0.0 if len(chat_server.requests) == 1 else 0.05
    start = time.monotonic()
    with pytest.raises(ConnectionError):
        list(chat(concurrency=1)(asked(400)))
    assert time.monotonic() - start < 5
    assert len(chat_server.requests) < 50


def test_identity_differs_where_answers_may(chat):
    made = [chat(), chat(model="n"), chat(temperature=0.5), chat(base_url="http://localhost/v1")]
    assert len({judge.identity for judge in made}) == 4
    assert chat(concurrency=3, retries=1, timeout=3).identity == made[0].identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "concurrency=0 must be at least 1"),
        ({"timeout": 0}, "timeout=0 must be a positive"),
        ({"retries": -1}, "retries=-1 must be at least 0"),
        ({"base_url": "localhost"}, "must begin with http"),
        ({"api_key_env": "NO_SUCH_KEY"}, "environment variable NO_SUCH_KEY holds no API key"),
    ],
)
def test_arguments_out_of_range(chat, options, message):
    with pytest.raises(ValueError, match=message):
        chat(**options)
