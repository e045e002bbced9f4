"""Prompt conditioning: the reward weights in front of the prompt (paper, App. A.2)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def weight_prefix(
    names: Sequence[str], reward_weights: Any, repetitions: int = 5, decimals: int = 2
) -> str:
    """The string that tells the policy its reward weights (paper, App. A.2).

    With the default arguments, ("factuality", "rouge") and (0.4, 0.6) give

        "factuality: 0.4 0.4 0.4 0.4 0.4; rouge: 0.6 0.6 0.6 0.6 0.6. "

    which ends in a space, so that the prompt can follow.

    Args:
      names: the m rewards' names.
      reward_weights: w, m finite numbers.
      repetitions: how often each weight is written; the paper found 5 reasonable.
      decimals: weights are rounded to this many; trailing zeros are dropped.

    Returns:
      The prefix, one space at its end.

    Raises:
      ValueError: no names, another number of weights than names, a weight that is not finite,
        repetitions < 1, decimals < 0.
    """
    weights = [float(weight) for weight in reward_weights]
    if not names or len(weights) != len(names):
        raise ValueError(
            f"reward_weights {weights}: {len(weights)} for {len(names)} rewards {tuple(names)}"
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"reward_weights {weights}: expected finite numbers")
    if repetitions < 1:
        raise ValueError(f"repetitions is {repetitions}; expected at least 1")
    if decimals < 0:
        raise ValueError(f"decimals is {decimals}; expected at least 0")
    parts = [
        f"{name}: {' '.join([_short(weight, decimals)] * repetitions)}"
        for name, weight in zip(names, weights, strict=True)
    ]
    return "; ".join(parts) + ". "


def _short(weight: float, decimals: int) -> str:
    """`weight` rounded, without trailing zeros: 0.4, 0.37, 1, 0."""
    text = f"{weight:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def prepend(
    prefix_tokens: Sequence[int] | np.ndarray,
    prompt_tokens: np.ndarray,
    eos_id: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Puts the tokens of a prefix in front of every prompt, at an unchanged length E.

    Args:
      prefix_tokens: P token ids without EOS, P < E.
      prompt_tokens: integers [B, E], padded with 0 on the right.
      eos_id: if given, a prompt that ended in it and is cut still ends in it.

    Returns:
      (tokens [B, E] of the prompts' dtype, which rows lost tokens of their prompt [B] bool).

    Raises:
      ValueError: the prompts are not [B, E], or the prefix leaves no room for them.
    """
    prompts = np.asarray(prompt_tokens)
    prefix = np.asarray(prefix_tokens, prompts.dtype)
    if prompts.ndim != 2 or prefix.ndim != 1:
        raise ValueError(
            f"prefix {prefix.shape} and prompts {prompts.shape}: expected [P] and [B, E]"
        )
    length = prompts.shape[1]
    room = length - prefix.size
    if room <= 0:
        raise ValueError(
            f"the weight prefix has {prefix.size} tokens, which leaves no room for the prompt "
            f"in an encoder length of {length}"
        )
    tokens = np.empty_like(prompts)
    tokens[:, : prefix.size] = prefix
    tokens[:, prefix.size :] = prompts[:, :room]
    cut = np.any(prompts[:, room:] != 0, axis=1)
    if eos_id is not None:
        last = np.max(np.where(prompts != 0, np.arange(length), 0), axis=1, keepdims=True)
        ended = np.take_along_axis(prompts, last, axis=1)[:, 0] == eos_id
        tokens[cut & ended, -1] = eos_id
    return tokens, cut
