"""The `config.json` of a Hugging Face T5, FLAN-T5 or mT5 directory and our T5Config.

Everything that changes the function is checked: what our T5 has not is refused by name.
"""

from collections.abc import Iterator
from typing import Any

from clp_jax.models import layers
from clp_jax.models.config import T5Config
from clp_jax.reporting.errors import unknown_name

FILE_NAME = "config.json"

# The fields of T5Config that are a size, and what they are called there.
SIZES = {
    "vocab_size": "vocab_size",
    "emb_dim": "d_model",
    "num_heads": "num_heads",
    "num_encoder_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "head_dim": "d_kv",
    "mlp_dim": "d_ff",
}

# What is built into our T5. A file that lacks one of them means this value.
_FIXED = {
    "is_encoder_decoder": True,
    "relative_attention_num_buckets": layers.NUM_BUCKETS,
    "relative_attention_max_distance": layers.MAX_DISTANCE,
    "layer_norm_epsilon": layers.LayerNorm.epsilon,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}

# Their name of an activation to ours. Their "gelu" is the exact one, which ours is not.
_ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "linear": "linear",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "swish",
    "tanh": "tanh",
}
_GATED = "gated-"
# Means gated-gelu_new there, as the T5 1.1 was first written with that name.
_GATED_GELU = "gated-gelu"
_DEFAULT_FEED_FORWARD = {"t5": "relu", "mt5": _GATED_GELU}


def from_json(fields: dict[str, Any], has_lm_head: bool, source: str) -> T5Config:
    """The configuration that `config.json` describes.

    Args:
      fields: its content.
      has_lm_head: whether the checkpoint has a tensor `lm_head.weight`. transformers 5 writes
        tie_word_embeddings=true into every file, so that the tensor alone tells there.
      source: the file's path, for messages.

    Returns:
      The configuration, with float32 activations. logits_via_embedding is True where the logits
      are (x / sqrt(emb_dim)) times the embedding, and False where they are x times `lm_head`.

    Raises:
      ValueError: a field is missing, or describes what our T5 has not.
    """
    model_type = str(fields.get("model_type"))
    if model_type not in _DEFAULT_FEED_FORWARD:
        raise ValueError(unknown_name("model_type", model_type, _DEFAULT_FEED_FORWARD, source))
    for name, ours in _FIXED.items():
        value = fields.get(name, ours)
        if value != ours and not (name == "decoder_start_token_id" and value is None):
            raise ValueError(f"{source}: {name} is {value!r}; this T5 has {ours!r} alone")
    sizes: dict[str, Any] = {ours: _size(fields, theirs, source) for ours, theirs in SIZES.items()}
    return T5Config(
        **sizes,
        mlp_activations=_activations(fields, model_type, source),
        dropout_rate=_dropout_rate(fields, source),
        logits_via_embedding=_logits_via_embedding(fields, model_type, has_lm_head, source),
    )


def to_json(config: T5Config, dtype: str, eos_id: int) -> dict[str, Any]:
    """The content of a `config.json` that transformers 4 and 5 read as T5ForConditionalGeneration.

    Args:
      config: of the model.
      dtype: of the parameters in the directory.
      eos_id: the token that ends a completion.

    Raises:
      ValueError: the model has activations that Hugging Face's T5 cannot have.
    """
    feed_forward = _feed_forward_proj(config)
    is_gated = feed_forward.startswith(_GATED)
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        **_FIXED,
        "eos_token_id": eos_id,
        "feed_forward_proj": feed_forward,
        "is_gated_act": is_gated,
        "dense_act_fn": "gelu_new" if feed_forward == _GATED_GELU else feed_forward.split("-")[-1],
        "dropout_rate": config.dropout_rate,
        "initializer_factor": 1.0,
        # For transformers 4 the first decides whether logits are scaled, for 5 the second, which
        # does not tie `lm_head.weight` where the file has one that differs from the embedding.
        "tie_word_embeddings": config.logits_via_embedding,
        "scale_decoder_outputs": config.logits_via_embedding,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def check_same(found: T5Config, config: T5Config, source: str) -> None:
    """Raises ValueError if two configurations are not those of one function.

    The types of the activations and the dropout rate may differ.

    Args:
      found: what `source` describes.
      config: of the model to be filled.
      source: the file's path, for messages.
    """
    for theirs, there, ours in _differences(found, config):
        raise ValueError(
            f"{source} is of another model: {theirs} is {there} there, t5.T5Config.{ours} is "
            f"{getattr(config, ours)} here; t5.T5Config.{ours} = {getattr(found, ours)} makes it "
            "fit"
        )


