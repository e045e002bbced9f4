"""Calling host rewards: their columns, what they return, and threads to run them in."""

import inspect
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from clp_jax.reporting.errors import RewardError

_TEXTS = ("prompts", "completions")


class Scored(NamedTuple):
    """What a reward may return in place of its scores, to have numbers of its own logged."""

    scores: Any  # one raw score per completion
    metrics: Mapping[str, Any]  # name -> number, for the batch


def check_scores(name: str, scores: Any, count: int) -> np.ndarray:
    """What a reward returned, as float32 [count].

    Args:
      name: the reward's name, for the message.
      scores: what it returned: a sequence of numbers, or an array [count].
      count: how many completions it was given.

    Returns:
      float32 [count].

    Raises:
      RewardError: None, a wrong count or shape, a value that is None, not a number, NaN or
        infinite (also: beyond float32).
    """
    scores = _materialised(scores)
    if isinstance(scores, np.ndarray) and scores.ndim != 1:
        raise RewardError(
            f"reward {name!r} returned an array of shape {scores.shape}; expected ({count},)"
        )
    if not isinstance(scores, Iterable) or isinstance(scores, str | bytes | Mapping | Set):
        raise RewardError(
            f"reward {name!r} returned {_shown(scores)}; expected a sequence of {count} numbers"
        )
    values = list(scores)
    if len(values) != count:
        raise RewardError(f"reward {name!r} returned {len(values)} scores for {count} completions")
    with np.errstate(over="ignore"):  # beyond float32 becomes inf, which is caught below
        numbers = np.asarray(
            [_number(name, value, i, count) for i, value in enumerate(values)], np.float64
        ).astype(np.float32)
    for i in np.flatnonzero(~np.isfinite(numbers)):
        raise RewardError(
            f"reward {name!r} returned {values[i]} for completion {i} of {count}; "
            "expected a finite number"
        )
    return numbers


def _materialised(scores: Any) -> Any:
    """Arrays of any library as numpy arrays, iterators as lists, the rest as it is."""
    scores = _detached(scores)
    if hasattr(scores, "__array__"):
        return np.asarray(scores)
    return list(scores) if isinstance(scores, Iterator) else scores


def _detached(value: Any) -> Any:
    """A tensor of torch, or a number of one, without what it is differentiated by."""
    return value.detach() if hasattr(value, "detach") else value


def _number(name: str, value: Any, index: int, count: int) -> float:
    """`value` as a float, or an error that says where it stood."""
    value = _detached(value)
    try:
        # float() would also read text, drop the axes of a one-element array and imaginary parts.
        text = isinstance(value, str | bytes | bytearray)
        if text or np.ndim(value) != 0 or np.iscomplexobj(value):
            raise TypeError
        return float(value)
    except OverflowError:  # an int or fraction beyond float64
        return np.inf
    except Exception:  # of whatever library it is
        raise RewardError(
            f"reward {name!r} returned {_shown(value)} for completion {index} of {count}; "
            "expected a finite number"
        ) from None


def _shown(value: Any) -> str:
    if value is None:
        return "None"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


class HostReward:
    """A host reward with its name, the columns it takes, and a lock.

    Prompts and completions are its first two arguments, unless parameters called `prompts` and
    `completions` stand elsewhere, as in rewards for TRL: then it gets them, and all else, by name.

    Attributes:
      name: display name.
      columns: names of the columns that must be there: the reward's own `columns` attribute and
        every parameter without a default beside prompts and completions.
    """

    def __init__(self, name: str, function: Callable[..., Any]):
        self.name = name
        self._function = function
        # Two batches may be in flight, and a user's function need not be thread-safe.
        self._lock = threading.Lock()
        parameters = _parameters(name, function)
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._by_name = _by_name(parameters)
        others = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        # A column that is called as one of the first two would be given twice.
        self._excluded = set(_TEXTS) if self._by_name else {p.name for p in parameters[:2]}
        self._named = {p.name for p in others}
        required = [p.name for p in others if p.default is p.empty and p.name not in self._excluded]
        declared = getattr(function, "columns", ())
        if isinstance(declared, str):
            raise ValueError(f"columns of reward {name!r} is {declared!r}; expected a tuple")
        self.columns = tuple(dict.fromkeys((*declared, *required)))

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> Scored:
        """Checked scores, float32 [B], and the reward's own metrics.

        Raises:
          RewardError: the reward raised (chained), or `check_scores` refuses what it returned.
        """
        # Copies: a reward that sorts its arguments must not disturb the others.
        texts = [list(prompts), list(completions)]
        columns = {key: list(v) for key, v in columns.items() if key not in self._excluded}
        if self._by_name:
            texts, columns = [], {**columns, **dict(zip(_TEXTS, texts, strict=True))}
        taken = {k: v for k, v in columns.items() if self._takes_all or k in self._named}
        try:
            with self._lock:
                scores = self._function(*texts, **taken)
                scored = scores if isinstance(scores, Scored) else Scored(scores, {})
                scores = _materialised(scored.scores)  # a generator runs, and may raise, here
        except BaseException as error:  # in a thread, SystemExit would vanish
            raise RewardError(
                f"reward {self.name!r} raised {type(error).__name__}: {error}"
            ) from error
        return Scored(check_scores(self.name, scores, len(completions)), scored.metrics)


