"""Answers of a judge that are kept on disk as they come, so that none is asked for twice."""

import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

from clp_jax.evaluation.judge import Answer, Judge, Question, Verdict, answered
from clp_jax.reporting.metrics_log import say

ANSWERS = "answers.jsonl"

_KEPT_TEXT = 500  # characters of an answer that are kept
_BATCH_SIZE = 64
_GIVE_UP_AFTER = 20  # answers without one verdict
_SECONDS_BETWEEN_LINES = 10.0


class Remembering:
    """A judge that asks another one only what it has not answered yet.

    Args:
      judge: who is asked.
      path: JSONL file; every answer is appended as it comes. It may hold other judges' answers.
      identity: of the judge; answers of another one are not used.
      malformed_again: whether questions are asked again whose answer was `Verdict.NONE`.

    Raises:
      ValueError: the file is not one of answers; names the line.
    """

    def __init__(
        self,
        judge: Judge,
        path: pathlib.Path,
        identity: str,
        malformed_again: bool = False,
    ):
        self._judge, self._path, self._identity = judge, path, identity
        self._answers = _read_answers(path)
        if malformed_again:
            kept = self._answers.items()
            self._answers = {k: a for k, a in kept if a.verdict != Verdict.NONE}

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer for each question.

        Raises:
          ValueError: the first answers have no verdict among them; see also `judge.answered`.
        """
        keys = [self._key(question) for question in questions]
        asked = {k: q for k, q in zip(keys, questions, strict=True) if k not in self._answers}
        if len(asked) < len(set(keys)):
            say(f"judge: {len(set(keys)) - len(asked)} answers are in {self._path} already")
        self._ask(asked)
        return [self._answers[key] for key in keys]

    def _ask(self, asked: Mapping[str, Question]) -> None:
        """Asks, and keeps each answer as it comes."""
        started = said = time.monotonic()
        verdicts = 0
        # A lone surrogate, which a model may write, becomes the JSON escape that it is read from.
        with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            for done, (key, answer) in enumerate(self._new(asked), 1):
                file.write(_line(key, asked[key], answer))
                file.flush()
                self._answers[key] = answer
                verdicts += answer.verdict != Verdict.NONE
                if done >= _GIVE_UP_AFTER and not verdicts:
                    raise ValueError(
                        f"the first {done} answers are all malformed; the last is "
                        f"{answer.text!r}. They are in {self._path}"
                    )
                if (now := time.monotonic()) - said > _SECONDS_BETWEEN_LINES:
                    said, left = now, (now - started) / done * (len(asked) - done)
                    say(f"judge {done}/{len(asked)} answers  ETA {left:.0f} s")

    def _new(self, asked: Mapping[str, Question]) -> Iterator[tuple[str, Answer]]:
        """Each key with its answer, as they come."""
        size, keys = getattr(self._judge, "batch_size", _BATCH_SIZE), list(asked)
        for start in range(0, len(keys), size):
            batch = keys[start : start + size]
            answers = answered(self._judge, [asked[key] for key in batch])
            for key, answer in zip(batch, answers, strict=True):
                yield key, answer._replace(text=answer.text[:_KEPT_TEXT])

    def _key(self, question: Question) -> str:
        text = json.dumps([self._identity, *question])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _line(key: str, question: Question, answer: Answer) -> str:
    fields = {
        "key": key,
        "criterion": question.criterion,
        "first": question.first,
        "second": question.second,
        "verdict": answer.verdict,
        "text": answer.text,
    }
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _read_answers(path: pathlib.Path) -> dict[str, Answer]:
    """Key -> answer; what was being written when a run was killed is cut off."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    answers = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            fields = json.loads(line)
            answers[fields["key"]] = Answer(Verdict(fields["verdict"]), fields["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: line {number} is not an answer: {error}") from error
    return answers
