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
from typing import Any

from clp_jax.rewards.endpoint import Endpoint, attempts, shown


class HTTPReward:
    """A host reward whose scores a server gives.

    What is tried again, and when, is `Endpoint`'s. What fails then is an error: no score is ever
    made up.

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
        if isinstance(columns, str):
            raise ValueError(f"{url}: columns={columns!r} must be a tuple of names")
        if batch_size < 1:
            raise ValueError(f"{url}: batch_size={batch_size!r} must be at least 1")
        self.columns, self.range = tuple(columns), range
        self._batch_size = batch_size
        self._endpoint = Endpoint(
            url, timeout=timeout, retries=retries, backoff=backoff, headers=headers
        )

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
            scores += self._scores(*self._endpoint.post(request), len(request["completions"]))
        return scores

    def close(self) -> None:
        """Closes the connection; another call opens it again."""
        self._endpoint.close()

    def _scores(self, body: bytes, tries: int, count: int) -> list[float]:
        """The scores in an answer.

        Raises:
          ValueError: it is not {"scores": `count` finite numbers}.
        """
        where = f"{self._endpoint.url} ({attempts(tries)})"
        try:
            scores = json.loads(body)["scores"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{where} answered {shown(body)}; expected JSON {{"scores": [...]}}'
            ) from None
        if not isinstance(scores, list) or len(scores) != count:
            given = f"{len(scores)} scores" if isinstance(scores, list) else repr(scores)[:200]
            raise ValueError(f"{where} answered {given} for {count} completions")
        for i, score in enumerate(scores):
            number = isinstance(score, int | float) and not isinstance(score, bool)
            if not number or not math.isfinite(score):
                raise ValueError(
                    f"{where} answered the score {score!r} for completion {i} of {count}; "
                    "expected a finite number"
                )
        return [float(score) for score in scores]
