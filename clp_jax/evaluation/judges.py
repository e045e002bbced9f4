"""Judges: a chat model behind an HTTP endpoint, rewards, or a callable of one's own.

A judge of one's own is a function of a batch of questions, in a module (`my_judges.py`) that is
named as --judge=my_judges.shorter:

    def shorter(questions):
        return ["first" if len(q.first) < len(q.second) else "second" for q in questions]
"""

import functools
import json
import os
import queue
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clp_jax.evaluation import judge as judge_lib
from clp_jax.evaluation.judge import CRITERIA, Answer, Judge, Question, Verdict
from clp_jax.rewards import registry, scoring
from clp_jax.rewards.base import RewardStack
from clp_jax.rewards.endpoint import Endpoint

REWARD_PREFIX = "reward:"

# What is asked of a chat model: the paper's criteria (App. D.1) in words of our own.
_STANDARDS = {
    judge_lib.CONCISENESS: (
        "conciseness: the better summary tells what matters in the article in fewer words, "
        "and spends none on what does not matter"
    ),
    judge_lib.COMPREHENSIVENESS: (
        "quality and comprehensiveness: the better summary is the better written and more "
        "faithful one, and covers more of what matters in the article"
    ),
}
_PROMPT = """\
You are an experienced editor who compares two summaries of one article.
Compare them by this standard alone: {standard}.

ARTICLE:
{document}

SUMMARY1:
{first}

SUMMARY2:
{second}

Which of the two is better by that standard? \
Reply with exactly one word, SUMMARY1 or SUMMARY2, and nothing else."""

_VERDICT = re.compile(r"(?:(?:the )?answer(?: is)?:? )?summary ?([12])", re.IGNORECASE)
_REASONING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)

# Error codes of status 400 that concern the one question: it has no answer, the others may have.
_REFUSALS = ("content_filter", "content_policy_violation", "context_length_exceeded")

# Why an answer ended before the model was done with it.
_CUT_OFF = ("length", "content_filter")


def make_judge(spec: str, model: str | None = None, **options: Any) -> Judge:
    """The judge that a command line asks for.

    Args:
      spec: "http://host:8000/v1", the base URL of an OpenAI-compatible API; "reward:NAME[=DIR]", or
        two of them with a comma between, for conciseness and for comprehensiveness, named as in
        `scoring.make_stack`; or the dotted path of a callable, or of a class without arguments.
      model: of the API; needed there.
      **options: of `ChatJudge`.

    Raises:
      ValueError: no such judge, or one that lacks something.
    """
    if spec.startswith(("http://", "https://")):
        if not model:
            raise ValueError(f"--judge={spec} needs --judge_model, the model's name there")
        return ChatJudge(spec, model, **options)
    if model is not None or options.get("api_key_env") is not None:
        raise ValueError(f"--judge_model and --api_key_env go with a URL; --judge is {spec!r}")
    if spec.startswith(REWARD_PREFIX):
        return RewardJudge.of(spec)
    if "." not in spec:
        raise ValueError(
            f"--judge={spec!r} is none of http://HOST/v1, {REWARD_PREFIX}NAME, my_module.my_judge"
        )
    judge = registry.resolve(spec, "--judge")
    if not callable(judge):
        raise ValueError(f"--judge={spec}: {judge!r} is not callable")
    return judge


def identity(judge: Judge, spec: str) -> str:
    """What an answer is kept under besides its question; `spec` is how the judge was named."""
    return str(getattr(judge, "identity", spec))


def prompt(question: Question) -> str:
    """What a chat model is asked."""
    return _PROMPT.format(
        standard=_STANDARDS[question.criterion],
        document=question.document,
        first=question.first,
        second=question.second,
    )


def read_verdict(text: str) -> Verdict:
    """The verdict that an answer is, or NONE.

    The whole answer has to name one summary, as "SUMMARY1", "Answer: summary 2." or "**SUMMARY1**";
    reasoning between <think> and </think> may stand before it. Nothing is read out of prose.
    """
    text = _REASONING.sub("", text)
    match = _VERDICT.fullmatch(" ".join(re.sub(r"[*_`\"'.\s]+", " ", text).split()))
    if match is None:
        return Verdict.NONE
    return Verdict.FIRST if match[1] == "1" else Verdict.SECOND


