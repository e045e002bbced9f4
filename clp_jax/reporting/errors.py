"""Error messages (the bad value, where it came from, what is valid), and the end of a run."""

import contextlib
import difflib
import json
from collections.abc import Iterable, Iterator, Sequence

# The exit status of a run that the same command continues: EX_TEMPFAIL of sysexits.h.
RETRY = 75


class ConfigError(ValueError):
    """A setting that cannot be used; the message says which, where it came from and what is."""


class RewardError(RuntimeError):
    """A reward failed, or returned something that is not one finite score per completion."""


class Diverged(ValueError):
    """A parameter, or a loss, gradient, KL or other metric of training, is NaN or infinite."""


class RunFailed(Exception):
    """A run of a reproduction stopped with an error; its log says why."""


class Preempted(Exception):
    """The run was asked to stop, and did; what it says is for the person who starts it again."""


def unknown_name(kind: str, name: str, valid: Iterable[str], source: str = "") -> str:
    """The message for a `name` that is not among the `valid` ones.

    Args:
      kind: what the name names, e.g. "reward".
      name: the bad value.
      valid: every name that would have been right.
      source: where the value came from, e.g. "--gin.REWARDS"; may be empty.

    Returns:
      One sentence that ends with the three nearest valid names.
    """
    valid = sorted(valid)
    nearest = difflib.get_close_matches(name, valid, n=3, cutoff=0.0)
    where = f" (from {source})" if source else ""
    hint = f"nearest: {', '.join(nearest)}" if nearest else "none is defined"
    return f"unknown {kind} {name!r}{where}; {hint}"


@contextlib.contextmanager
def naming(source: str, hint: str = "") -> Iterator[None]:
    """Turns what a reader of files raises into a ValueError: source, reason, hint.

    For orbax and tensorstore, which meet damaged bytes with exceptions of any kind. The reason is
    that of the first of them, which knows file and leaf, without the specs that follow it.
    """
    try:
        yield
    except Exception as error:
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        reason = str(first).split(" [tensorstore_spec=")[0] or type(first).__name__
        if isinstance(first, json.JSONDecodeError):
            reason = f"its metadata is no JSON: {reason}"
        raise ValueError(f"{source} cannot be read: {reason}{hint}") from error


def divisors(number: int) -> list[int]:
    """What divides `number`, in order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def listed(numbers: Sequence[int], last: str = "") -> str:
    """The different ones of `numbers`, with commas, and with the word `last` before the last."""
    words = [str(n) for n in dict.fromkeys(numbers)]
    if not last or len(words) < 2:
        return ", ".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"