def _parameters(name: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Those of a function that takes prompts and completions."""
    if not callable(function):
        raise ValueError(
            f"reward {name!r} is {_shown(function)}; "
            "expected a function reward(prompts, completions, **columns)"
        )
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have none
        signature = inspect.signature(lambda *texts, **columns: None)
    parameters = list(signature.parameters.values())
    kinds = [p.kind for p in parameters]
    if _by_name(parameters):
        fits = "completions" in signature.parameters or inspect.Parameter.VAR_KEYWORD in kinds
    else:
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        fits = sum(kind in positional for kind in kinds) > 1
        fits = fits or inspect.Parameter.VAR_POSITIONAL in kinds
    if not fits:
        raise ValueError(
            f"reward {name!r} has the signature {signature}; "
            "expected reward(prompts, completions, **columns)"
        )
    return parameters


def _by_name(parameters: Sequence[inspect.Parameter]) -> bool:
    """Whether `prompts` or `completions` stands where its texts would not come by position."""
    places = {p.name: i for i, p in enumerate(parameters) if p.kind is not p.POSITIONAL_ONLY}
    prompts, completions = (places.get(name) for name in _TEXTS)
    only = any(p.kind is p.KEYWORD_ONLY for p in parameters if p.name in _TEXTS)
    return only or prompts not in (0, None) or completions not in (1, None)


class HostScores:
    """Host scoring under way: one thread per reward.

    The threads are daemons: a reward that never returns does not keep the program from ending.

    Attributes:
      spans: {name: (start, end) by `time.perf_counter`}; filled by the time `result` returns.
      metrics: {"name/metric": value} that the rewards gave beside their scores; likewise.
    """

    def __init__(
        self,
        rewards: Iterable[HostReward],
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ):
        self.spans: dict[str, tuple[float, float]] = {}
        self.metrics: dict[str, float] = {}
        self._scores: dict[str, np.ndarray] = {}
        self._errors: dict[str, BaseException] = {}
        batch = (prompts, completions, columns)
        self._threads = {
            reward.name: threading.Thread(
                target=self._run, args=(reward, batch), name=f"reward-{reward.name}", daemon=True
            )
            for reward in rewards
        }
        for thread in self._threads.values():
            thread.start()

    def _run(self, reward: HostReward, batch: tuple[Any, Any, Any]) -> None:
        start = time.perf_counter()
        try:
            scored = reward(*batch)
            self._scores[reward.name] = scored.scores
            self.metrics |= {f"{reward.name}/{k}": float(v) for k, v in scored.metrics.items()}
        except BaseException as error:
            self._errors[reward.name] = error
        self.spans[reward.name] = (start, time.perf_counter())

    @property
    def seconds(self) -> dict[str, float]:
        """{name: wall-clock seconds}."""
        return {name: end - start for name, (start, end) in self.spans.items()}

    def hidden(self, until: float) -> dict[str, float]:
        """The share of each reward's time before `until`, when the device was done; in [0, 1]."""
        return {
            name: min(1.0, max(0.0, until - start) / max(end - start, 1e-9))
            for name, (start, end) in self.spans.items()
        }

    def result(self) -> dict[str, np.ndarray]:
        """Waits for every reward: {name: raw scores, float32 [B]}, in the stack's order.

        Raises:
          RewardError: that of the first reward, in the stack's order, that failed.
        """
        for thread in self._threads.values():
            thread.join()
        for name in self._threads:
            if name in self._errors:
                raise self._errors[name]
        return {name: self._scores[name] for name in self._threads}
