"""Reward models on disk: what `clp_jax.fit_reward` writes, and Hugging Face directories."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from clp_jax.models import checkpoints, hf_checkpoints, t5
from clp_jax.rewards.heads import NLIHead, make_nli_head, make_preference_head
from clp_jax.rewards.learned import LearnedReward
from clp_jax.rewards.model import InputTemplate, RewardModel

Params = Any

FOLDER = "reward_model"  # in the MODEL_DIR of a fit
FIELDS = "reward.json"
_PARAMS = "params"
_VOCABULARY = "spiece.model"

# App. B of the paper.
NLI_RANGE = (-7.0, 0.0)
PREFERENCE_RANGE = (-1.6, 2.0)

# What stands in front of the document, and between it and the summary.
INPUTS = {"nli": ("premise:", "hypothesis:"), "preference": ("post:", "summary:")}


class Saved(NamedTuple):
    """A reward model as it was read."""

    model: RewardModel
    params: Callable[[Params], Params]  # reads them, to where the given shapes say
    vocabulary: Any


def save(
    directory: str | pathlib.Path,
    model: RewardModel,
    params: Params,
    vocabulary: Any,
    report: Mapping[str, Any],
) -> None:
    """Writes a reward model; what stood there goes only when the new one is whole.

    Args:
      directory: where.
      model: network, input and head.
      params: of the network.
      vocabulary: SeqIO SentencePiece vocabulary.
      report: what to keep of the held-out evaluation.
    """
    config = dataclasses.asdict(model.module.config)
    fields = {
        "kind": "nli" if isinstance(model.head, NLIHead) else "preference",
        "head": dataclasses.asdict(model.head),
        "input": dataclasses.asdict(model.template),
        "t5": config | {"dtype": str(config["dtype"])},
        "report": dict(report),
    }
    with checkpoints.whole_directory(pathlib.Path(directory)) as partial:
        partial.mkdir()
        (partial / FIELDS).write_text(json.dumps(fields, indent=2) + "\n")
        (partial / _VOCABULARY).write_bytes(vocabulary.sp_model)
        checkpoints.save_params(partial / _PARAMS, params)


def load(directory: str | pathlib.Path, kind: str, changes: Mapping[str, Any]) -> Saved:
    """Reads a reward model, but for its parameters, of which only the shapes are checked.

    Args:
      directory: the MODEL_DIR of a fit, its `reward_model`, or a Hugging Face directory.
      kind: "nli" or "preference".
      changes: settings in place of the saved ones; see `NLI` and `Preference`.

    Raises:
      ValueError: no reward model there, one of another kind, a damaged one; names the file.
    """
    folder = pathlib.Path(directory)
    if (folder / FOLDER).is_dir():
        folder = folder / FOLDER
    given = {name: value for name, value in changes.items() if value is not None}
    if (folder / FIELDS).is_file():
        fields = _fields(folder)
        if fields["kind"] != kind:
            raise ValueError(f"{folder} is a reward model of kind {fields['kind']!r}, not {kind!r}")
        path, config = folder / _PARAMS, t5.T5Config(**fields["t5"])
        saved, saved_head = fields["input"], fields["head"]
    elif hf_checkpoints.recognises(folder):
        path, config = folder, hf_checkpoints.read_config(folder)
        saved = dict(zip(("before", "between"), INPUTS[kind], strict=True)) | {"max_length": 512}
        saved_head = {}
    else:
        raise ValueError(
            f"{directory} holds no reward model: neither one of clp_jax.fit_reward ({FIELDS}) nor "
            "a Hugging Face directory (config.json)"
        )
    vocabulary = _vocabulary(folder)
    saved = {**saved, **given}
    # Those that were saved are tokens.
    before, between = (
        text_tokens(vocabulary, part) if isinstance(part, str) else tuple(part)
        for part in (saved["before"], saved["between"])
    )
    template = InputTemplate(before, between, saved["max_length"], vocabulary.eos_id)
    dtype = given.get("dtype", "float32" if jax.default_backend() == "cpu" else "bfloat16")
    module = t5.Transformer(dataclasses.replace(config, dtype=dtype))
    head = (make_nli_head if kind == "nli" else make_preference_head)(
        vocabulary, config.vocab_size, {**saved_head, **given}
    )
    model = RewardModel(module, template, head)
    checkpoints.check_params(path, model.shapes(), config)
    return Saved(model, lambda shapes: checkpoints.load_params(path, shapes, config), vocabulary)


def kind_of(directory: str | pathlib.Path) -> str:
    """ "nli" or "preference", as a directory of ours says.

    Raises:
      ValueError: there is no reward model of `clp_jax.fit_reward`.
    """
    folder = pathlib.Path(directory)
    for place in (folder / FOLDER, folder):
        if (place / FIELDS).is_file():
            return _fields(place)["kind"]
    raise ValueError(f"{directory} holds no reward model of clp_jax.fit_reward ({FIELDS})")


def _fields(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / FIELDS
    try:
        fields = json.loads(file.read_text())
        missing = {"kind", "head", "input", "t5"} - fields.keys()
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not the description of a reward model: {error}") from error
    if missing:
        raise ValueError(f"{file} lacks {', '.join(sorted(missing))}")
    return fields


def text_tokens(vocabulary: Any, text: str) -> tuple[int, ...]:
    """The tokens of a part of the input; "</s>" is EOS."""
    parts = text.split("</s>")
    tokens = list(vocabulary.encode(parts[0]))
    for part in parts[1:]:
        tokens += [vocabulary.eos_id, *vocabulary.encode(part)]
    return tuple(tokens)


def _vocabulary(folder: pathlib.Path) -> Any:
    import seqio

    file = folder / _VOCABULARY
    if not file.is_file():
        raise ValueError(f"the reward model's vocabulary is missing: there is no {file}")
    vocabulary = seqio.SentencePieceVocabulary(str(file), extra_ids=0)
    try:
        vocabulary.encode("a")
    except Exception as error:  # of SeqIO, SentencePiece or protocol buffers
        raise ValueError(f"{file} is not a SentencePiece model: {error}") from error
    return vocabulary


class NLI(LearnedReward):
    """The log-probability that the document entails the summary."""

    def __init__(
        self,
        model_dir: str | None = None,
        *,
        policy_vocabulary: Any = None,
        prompt_prefix: str = "summarize: ",
        range: tuple[float, float] = NLI_RANGE,
        floor: float | None = None,
        label_tokens: Mapping[str, str | int] | None = None,
        entailment: str | None = None,
        over_labels: bool | None = None,
        before: str | None = None,
        between: str | None = None,
        max_length: int | None = None,
        dtype: str | None = None,
    ):
        """Reads the model's description; its parameters when they are first needed.

        Args:
          model_dir: see `load`.
          policy_vocabulary: see `LearnedReward`.
          prompt_prefix: likewise.
          range: raw scores that are mapped to 0 and 1.
          floor: see `NLIHead`.
          label_tokens: see `heads.make_nli_head`. None, here and below, for what was saved.
          entailment: the label whose log-probability is the reward.
          over_labels: see `NLIHead`.
          before: text in front of the document.
          between: text between document and summary.
          max_length: tokens of the input at most.
          dtype: of the activations; bfloat16 on accelerators, float32 on a CPU.

        Raises:
          ValueError: see `load`; also model_dir=None.
        """
        changes = {
            "label_tokens": label_tokens,
            "entailment": entailment,
            "over_labels": over_labels,
            "floor": floor,
            "before": before,
            "between": between,
            "max_length": max_length,
            "dtype": dtype,
        }
        saved = load(_required(model_dir, "NLI"), "nli", changes)
        super().__init__(*saved, range, policy_vocabulary, prompt_prefix)


class Preference(LearnedReward):
    """The score of a preference model: the difference of two is the log-odds of preferring one."""

    def __init__(
        self,
        model_dir: str | None = None,
        *,
        policy_vocabulary: Any = None,
        prompt_prefix: str = "summarize: ",
        range: tuple[float, float] = PREFERENCE_RANGE,
        token: str | int | None = None,
        before: str | None = None,
        between: str | None = None,
        max_length: int | None = None,
        dtype: str | None = None,
    ):
        """As `NLI`; `token` is that whose logit is the score, as text or id."""
        changes = {
            "token": token,
            "before": before,
            "between": between,
            "max_length": max_length,
            "dtype": dtype,
        }
        saved = load(_required(model_dir, "TLDR"), "preference", changes)
        super().__init__(*saved, range, policy_vocabulary, prompt_prefix)


def _required(model_dir: str | None, name: str) -> str:
    if model_dir is None:
        raise ValueError(
            f"a reward model is needed: set {name}_MODEL_DIR to the MODEL_DIR of clp_jax.fit_reward"
        )
    return model_dir
