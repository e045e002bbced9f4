"""From the names in a config to a `RewardStack`."""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clp_jax.reporting.errors import unknown_name
from clp_jax.rewards.base import NamedReward, RewardStack
from clp_jax.rewards.normalisation import Mixture

# Imported when they are used: the core needs neither rouge_score nor the corpus.
BUILT_IN: dict[str, str] = {
    "rouge": "clp_jax.rewards.rouge.RougeLsum",
    "briefs_entailment": "clp_jax.data.briefs.rewards.entailment",
    "briefs_quality": "clp_jax.data.briefs.rewards.quality",
}


def make_reward_stack(
    names: Sequence[str | Callable[..., Any]],
    ranges: Mapping[str, tuple[float, float]] | None = None,
    mixtures: Mapping[str, Mapping[str, float]] | None = None,
    components: Mapping[str, str | Callable[..., Any]] | None = None,
    source: str = "REWARDS",
    optional: bool = False,
) -> RewardStack | None:
    """The rewards of a run, from their names.

    Args:
      names: the m rewards, in order. Each is a built-in name (`BUILT_IN`), a key of `mixtures` or
        of `components`, the dotted path of a user's own function or class without arguments
        ("my_package.my_module.my_reward", which is then called "my_reward"), or a callable.
      ranges: {name: (low, high)} in place of the rewards' own; keys may be dotted paths too. Those
        of known rewards that are not in use are passed over.
      mixtures: {name: {reward: weight}}, weighted sums of normalised rewards that each count as
        one reward. Components are named as in `names`.
      components: {name: dotted path or callable}, further rewards under names of your choice;
        one that is called as a built-in reward replaces it.
      source: where the names come from, for messages.
      optional: whether there may be no names; the result is then None.

    Returns:
      The stack. A reward that several mixtures or `names` share is scored once.

    Raises:
      ValueError: an unknown name (with the nearest), a path that cannot be imported, a name
        twice, no names, a range for an unknown reward or one that is not (low, high),
        weights off the simplex, a function with the wrong signature.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"{source} is {names!r}; expected a tuple, such as ('rouge',)")
    if not names and optional:
        return None
    if not names:
        raise ValueError(f"{source} is empty; name at least one reward")
    loader = _Loader(names, dict(components or {}), mixtures or {}, source)
    order = []
    for item in names:
        name = loader.load(item)
        if name in order:
            raise ValueError(f"{source} names the reward {name!r} twice")
        order.append(name)
    ranges = loader.by_display_name(ranges or {})
    entries = {
        name: NamedReward.of(name, reward, ranges.get(name))
        for name, reward in loader.rewards.items()
    }
    return RewardStack(
        [entries[name] for name in order],
        [entry for name, entry in entries.items() if name not in order],
    )


class _Loader:
    """Loads each reward once, under one display name.

    Attributes:
      rewards: {display name: reward or Mixture}, in the order of loading.
    """

    def __init__(
        self,
        names: Sequence[Any],
        components: dict[str, Any],
        mixtures: Mapping[str, Mapping[str, float]],
        source: str,
    ):
        for name in mixtures:
            if name in components or name in BUILT_IN:
                raise ValueError(f"mixture {name!r}: a reward of that name exists already")
        self.rewards: dict[str, Any] = {}
        self._targets: dict[str, Any] = {}  # display name -> what it was loaded from
        self._paths: dict[str, str] = {}  # dotted path as given -> display name
        self._components = components
        self._mixtures = mixtures
        self._source = source
        for item in names:  # so that mixtures can use the callables among them
            if not isinstance(item, str):
                components.setdefault(_name_of(item, source), item)

    def load(self, item: Any, mixture: str = "") -> str:
        """Loads what `item` names (inside that mixture, if one is given): its display name."""
        source = f"mixture {mixture!r}" if mixture else self._source
        if not isinstance(item, str):
            return self._keep(_name_of(item, source), item, source)
        if item in self._mixtures:
            if mixture:
                raise ValueError(f"mixture {mixture!r} contains the mixture {item!r}")
            return self._mix(item)
        target = self._components.get(item, item)
        if isinstance(target, str):
            target = BUILT_IN.get(target, target)
            if "." not in target:
                known = self._known()
                raise ValueError(
                    unknown_name("reward", target, known, source)
                    + "; one of your own is named as 'my_package.my_module.my_reward'"
                )
        if target != item:
            return self._keep(item, target, source)
        self._paths[item] = item.rpartition(".")[2]
        return self._keep(self._paths[item], item, source)

    def _keep(self, name: str, target: Any, source: str) -> str:
        """Resolves `target` under `name`, unless that has been done."""
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(
                f"{name!r} (from {source}) cannot name a reward: use letters, digits, '_', '-', '.'"
            )
        if name not in self.rewards:
            self.rewards[name] = resolve(target, f"reward {name!r} (from {source})")
            self._targets[name] = target
        elif self._targets[name] != target:
            raise ValueError(
                f"two rewards are called {name!r}: {self._targets[name]!r} and {target!r}; "
                "give one another name in components"
            )
        return name

    def _mix(self, name: str) -> str:
        if name in self.rewards:
            if isinstance(self.rewards[name], Mixture):
                return name
            raise ValueError(f"mixture {name!r}: a reward of that name exists already")
        try:
            given = Mixture(self._mixtures[name])
        except ValueError as error:
            raise ValueError(f"mixture {name!r}: {error}") from None
        weights: dict[str, float] = {}
        for item, weight in given.weights.items():
            component = self.load(item, mixture=name)
            if component in weights:
                raise ValueError(f"mixture {name!r} names the reward {component!r} twice")
            weights[component] = weight
        self.rewards[name] = self._targets[name] = Mixture(weights)
        return name

    def _known(self) -> set[str]:
        """Every name that needs no dotted path."""
        return {*BUILT_IN, *self._components, *self._mixtures}

    def by_display_name(self, ranges: Mapping[str, Any]) -> dict[str, Any]:
        """`ranges` of the rewards in use, under display names; an error for an unknown reward."""
        renamed: dict[str, Any] = {}
        for key, value in ranges.items():
            name = self._paths.get(key, key)
            if name not in self.rewards:
                known = {*self.rewards, *self._known()}
                if name not in known:
                    raise ValueError(unknown_name("reward", key, known, "ranges"))
                continue  # so that one config can hold the ranges of all its data's rewards
            if name in renamed:
                raise ValueError(f"ranges names the reward {name!r} twice")
            renamed[name] = value
        return renamed


def _name_of(item: Any, source: str) -> str:
    """The display name of a callable."""
    if not callable(item) and not hasattr(item, "score_tokens"):
        raise ValueError(f"{source}: {item!r} is neither the name of a reward nor a function")
    return getattr(item, "__name__", type(item).__name__)


def resolve(target: Any, where: str) -> Any:
    """The reward itself: imports a dotted path, and makes an instance of a class."""
    reward = _imported(target, where) if isinstance(target, str) else target
    if not inspect.isclass(reward):
        return reward
    try:
        return reward()
    except Exception as error:
        raise ValueError(
            f"{where}: {reward.__name__}() raised {type(error).__name__}: {error}"
        ) from error


def _imported(path: str, where: str) -> Any:
    module_name, _, attribute = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            message = f"there is no module {missing!r} on the Python path"
        else:
            message = f"importing {module_name!r} raised {type(error).__name__}: {error}"
        raise ValueError(f"{where}: {message}") from error
    if not hasattr(module, attribute):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ValueError(
            f"{where}: " + unknown_name("attribute", attribute, public, f"module {module_name!r}")
        )
    return getattr(module, attribute)