class ChatJudge:
    """A chat model behind an OpenAI-compatible HTTP API: POST {base_url}/chat/completions.

    Attempts, waits and time-outs are those of `Endpoint`. An answer that does not name a summary,
    is malformed in any other way, or was refused, is `Verdict.NONE`.

    Args:
      base_url: "https://host/v1".
      model: its name there.
      api_key_env: environment variable with the API key, which is sent as a bearer token and shown
        nowhere; None for no key.
      concurrency: requests at a time, at least 1.
      temperature: None leaves it to the server.
      max_tokens: likewise; of an answer, at least 1.
      timeout: see `Endpoint`.
      retries: likewise.
      backoff: likewise.

    Raises:
      ValueError: an argument that is out of its range; no key in the variable.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        concurrency: int = 8,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 0.5,
    ):
        if concurrency < 1:
            raise ValueError(f"ChatJudge: concurrency={concurrency!r} must be at least 1")
        headers = {}
        if api_key_env is not None:
            if not os.environ.get(api_key_env):
                raise ValueError(f"the environment variable {api_key_env} holds no API key")
            headers["Authorization"] = f"Bearer {os.environ[api_key_env]}"
        settings = {"temperature": temperature, "max_tokens": max_tokens}
        self._settings = {"model": model} | {k: v for k, v in settings.items() if v is not None}
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._concurrency = concurrency
        self._endpoints = [
            Endpoint(
                self._url,
                timeout=timeout,
                retries=retries,
                backoff=backoff,
                headers=headers,
                accepts=_refusal,
            )
            for _ in range(concurrency)
        ]
        self._free: queue.SimpleQueue[Endpoint] = queue.SimpleQueue()
        for endpoint in self._endpoints:
            self._free.put(endpoint)

    @property
    def identity(self) -> str:
        """URL, settings and prompts, on which the answers depend."""
        return json.dumps([self._url, self._settings, _PROMPT, _STANDARDS])

    def __call__(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Answers in the order of the questions, as they come.

        Raises:
          ConnectionError: no answer, or a status that is not 2xx, after all attempts.
        """
        with ThreadPoolExecutor(self._concurrency) as pool:
            pending = [pool.submit(self._answer, question) for question in questions]
            try:
                for future in pending:
                    yield future.result()
            finally:
                for future in pending:
                    future.cancel()

    def close(self) -> None:
        """Closes the connections; another call opens them again."""
        for endpoint in self._endpoints:
            endpoint.close()

    def _answer(self, question: Question) -> Answer:
        endpoint = self._free.get()
        try:
            message = {"role": "user", "content": prompt(question)}
            body, _ = endpoint.post({**self._settings, "messages": [message]})
        finally:
            self._free.put(endpoint)
        content = _content(body)
        if content is None:
            return Answer(Verdict.NONE, body.decode(errors="replace"))
        return Answer(read_verdict(content), content)


def _content(body: bytes) -> str | None:
    """The message of a chat completion that is whole; None for anything else."""
    try:
        choice = json.loads(body)["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        content, refusal = message["content"], message.get("refusal")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return content if isinstance(content, str) and not refusal and ended not in _CUT_OFF else None


def _refusal(status: int, body: bytes) -> bool:
    """Whether an error concerns only the question that was asked."""
    try:
        return status == 400 and json.loads(body)["error"]["code"] in _REFUSALS
    except (ValueError, KeyError, TypeError):
        return False


class RewardJudge:
    """Prefers the summary with the higher score; equal scores are `Verdict.EQUAL`.

    Args:
      rewards: {criterion: a stack of one reward that reads text}.
      identity: names the rewards, and what they were read from.
    """

    batch_size = 256

    def __init__(self, rewards: Mapping[str, RewardStack], identity: str):
        self._rewards, self.identity = dict(rewards), identity

    @classmethod
    def of(cls, spec: str) -> "RewardJudge":
        """From "reward:NAME[=DIR]" or "reward:NAME[=DIR],NAME[=DIR]"; see `make_judge`."""
        names = [name.strip() for name in spec.removeprefix(REWARD_PREFIX).split(",")]
        if len(names) > len(CRITERIA):
            raise ValueError(
                f"--judge={spec} names {len(names)} rewards; expected one for both criteria, or "
                f"two, for {' and '.join(CRITERIA)}"
            )
        make = functools.cache(lambda name: scoring.of_text(scoring.make_stack(name)))
        # One name serves both criteria.
        return cls({c: make(names[i % len(names)]) for i, c in enumerate(CRITERIA)}, spec)

    def __call__(self, questions: Sequence[Question]) -> list[Verdict]:
        """One verdict for each question.

        Raises:
          ValueError: the reward needs what the questions lack, as a reference.
          RewardError: the reward failed.
        """
        found: dict[Question, Verdict] = {}
        for criterion, stack in self._rewards.items():
            found |= _verdicts(stack, [q for q in questions if q.criterion == criterion])
        return [found.get(question, Verdict.NONE) for question in questions]

    def close(self) -> None:
        """Closes the rewards."""
        for stack in set(self._rewards.values()):
            stack.close()


def _verdicts(stack: RewardStack, questions: Sequence[Question]) -> dict[Question, Verdict]:
    """By the scores of the texts, each of which is scored once."""
    if not questions:
        return {}
    texts = dict.fromkeys(
        (q.document, q.reference, text) for q in questions for text in (q.first, q.second)
    )
    documents, references, summaries = (list(column) for column in zip(*texts, strict=True))
    columns = {"document": documents}
    if all(references):
        columns["summary"] = references
    stack.check_columns(columns, "the evaluation")
    scores = stack(documents, summaries, columns).raw[:, 0]
    score_of = dict(zip(texts, scores.tolist(), strict=True))

    def verdict(question: Question) -> Verdict:
        where = question.document, question.reference
        first, second = score_of[*where, question.first], score_of[*where, question.second]
        if first == second:
            return Verdict.EQUAL
        return Verdict.FIRST if first > second else Verdict.SECOND

    return {question: verdict(question) for question in questions}
