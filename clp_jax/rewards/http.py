"""Rewards that another process computes, asked over HTTP: a model server, an LLM as the judge.

In a module of one's own (`my_rewards.py`), to be named in REWARDS as 'my_rewards.judge':

    from clp_jax.rewards.http import HTTPReward

    judge = HTTPReward("http://localhost:8000/score", range=(1, 5))

The server is sent `{"prompts": [...], "completions": [...], "columns": {name: [...]}}`, lists of
equal length, and answers `{"scores": [...]}`, one finite number for each completion in their order.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported when it is used: runs without such a reward do not need it
    import requests

# Too many requests; bad gateway, unavailable, gateway time-out: what waiting may mend.
_RETRIED_STATUS = (429, 502, 503, 504)

_SHOWN = 200  # characters of an answer in a message


class HTTPReward:
    """A host reward whose scores a server gives.

    Connection errors, time-outs and status 429, 502, 503 and 504 are tried again: first at once,
    then after `backoff` · 2, · 4, · 8 ... seconds (at most 120), or what the server's Retry-After
    says. Everything else, and the last failure, is an error: no score is ever made up. Redirections
    are not followed.

    Args:
      url: of the server; http:// or https://. Messages show it, so keep secrets in `headers`.
      columns: names of the data's columns to send; they must be there.
      batch_size: completions in a request, at least 1. Requests are made one after the other.
      timeout: seconds to wait for a connection, and for the server to go on; range (0, inf).
      retries: further attempts at a request after its first, at least 0.
      backoff: seconds, range [0, inf); see above.
      headers: of every request, for example an API key.
      range: raw scores (low, high) that become 0 and 1; REWARD_RANGES comes before it.

    Raises:
      ValueError: an argument that is out of its range.
    """

    def __init__(
        self,
        url: str,
        *,
        columns: Sequence[str] = (),
        batch_size: int = 16,
        timeout: float = 30.0,
        retries: int = 5,
        backoff: float = 0.5,
        headers: Mapping[str, str] | None = None,
        range: tuple[float, float] = (0, 1),
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"HTTPReward: url={url!r} must begin with http:// or https://")
        if isinstance(columns, str):
            raise ValueError(f"HTTPReward: columns={columns!r} must be a tuple of names")
        for name, number, valid, expected in (
            ("batch_size", batch_size, batch_size >= 1, "at least 1"),
            ("timeout", timeout, 0 < timeout < math.inf, "a positive number of seconds"),
            ("retries", retries, retries >= 0, "at least 0"),
            ("backoff", backoff, 0 <= backoff < math.inf, "at least 0 seconds"),
        ):
            if not valid:
                raise ValueError(f"HTTPReward: {name}={number!r} must be {expected}")
        self.url, self.columns, self.range = url, tuple(columns), range
        self._batch_size, self._timeout = batch_size, timeout
        self._retries, self._backoff = retries, backoff
        self._headers = dict(headers or {})
        self._session: requests.Session | None = None

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float]:
        """Raw scores, one for each completion, in order.

        Raises:
          ConnectionError: no answer, or a status that is not 2xx, after all attempts.
          ValueError: an answer that is not the JSON described above.
        """
        scores: list[float] = []
        for start in range(0, len(completions), self._batch_size):
            part = slice(start, start + self._batch_size)
            request = {
                "prompts": list(prompts[part]),
                "completions": list(completions[part]),
                "columns": {name: list(columns[name][part]) for name in self.columns},
            }
            scores += self._scores(*self._post(request), len(request["completions"]))
        return scores

    def close(self) -> None:
        """Closes the connection; another call opens it again."""
        if self._session is not None:
            self._session.close()
        self._session = None

    def _post(self, request: Mapping[str, Any]) -> tuple[bytes, int]:
        """The body of the answer, and how many attempts it took."""
        from urllib3.exceptions import InvalidHeader
        from urllib3.util import Retry

        # Only its waiting is used: inside `requests` it would not see an answer that breaks off.
        retry, tries = Retry(None, backoff_factor=self._backoff), 1
        while True:
            answer, problem = self._attempt(request)
            if answer is not None and not problem:
                return answer.content, tries
            again = answer is None or answer.status_code in _RETRIED_STATUS
            if not again or tries > self._retries:
                raise ConnectionError(f"{self.url} failed ({_attempts(tries)}): {problem}")
            raw = None if answer is None else answer.raw
            retry, tries = retry.increment("POST", self.url, raw), tries + 1
            try:
                retry.sleep(raw)
            except InvalidHeader:  # a Retry-After that says nothing
                retry.sleep()

    def _attempt(self, request: Mapping[str, Any]) -> "tuple[requests.Response | None, str]":
        """(the answer, if one came, and what is wrong with it or its status; else "")."""
        import requests

        self._session = self._session or requests.Session()
        try:
            answer = self._session.post(
                self.url,
                json=request,
                headers=self._headers,
                timeout=self._timeout,
                allow_redirects=False,  # it would make a GET of the POST
            )
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            return None, f"{type(error).__name__}: {error}"
        if answer.ok and not answer.is_redirect:
            return answer, ""
        return answer, f"status {answer.status_code}, {_shown(answer.content)}"

    def _scores(self, body: bytes, tries: int, count: int) -> list[float]:
        """The scores in an answer.

        Raises:
          ValueError: it is not {"scores": `count` finite numbers}.
        """
        where = f"{self.url} ({_attempts(tries)})"
        try:
            scores = json.loads(body)["scores"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{where} answered {_shown(body)}; expected JSON {{"scores": [...]}}'
            ) from None
        if not isinstance(scores, list) or len(scores) != count:
            given = f"{len(scores)} scores" if isinstance(scores, list) else repr(scores)[:_SHOWN]
            raise ValueError(f"{where} answered {given} for {count} completions")
        for i, score in enumerate(scores):
            number = isinstance(score, int | float) and not isinstance(score, bool)
            if not number or not math.isfinite(score):
                raise ValueError(
                    f"{where} answered the score {score!r} for completion {i} of {count}; "
                    "expected a finite number"
                )
        return [float(score) for score in scores]


def _attempts(tries: int) -> str:
    return f"{tries} attempt" + "s" * (tries > 1)


def _shown(body: bytes) -> str:
    text = body.decode(errors="replace")
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
