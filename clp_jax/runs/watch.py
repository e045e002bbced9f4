"""Warnings about a policy that leaves its reference, which often means that it fools a reward."""

from collections.abc import Mapping

from clp_jax.reporting.metrics_log import say

_OVERALL = "objective/kl"
_PREFIX, _SUFFIX = "when_largest/", "/kl"  # around a reward's name

# Above the bound nothing is said again until the KL has grown by this factor.
_GROWTH = 1.5


def of(bound: float | None) -> "KLWatch | None":
    """A watch over a bound, or none where there is no bound."""
    return None if bound is None else KLWatch(bound)


class KLWatch:
    """Warns when a report's mean KL to the reference is above a bound; see `loop.train`.

    Looked at are the KL of all steps of the report ("objective/kl") and, for each reward, that of
    the steps in which its weight was the largest ("when_largest/<name>/kl"). Each warns the first
    time it is above the bound, and again only when it is half as large again.

    Args:
      bound: in nats; range (0, inf).
    """

    def __init__(self, bound: float):
        self._bound = bound
        self._bounds: dict[str, float] = {}  # of metrics that were warned of

    def __call__(self, step: int, means: Mapping[str, float]) -> None:
        """Prints at most one warning.

        Args:
          step: steps done.
          means: the metrics of the report by name.
        """
        above = {
            name: value
            for name, value in means.items()
            if _watched(name) and value > self._bounds.get(name, self._bound)
        }
        if not above:
            return
        self._bounds |= {name: _GROWTH * value for name, value in above.items()}
        found = ", ".join(f"{value:.3g} {_where(name)}" for name, value in above.items())
        say(
            f"warning: step {step}: the mean KL to the reference is above KL_WARNING="
            f"{self._bound:g} nats: {found}. The policy may be fooling a reward: look at its "
            "completions in samples.jsonl, and try a larger KL_WEIGHT_MIN or a lower "
            "POLICY_LEARNING_RATE"
        )


def _watched(name: str) -> bool:
    return name == _OVERALL or (name.startswith(_PREFIX) and name.endswith(_SUFFIX))


def _where(name: str) -> str:
    if name == _OVERALL:
        return "overall"
    reward = name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    return f"where the weight of {reward!r} is the largest"
