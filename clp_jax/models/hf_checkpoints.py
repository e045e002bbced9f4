"""Hugging Face T5, FLAN-T5 and mT5 directories, read and written without torch.

A directory holds `config.json` and the tensors: `model.safetensors`, or shards of it and the index
`model.safetensors.index.json`. Their kernels are [out, in] where ours are [in, out], and their
position biases [buckets, heads] where ours are [heads, buckets]; nothing else differs but names.
"""

import dataclasses
import difflib
import functools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from clp_jax.models import hf_config, hf_safetensors, layers
from clp_jax.models.config import T5Config
from clp_jax.models.dtypes import DTYPES, converted
from clp_jax.reporting.errors import unknown_name

Params = Any
Path = str | pathlib.Path

GENERATION = "generation_config.json"
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_EMBEDDING = "shared.weight"
_LM_HEAD = "lm_head.weight"
# Names under which files have the embedding again, or in place of `shared.weight`.
_EMBEDDING_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# In files of the first T5s; no model ever read it.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

# Each sub-layer of a layer: our norm, our module, their module.
_ENCODER = (
    ("pre_attention_layer_norm", "attention", "SelfAttention"),
    ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
)
_DECODER = (
    ("pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
    ("pre_cross_attention_layer_norm", "encoder_decoder_attention", "EncDecAttention"),
    ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
)


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One parameter: our path, their name, our shape, and whether theirs is its transpose."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    transposed: bool = True

    @property
    def shape_there(self) -> tuple[int, ...]:
        """The shape of their tensor."""
        return self.shape[::-1] if self.transposed else self.shape


class _Directory(NamedTuple):
    """A directory whose tensors are those that its config.json calls for."""

    config: T5Config
    leaves: list[_Leaf]
    tensors: dict[str, list[hf_safetensors.Tensor]]  # by our names: all that have that parameter


def recognises(path: Path) -> bool:
    """Whether the names of the files are those of a Hugging Face directory, readable or not."""
    folder = pathlib.Path(path)
    return (folder / hf_config.FILE_NAME).is_file() or hf_safetensors.recognises(folder)


def read_config(path: Path) -> T5Config:
    """The configuration of a directory's model, with which the model can be built.

    Raises:
      ValueError: config.json or a header is malformed, or the model is none that our T5 can be.
    """
    return _open(path).config


def check_config(path: Path, config: T5Config) -> None:
    """Raises ValueError if a directory's model is not the function that `config` describes.

    The message has the field, both values, and what to set.
    """
    hf_config.check_same(read_config(path), config, str(pathlib.Path(path) / hf_config.FILE_NAME))


def shapes(path: Path) -> Params:
    """The tree of our parameters' shapes, in the types of the file; reads headers only.

    Raises:
      ValueError: config.json or a header is malformed, or they contradict each other.
    """
    found = _open(path)
    dtypes = {k: jnp.dtype(_DTYPES[first.dtype]) for k, (first, *_) in found.tensors.items()}
    leaves = {x.ours: jax.ShapeDtypeStruct(x.shape, dtypes[x.ours]) for x in found.leaves}
    return traverse_util.unflatten_dict(leaves, sep="/")


def load(path: Path, expected: Params) -> Params:
    """Reads the parameters as numpy arrays in the types of `expected`.

    Args:
      path: the directory.
      expected: tree of arrays or shapes that the model has, which agrees with `shapes`.

    Raises:
      ValueError: a file is malformed, or has two different tensors for one parameter.
    """
    found = _open(path)
    dtypes = {k: v.dtype for k, v in traverse_util.flatten_dict(expected, sep="/").items()}
    params = {}
    for leaf in found.leaves:
        tensor, *copies = found.tensors[leaf.ours]
        array = tensor.read()
        for copy in copies:
            if not np.array_equal(array, copy.read()):
                raise ValueError(
                    f"{copy.file}: {copy.name} differs from {tensor.name}; expected are equal "
                    f"tensors, as each is our {leaf.ours}"
                )
        array = array.astype(dtypes[leaf.ours], copy=False)
        params[leaf.ours] = np.ascontiguousarray(array.T if leaf.transposed else array)
    return traverse_util.unflatten_dict(params, sep="/")


def save(
    path: Path,
    params: Params,
    config: T5Config,
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 10**9,
    eos_id: int = 1,
    generation: dict[str, Any] | None = None,
) -> None:
    """Writes a directory that `transformers.T5ForConditionalGeneration.from_pretrained` reads.

    Args:
      path: the directory; made if it does not exist.
      params: plain LM parameters.
      config: of their model.
      dtype: of the file: float32, bfloat16 or float16.
      max_shard_bytes: the tensors of a file sum to no more, unless one alone does; >= 1. All in
        one file need no index.
      eos_id: the token that ends a completion.
      generation: fields of generation_config.json beside the ids of EOS, padding and start.

    Raises:
      ValueError: an unknown dtype, activations that Hugging Face's T5 has not, parameters that
        are not those of `config`, or a value that is not finite or too large for `dtype`.
    """
    if dtype not in DTYPES:
        raise ValueError(unknown_name("dtype", dtype, DTYPES))
    folder = pathlib.Path(path)
    fields = hf_config.to_json(config, dtype, eos_id)
    leaves = list(_leaves(config))
    arrays = traverse_util.flatten_dict(params, sep="/")
    _check_params(arrays, leaves)
    folder.mkdir(parents=True, exist_ok=True)
    sources = {
        leaf.theirs: hf_safetensors.Source(
            math.prod(leaf.shape) * jnp.dtype(dtype).itemsize,
            functools.partial(_convert, arrays[leaf.ours], leaf, dtype),
        )
        for leaf in leaves
    }
    hf_safetensors.write(folder, sources, max_shard_bytes)
    ids = {k: fields[k] for k in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
    hf_safetensors.write_json(folder / GENERATION, ids | (generation or {}))
    hf_safetensors.write_json(folder / hf_config.FILE_NAME, fields)


def _leaves(config: T5Config) -> Iterator[_Leaf]:
    """Every parameter of a model."""
    embedding = (config.vocab_size, config.emb_dim)
    yield _Leaf("token_embedder/embedding", _EMBEDDING, embedding, transposed=False)
    yield from _stack_leaves(config, "encoder", config.num_encoder_layers, _ENCODER)
    yield from _stack_leaves(config, "decoder", config.num_decoder_layers, _DECODER)
    if not config.logits_via_embedding:
        yield _Leaf("decoder/logits_dense/kernel", _LM_HEAD, embedding[::-1])


def _stack_leaves(
    config: T5Config, stack: str, num_layers: int, sublayers: Sequence[tuple[str, str, str]]
) -> Iterator[_Leaf]:
    emb, joined, mlp = config.emb_dim, config.num_heads * config.head_dim, config.mlp_dim
    bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    yield _Leaf(f"{stack}/relpos_bias/rel_embedding", bias, (config.num_heads, layers.NUM_BUCKETS))
    attention = dict.fromkeys(("query", "key", "value"), (emb, joined)) | {"out": (joined, emb)}
    gated = len(config.mlp_activations) > 1
    feed_forward = dict.fromkeys(("wi_0", "wi_1") if gated else ("wi",), (emb, mlp))
    feed_forward["wo"] = (mlp, emb)
    for i in range(num_layers):
        for k, (norm, ours, theirs) in enumerate(sublayers):
            prefix = f"{stack}.block.{i}.layer.{k}"
            yield _Leaf(
                f"{stack}/layers_{i}/{norm}/scale", f"{prefix}.layer_norm.weight", (emb,), False
            )
            is_mlp = ours == "mlp"
            for kernel, shape in (feed_forward if is_mlp else attention).items():
                yield _Leaf(
                    f"{stack}/layers_{i}/{ours}/{kernel}/kernel",
                    f"{prefix}.{theirs}.{kernel if is_mlp else kernel[0]}.weight",
                    shape,
                )
    yield _Leaf(f"{stack}/{stack}_norm/scale", f"{stack}.final_layer_norm.weight", (emb,), False)


def _open(path: Path) -> _Directory:
    """Reads config.json and the headers, and checks each against the other."""
    folder = pathlib.Path(path)
    weights = hf_safetensors.find_weights(folder)
    source = folder / hf_config.FILE_NAME
    fields = hf_safetensors.read_json(source)
    # Our names for messages, before it is known whether there is an lm_head.
    leaves = list(_leaves(hf_config.from_json(fields, True, str(source))))
    tensors = hf_safetensors.read_headers(weights, {leaf.theirs: leaf.ours for leaf in leaves})
    config = hf_config.from_json(fields, _LM_HEAD in tensors, str(source))
    leaves = list(_leaves(config))

    names = {leaf.ours: [leaf.theirs] for leaf in leaves}
    embedding = names[leaves[0].ours] = [_EMBEDDING, *_EMBEDDING_COPIES]
    if config.logits_via_embedding:
        embedding.append(_LM_HEAD)
    found = {k: [tensors[name] for name in v if name in tensors] for k, v in names.items()}
    if not config.logits_via_embedding and hf_config.is_tied(fields, str(source)):
        # As transformers 5 writes it; the embedding, not scaled, is the output layer of such a file
        # without an lm_head.
        found[leaves[-1].ours] = found[leaves[-1].ours] or found[leaves[0].ours][:1]
    _check_tensors(found, tensors, leaves, weights)
    return _Directory(config, leaves, found)


def _check_tensors(
    found: dict[str, list[hf_safetensors.Tensor]],
    tensors: dict[str, hf_safetensors.Tensor],
    leaves: list[_Leaf],
    weights: pathlib.Path,
) -> None:
    """Raises ValueError unless the tensors are those that config.json calls for."""
    unread = set(tensors) - {_UNUSED}
    for leaf in leaves:
        expected = f"by {hf_config.FILE_NAME} expected is {list(leaf.shape_there)}"
        if not found[leaf.ours]:
            raise ValueError(f"{weights} lacks {leaf.theirs} (our {leaf.ours}); {expected}")
        for tensor in found[leaf.ours]:
            what = f"{tensor.file}: {tensor.name} (our {leaf.ours})"
            if tensor.shape != leaf.shape_there:
                raise ValueError(f"{what} has shape {list(tensor.shape)}; {expected}")
            if tensor.dtype not in _DTYPES:
                raise ValueError(f"{what} is {tensor.dtype}; valid is {', '.join(_DTYPES)}")
            unread.discard(tensor.name)
    if unread:
        extra = min(unread)
        nearest = difflib.get_close_matches(extra, [leaf.theirs for leaf in leaves], 3, 0.0)
        raise ValueError(
            f"{tensors[extra].file} has {extra} and {len(unread) - 1} more tensors that a model by "
            f"{hf_config.FILE_NAME} has not; nearest: {', '.join(nearest)}"
        )


def _check_params(arrays: dict[str, Any], leaves: list[_Leaf]) -> None:
    """Raises ValueError unless the parameters are those of the model to write."""
    expected = {leaf.ours: leaf.shape for leaf in leaves}
    for name in sorted(expected.keys() | arrays.keys()):
        found = tuple(arrays[name].shape) if name in arrays else "missing"
        if found != expected.get(name):
            raise ValueError(
                f"the parameter {name} is {found}; by its T5Config expected is "
                f"{expected.get(name, 'no such parameter')}"
            )


def _convert(array: Any, leaf: _Leaf, dtype: str) -> np.ndarray:
    """One of our arrays as their tensor."""
    array = converted(leaf.ours, array, dtype)
    return array.T if leaf.transposed else array