def _differences(found: T5Config, config: T5Config) -> Iterator[tuple[str, Any, str]]:
    """What makes two functions of two configurations: (their name, its value there, ours)."""
    for ours, theirs in SIZES.items():
        if getattr(found, ours) != getattr(config, ours):
            yield theirs, getattr(found, ours), ours
    there, here = _feed_forward_proj(found), _feed_forward_proj(config)
    if there.replace("swish", "silu") != here.replace("swish", "silu"):
        yield "feed_forward_proj", there, "mlp_activations"
    if found.logits_via_embedding != config.logits_via_embedding:
        what = "the embedding, scaled" if found.logits_via_embedding else "lm_head, unscaled"
        yield "the output layer", what, "logits_via_embedding"


def _size(fields: dict[str, Any], name: str, source: str) -> int:
    value = fields.get(name)
    if name == "num_decoder_layers" and value is None:
        name, value = "num_layers", fields.get("num_layers")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        found = repr(value) if name in fields else "missing"
        raise ValueError(f"{source}: {name} is {found}; valid is an integer >= 1")
    return value


def _dropout_rate(fields: dict[str, Any], source: str) -> float:
    value = fields.get("dropout_rate", 0.1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ValueError(f"{source}: dropout_rate is {value!r}; valid is a rate in [0, 1)")
    return float(value)


def _activations(fields: dict[str, Any], model_type: str, source: str) -> tuple[str, ...]:
    """The activations that `feed_forward_proj` names."""
    name = str(fields.get("feed_forward_proj", _DEFAULT_FEED_FORWARD[model_type]))
    is_gated = name.startswith(_GATED)
    theirs = "gelu_new" if name == _GATED_GELU else name.removeprefix(_GATED)
    if theirs not in _ACTIVATIONS:
        valid = [_GATED_GELU, *_ACTIVATIONS, *(_GATED + activation for activation in _ACTIVATIONS)]
        raise ValueError(unknown_name("feed_forward_proj", name, valid, source))
    # transformers takes these two from the file too, over what `feed_forward_proj` says.
    for field, expected in (("dense_act_fn", theirs), ("is_gated_act", is_gated)):
        value = fields.get(field, expected)
        if value != expected:
            raise ValueError(
                f"{source}: {field} is {value!r}, which contradicts feed_forward_proj {name!r}; "
                f"expected {expected!r}"
            )
    activation = _ACTIVATIONS[theirs]
    return (activation, "linear") if is_gated else (activation,)


def _feed_forward_proj(config: T5Config) -> str:
    """Their name of the activations."""
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items() if theirs != "gelu_pytorch_tanh"}
    first, *others = config.mlp_activations
    if first not in names or others not in ([], ["linear"]):
        raise ValueError(
            f"T5Config.mlp_activations is {config.mlp_activations}; valid for Hugging Face's T5 is "
            f"one of {', '.join(sorted(names))}, alone or with 'linear' after it"
        )
    if not others:
        return names[first]
    return _GATED_GELU if first == "gelu" else _GATED + names[first]


def is_tied(fields: dict[str, Any], source: str) -> bool:
    """Whether `config.json` says that `lm_head.weight` is the embedding.

    transformers 5 writes that of every model, and then does not tie what differs in the file.

    Raises:
      ValueError: it says neither yes nor no.
    """
    return _flag(fields, "tie_word_embeddings", fields.get("model_type") == "t5", source)


def _logits_via_embedding(
    fields: dict[str, Any], model_type: str, has_lm_head: bool, source: str
) -> bool:
    """Whether the embedding, scaled, is the output layer.

    Of T5, transformers 4 scales where tie_word_embeddings is true, its default. transformers 5
    scales where scale_decoder_outputs is true, which it writes; without it, as transformers 4.
    Of mT5, transformers 4 scales where tie_word_embeddings is true, and transformers 5 never.
    """
    tied = is_tied(fields, source)
    if model_type == "t5":
        scaled = _flag(fields, "scale_decoder_outputs", tied, source)
        if scaled and not tied:
            raise ValueError(
                f"{source}: tie_word_embeddings is False and scale_decoder_outputs is True; valid "
                "is a scaled output that is tied, or one that is not scaled"
            )
        return scaled
    if tied and not has_lm_head:
        raise ValueError(
            f"{source}: tie_word_embeddings is True for an mt5 without lm_head.weight, whose "
            "logits transformers 4 scales and transformers 5 does not; valid is model_type 't5' "
            "with scale_decoder_outputs true or false"
        )
    return False


def _flag(fields: dict[str, Any], name: str, default: bool, source: str) -> bool:
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{source}: {name} is {value!r}; valid is true or false")
    return value
