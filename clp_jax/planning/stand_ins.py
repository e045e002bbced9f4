"""What takes the place of files that a plan does not need: vocabulary, data, reward models."""

import re
from collections.abc import Sequence
from typing import Any

import gin

from clp_jax.models import t5
from clp_jax.reporting.errors import ConfigError, unknown_name
from clp_jax.rewards.heads import PreferenceHead
from clp_jax.rewards.learned import LearnedReward
from clp_jax.rewards.model import InputTemplate, RewardModel
from clp_jax.settings.gin_config import GIN_FILES

_SIZE = re.compile(r"^  (\w+) = (\d+)$", re.MULTILINE)
_INPUT_LENGTH = 512
_VOCABULARY_SIZE = 32128  # of T5, rounded up

_COMPONENTS = "clp_jax.rewards.registry.make_reward_stack.components"
_LEARNED = ("clp_jax.rewards.saved.NLI.dtype", "clp_jax.rewards.saved.Preference.dtype")


class Vocabulary:
    """A token for each word, for what asks how long a text is."""

    vocab_size, eos_id = 3, 1

    def encode(self, text: str) -> list[int]:
        """One token for each word."""
        return [2 for _ in text.split()]


def sizes(name: str) -> dict[str, Any]:
    """The numbers of gin/models/NAME.gin.

    Raises:
      ConfigError: there is no such file of T5 1.1; names the nearest.
    """
    files = (GIN_FILES / "models").glob("*.gin")
    known = {path.stem: path for path in files if "t5_1_" not in path.stem}
    if name not in known:
        raise ConfigError(unknown_name("size", name, known, "--reward_model"))
    return {key: int(value) for key, value in _SIZE.findall(known[name].read_text())}


def reward_model(size: str) -> type[LearnedReward]:
    """A class of learned rewards without parameters, of a T5 1.1 as gin/models names it.

    Its activations are bfloat16, its parameters float32, its input 512 tokens.

    Raises:
      ConfigError: see `sizes`.
    """
    config = t5.T5Config(
        vocab_size=_VOCABULARY_SIZE,
        dtype="bfloat16",
        mlp_activations=("gelu", "linear"),
        **sizes(size),
    )

    class StandIn(LearnedReward):
        """Can be compiled, and not called."""

        def __init__(self):
            template = InputTemplate((2, 2, 2), (2, 2, 2), _INPUT_LENGTH)
            model = RewardModel(t5.Transformer(config), template, PreferenceHead(token=2))
            vocabulary = Vocabulary()
            super().__init__(model, None, vocabulary, (0.0, 1.0), vocabulary)

    return StandIn


def bind(reward_models: Sequence[str] = (), without_files: bool = False) -> None:
    """Puts stand-ins into a parsed configuration, between its loading and its use.

    What must be set and does not matter here (MODEL_DIR, the data's name, the vocabulary) need not
    be. Learned rewards compute in bfloat16, as they do on a TPU, unless their settings say else.

    Args:
      reward_models: "NAME=SIZE" for each learned reward that is not here.
      without_files: put stand-ins for vocabulary and data even where they are set.

    Raises:
      ConfigError: what is not NAME=SIZE, or an unknown SIZE.
    """
    needed = {name for name in _NOT_READ if without_files or _is_required(name)}
    imports = ("from __gin__ import dynamic_registration", f"from {__package__} import stand_ins")
    gin.parse_config([*imports, *(f"{name} = {_NOT_READ[name]}" for name in sorted(needed))])
    for parameter in _LEARNED:
        try:
            if _bound(parameter) is None:
                gin.bind_parameter(parameter, "bfloat16")
        except ValueError:  # no gin file has this reward
            continue
    made = {}
    for text in reward_models:
        name, equals, size = text.partition("=")
        if not name or not equals:
            raise ConfigError(f"--reward_model={text}: write NAME=SIZE, for example nli=large")
        made[name] = reward_model(size)
    if made:
        gin.bind_parameter(_COMPONENTS, {**(_bound(_COMPONENTS) or {}), **made})


_NOT_READ = {
    "MODEL_DIR": "'not_written'",
    "MIXTURE_OR_TASK_NAME": "'not_read'",
    "VOCABULARY": "@stand_ins.Vocabulary()",
}


def _is_required(name: str) -> bool:
    return str(gin.query_parameter(f"{name}/gin.macro.value")) == "%gin.REQUIRED"


def _bound(parameter: str):
    """What a parameter is bound to, or None.

    Raises:
      ValueError: the configuration knows no such parameter.
    """
    try:
        return gin.query_parameter(parameter)
    except ValueError as error:
        if "has no value bound" in str(error):
            return None
        raise
