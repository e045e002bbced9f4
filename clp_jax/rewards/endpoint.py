"""JSON over HTTP, with time-outs and further attempts: what rewards and judges on servers share."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported when it is used: runs without a server do not need it
    import requests

# Too many requests; bad gateway, unavailable, gateway time-out: what waiting may mend.
_RETRIED_STATUS = (429, 502, 503, 504)

_SHOWN = 200  # characters of an answer in a message


class Endpoint:
    """One connection to a server that is sent JSON by POST.

    Connection errors, time-outs and status 429, 502, 503 and 504 are tried again: first at once,
    then after `backoff` · 2, · 4, · 8 ... seconds (at most 120), or what the server's Retry-After
    says. Everything else, and the last failure, is an error. Redirections are not followed.

    Args:
      url: of the server; http:// or https://. Messages show it, so keep secrets in `headers`.
      timeout: seconds to wait for a connection, and for the server to go on; range (0, inf).
      retries: further attempts at a request after its first, at least 0.
      backoff: seconds, range [0, inf); see above.
      headers: of every request, for example an API key.
      accepts: (status, body) -> whether an answer whose status is not 2xx counts as one; None for
        no such answer.

    Raises:
      ValueError: an argument that is out of its range.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 30.0,
        retries: int = 5,
        backoff: float = 0.5,
        headers: Mapping[str, str] | None = None,
        accepts: Callable[[int, bytes], bool] | None = None,
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url={url!r} must begin with http:// or https://")
        for name, number, valid, expected in (
            ("timeout", timeout, 0 < timeout < math.inf, "a positive number of seconds"),
            ("retries", retries, retries >= 0, "at least 0"),
            ("backoff", backoff, 0 <= backoff < math.inf, "at least 0 seconds"),
        ):
            if not valid:
                raise ValueError(f"{url}: {name}={number!r} must be {expected}")
        self.url = url
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._headers, self._accepts = dict(headers or {}), accepts
        self._session: requests.Session | None = None

    def post(self, request: Mapping[str, Any]) -> tuple[bytes, int]:
        """The body of the answer, and how many attempts it took.

        Raises:
          ConnectionError: no answer that counts after all attempts.
        """
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
                raise ConnectionError(f"{self.url} failed ({attempts(tries)}): {problem}")
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
        if self._accepts is not None and self._accepts(answer.status_code, answer.content):
            return answer, ""
        return answer, f"status {answer.status_code}, {shown(answer.content)}"

    def close(self) -> None:
        """Closes the connection; another call opens it again."""
        if self._session is not None:
            self._session.close()
        self._session = None


def attempts(tries: int) -> str:
    """For a message."""
    return f"{tries} attempt" + "s" * (tries > 1)


def shown(body: bytes) -> str:
    """The beginning of an answer, for a message."""
    text = body.decode(errors="replace")
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
