"""A claim of the paper as numbers with thresholds, one number for each seed."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Check:
    """One number that a claim bounds; it has to hold in every seed.

    Attributes:
      what: says what the number is.
      values: one for each seed.
      at_least: the lower bound; None for none.
      at_most: the upper bound; None for none.
    """

    what: str
    values: tuple[float, ...]
    at_least: float | None = None
    at_most: float | None = None

    @classmethod
    def of(
        cls,
        what: str,
        values: Sequence[float] | np.ndarray,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> "Check":
        """From any sequence of numbers."""
        return cls(what, tuple(float(v) for v in values), at_least, at_most)

    @property
    def holds(self) -> bool:
        """Whether every seed lies within the bounds; NaN never does."""
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return all(low <= value <= high for value in self.values)

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.values))

    @property
    def margin(self) -> float:
        """Half of the 95 % confidence interval of the mean over the seeds (Student's t)."""
        if len(self.values) < 2:
            return math.nan
        quantile = float(stats.t.ppf(0.975, len(self.values) - 1))
        return quantile * float(stats.sem(self.values))

    def row(self) -> dict[str, str]:
        """For a table."""
        bounds = [
            f"{sign} {bound:g}"
            for sign, bound in (("≥", self.at_least), ("≤", self.at_most))
            if bound is not None
        ]
        margin = f" ± {self.margin:.3f}" if len(self.values) > 1 else ""
        return {
            "figure": self.what,
            "mean over seeds": _shown(self.mean) + margin,
            "each seed": ", ".join(map(_shown, self.values)),
            "bound": " and ".join(bounds),
            "holds": "yes" if self.holds else "no",
        }


def _shown(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # not -0.000


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper and what we found.

    Attributes:
      section: of the paper.
      claim: what it says.
      checks: what the claim comes to here.
      runs: names of the experiments it was judged by.
      remark: what the numbers do not say; may be empty.
    """

    section: str
    claim: str
    checks: tuple[Check, ...]
    runs: tuple[str, ...] = ()
    remark: str = ""

    @property
    def verdict(self) -> str:
        """ "holds" if every check does, "partly" if some do, else "does not hold"."""
        held = [check.holds for check in self.checks]
        return "holds" if all(held) else "partly" if any(held) else "does not hold"
