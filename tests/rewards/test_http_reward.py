"""Rewards over HTTP, against a server of the test's own."""

import json
import socket
import subprocess
import sys
import types

import pytest
from local_server import LocalServer

from clp_jax.reporting.errors import RewardError
from clp_jax.rewards import registry
from clp_jax.rewards.http import HTTPReward


def length_scores(request):
    return {"scores": [len(completion) for completion in request["completions"]]}


class Server(LocalServer):
    """Answers from a script, and with the completions' lengths when that is at its end.

    Attributes:
      script: what the next requests get: (status, headers, body), or a function that is called
        with the connection, to misbehave.
      requests: the JSON of those that came.
      headers: theirs.
    """

    def __init__(self):
        self.script, self.requests, self.headers = [], [], []
        super().__init__(self._answer, "/score")

    def _answer(self, handler):
        self.headers.append(dict(handler.headers))
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        self.requests.append(json.loads(body))
        step = self.script.pop(0) if self.script else None
        if callable(step):
            step(handler)
            return
        status, headers, answer = step or (200, {}, length_scores(self.requests[-1]))
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def make(server):
    """HTTPReward of the server; closed at the end."""
    made = []

    def make_(**options):
        made.append(HTTPReward(options.pop("url", server.url), **{"backoff": 0.0, **options}))
        return made[-1]

    yield make_
    for reward in made:
        reward.close()


TEXTS = ["a", "bbb", "cc", "ddddd", ""]


def test_scores_come_in_order_from_batches_of_the_asked_size(server, make):
    reward = make(batch_size=2, columns=("summary",), headers={"Authorization": "Bearer 5"})
    prompts = [f"p{i}" for i in range(5)]
    columns = {"summary": [f"s{i}" for i in range(5)], "document": ["secret"] * 5}
    scores = reward(prompts, TEXTS, **columns)
    assert scores == [1.0, 3.0, 2.0, 5.0, 0.0]
    assert all(isinstance(score, float) for score in scores)
    assert server.requests == [
        {"prompts": ["p0", "p1"], "completions": ["a", "bbb"],
         "columns": {"summary": ["s0", "s1"]}},
        {"prompts": ["p2", "p3"], "completions": ["cc", "ddddd"],
         "columns": {"summary": ["s2", "s3"]}},
        {"prompts": ["p4"], "completions": [""], "columns": {"summary": ["s4"]}},
    ]  # fmt: skip
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer 5"}
    assert reward([], [], summary=[]) == []
    assert len(server.requests) == 3


