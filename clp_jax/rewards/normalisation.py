"""Rewards on one scale: the affine normalisation of App. B, and weighted mixtures."""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Range = tuple[float, float]  # (low, high), the raw scores that are mapped to 0 and 1


def normalise(raw: Any, score_range: Range) -> Any:
    """Maps `score_range` linearly to (0, 1), without clipping (paper, App. B).

    Args:
      raw: a number or an array of any shape, numpy or jax.
      score_range: (low, high), low < high, in the units of `raw`.

    Returns:
      (raw − low) / (high − low), of the shape of `raw`.
    """
    low, high = score_range
    return (raw - low) / (high - low)


def check_range(name: str, value: Any) -> Range:
    """(low, high) as floats.

    Raises:
      ValueError: not two finite numbers with low < high.
    """
    try:
        low, high = (float(v) for v in value)
        valid = not isinstance(value, str) and math.isfinite(high - low) and low < high
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f"range of reward {name!r} is {value!r}; "
            "expected two finite numbers (low, high), low < high"
        )
    return low, high


@dataclass(frozen=True)
class Mixture:
    """A weighted sum of normalised rewards that counts as one reward, of range (0, 1).

    Paper, Sec. 4.1.1: R = 0.9 R_nli + 0.1 R_rouge is `Mixture({"nli": 0.9, "rouge": 0.1})`.

    Attributes:
      weights: {component: weight}, each finite and >= 0, with sum 1 (within 1e-6).
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        """Raises ValueError unless the weights lie on the simplex."""
        if not isinstance(self.weights, Mapping) or not self.weights:
            raise ValueError(f"mixture {self.weights!r}: expected {{reward: weight, ...}}")
        for name, weight in self.weights.items():
            number = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
            if not number or not math.isfinite(weight) or weight < 0:
                raise ValueError(
                    f"mixture weight of {name!r} is {weight!r}; expected a finite number >= 0"
                )
        total = math.fsum(self.weights.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"mixture weights {dict(self.weights)} sum to {total:.6g}; they must sum to 1"
            )

    def combine(self, normalised: Mapping[str, Any]) -> Any:
        """Σ_k weight_k · normalised[k]; numpy or jax arrays of one shape."""
        return sum(weight * normalised[name] for name, weight in self.weights.items())