def breaks_off(handler):
    """Closes the connection in the middle of the answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"scores"')
    handler.close_connection = True


def hangs_up(handler):
    handler.close_connection = True


@pytest.mark.parametrize(
    "failure",
    [(429, {}, b""), (502, {}, b"bad"), (503, {}, {"scores": [9]}), (504, {}, b""),
     (503, {"Retry-After": "soon"}, b""), hangs_up, breaks_off],
    ids=["429", "502", "503", "504", "unreadable-retry-after", "hangs-up", "breaks-off"],
)  # fmt: skip
def test_what_may_pass_is_tried_again(server, make, failure):
    server.script = [failure, failure]
    assert make(retries=2)(["p"], ["four"]) == [4.0]
    assert server.requests == [server.requests[0]] * 3
    server.script = [failure, failure]
    with pytest.raises(ConnectionError) as raised:
        make(retries=1)(["p"], ["four"])
    assert f"{server.url} failed (2 attempts)" in str(raised.value)
    if isinstance(failure, tuple):
        assert f"status {failure[0]}" in str(raised.value)


def test_waits_grow_and_heed_retry_after(server, make, monkeypatch):
    waits = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", waits.append)
    unavailable = (503, {}, b"")
    server.script = [unavailable, unavailable, unavailable, (429, {"Retry-After": "7"}, b"")]
    assert make(backoff=0.5)(["p"], ["four"]) == [4.0]
    assert [wait for wait in waits if wait] == [1.0, 2.0, 7.0]


def test_a_server_that_does_not_answer(server, make):
    server.script = [lambda handler: server.stopping.wait(20)] * 2
    with pytest.raises(ConnectionError, match=r"failed \(2 attempts\): .*Timeout"):
        make(timeout=0.1, retries=1)(["p"], ["four"])
    assert len(server.requests) == 2


def test_a_server_that_is_not_there(make):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/score"
        with pytest.raises(ConnectionError, match=rf"{url} failed \(3 attempts\): ConnectionError"):
            make(url=url, retries=2)(["p"], ["four"])


@pytest.mark.parametrize(
    ("status", "headers"),
    [(400, {}), (404, {}), (500, {}), (301, {"Location": "/elsewhere"})],
)
def test_what_does_not_pass_is_not_tried_again(server, make, status, headers):
    server.script = [(status, headers, b"no model 'x' " + b"y" * 500)]
    with pytest.raises(ConnectionError) as raised:
        make()(["p"], ["four"])
    assert f"{server.url} failed (1 attempt): status {status}, \"no model 'x' yyy" in str(
        raised.value
    )
    assert len(str(raised.value)) < 400
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>", r"answered '<html>'; expected JSON"),
        (b"", r"answered ''; expected JSON"),
        (b"\xff\xfe", r"expected JSON"),
        ({"score": [1, 2]}, r"score.*expected JSON"),
        ([1, 2], r"expected JSON"),
        (b"null", r"expected JSON"),
        ({"scores": 5}, r"answered 5 for 2 completions"),
        ({"scores": "12"}, r"answered '12' for 2 completions"),
        ({"scores": [1]}, r"answered 1 scores for 2 completions"),
        ({"scores": [1, 2, 3]}, r"answered 3 scores for 2 completions"),
        ({"scores": [1, None]}, r"the score None for completion 1 of 2"),
        ({"scores": ["1", 2]}, r"the score '1' for completion 0 of 2"),
        ({"scores": [1, True]}, r"the score True for completion 1 of 2"),
        (b'{"scores": [1, NaN]}', r"the score nan for completion 1 of 2"),
    ],
)
def test_malformed_answers_are_errors(server, make, answer, message):
    server.script = [(200, {}, answer)]
    with pytest.raises(ValueError, match=rf"{server.url} \(1 attempt\).*{message}"):
        make()(["p", "q"], ["a", "b"])
    assert len(server.requests) == 1


def test_a_stack_takes_it_from_a_module(server, make, monkeypatch):
    module = types.ModuleType("my_rewards")
    module.judge = make(columns=("summary",), range=(0, 8), retries=0)
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    stack = registry.make_reward_stack(("my_rewards.judge",))
    assert stack.names == ("judge",)
    assert stack.columns == ("summary",)
    with pytest.raises(ValueError, match="reward 'judge' needs a column .*'summary'"):
        stack.check_columns(("document",), "the data")
    scores = stack(["p", "q"], ["four", "ab"], {"summary": ["s", "t"], "document": ["d", "e"]})
    assert scores.raw.tolist() == [[4.0], [2.0]]
    assert scores.normalised.tolist() == [[0.5], [0.25]]
    assert server.requests[0]["columns"] == {"summary": ["s", "t"]}
    server.script = [(500, {}, b"out of memory")]
    with pytest.raises(RewardError, match="reward 'judge' raised .*status 500, 'out of memory'"):
        stack(["p"], ["four"], {"summary": ["s"]})
    stack.close()
    assert stack(["p"], ["four"], {"summary": ["s"]}).raw.tolist() == [[4.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "url='localhost:8000' must begin with http:// or https://"),
        ({"columns": "summary"}, "columns='summary' must be a tuple"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"timeout": 0}, "timeout=0 must be a positive"),
        ({"retries": -1}, "retries=-1 must be at least 0"),
        ({"backoff": -1}, "backoff=-1 must be at least 0"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        HTTPReward(**{"url": "http://localhost", **options})


def test_requests_is_imported_when_it_is_used():
    code = """
import sys
from clp_jax.rewards.http import HTTPReward
HTTPReward("http://localhost:8000/score")
assert not {"requests", "urllib3"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
