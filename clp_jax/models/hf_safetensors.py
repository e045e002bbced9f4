"""The tensors of a Hugging Face directory: `model.safetensors`, or shards of it and an index."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Weights in other formats, whole or in shards, and what transformers 4 needs to read them.
_OTHER_WEIGHTS = {
    "pytorch_model*.bin": "",
    "tf_model*.h5": ", from_tf=True",
    "flax_model*.msgpack": ", from_flax=True",
}


class Tensor(NamedTuple):
    """Where a tensor is, and what the header says of it, e.g. dtype "BF16"."""

    file: pathlib.Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Reads its values."""
        with safe_open(self.file, "np") as tensors:
            return tensors.get_tensor(self.name)


class Source(NamedTuple):
    """A tensor to write, made when its file is written."""

    num_bytes: int
    make: Callable[[], np.ndarray]


def recognises(folder: pathlib.Path) -> bool:
    """Whether the directory has weights by their names, in safetensors or another format."""
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX)) or any(
        any(folder.glob(pattern)) for pattern in _OTHER_WEIGHTS
    )


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      ValueError: there is no such file, or no JSON object in it.
    """
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing; a Hugging Face directory has one") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{file} holds a {type(fields).__name__}; valid is a JSON object")
    return fields


def write_json(file: pathlib.Path, fields: dict[str, Any]) -> None:
    """Writes an object, its fields sorted."""
    file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def find_weights(folder: pathlib.Path) -> pathlib.Path:
    """The file that holds the tensors, or the index of the files that do.

    Raises:
      ValueError: there is neither; where weights are of another format, the message has the way
        to convert them.
    """
    if not folder.is_dir():
        raise ValueError(f"no checkpoint at {folder}: there is no such directory")
    for name in (WEIGHTS, INDEX):
        if (folder / name).is_file():
            return folder / name
    for pattern, option in _OTHER_WEIGHTS.items():
        for other in sorted(folder.glob(pattern)):
            needs = " with transformers 4" if option else ""
            raise ValueError(
                f"{other} is not read, only safetensors are; to convert it{needs}:\n"
                "  from transformers import AutoModelForSeq2SeqLM\n"
                f"  AutoModelForSeq2SeqLM.from_pretrained({str(folder)!r}{option})"
                f".save_pretrained({folder.resolve().name + '-safetensors'!r})"
            )
    raise ValueError(f"{folder} has no weights; expected is {WEIGHTS} or {INDEX}")


def read_headers(weights: pathlib.Path, ours: Mapping[str, str]) -> dict[str, Tensor]:
    """All tensors of a file, or of all shards that an index names, by their names.

    Args:
      weights: what `find_weights` returned.
      ours: our names of tensors, for messages.

    Raises:
      ValueError: a file is malformed or truncated, or a shard or a tensor of it is missing.
    """
    if weights.name == WEIGHTS:
        return _read_header(weights, ours)
    weight_map = read_json(weights).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise ValueError(f"{weights}: weight_map is not an object of tensors' and files' names")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        file = weights.parent / shard
        names = [name for name, its_shard in weight_map.items() if its_shard == shard]
        if not file.is_file():
            raise ValueError(
                f"{file} is missing; {weights.name} expects {describe(names[0], ours)} and "
                f"{len(names) - 1} more tensors there"
            )
        header = _read_header(file, ours)
        for name in names:
            if name not in header:
                raise ValueError(
                    f"{file} lacks {describe(name, ours)}, which {weights.name} expects there"
                )
        # A tensor that the index places elsewhere is read there.
        here = {k: v for k, v in header.items() if weight_map.get(k, shard) == shard}
        if twice := sorted(here.keys() & tensors.keys()):
            raise ValueError(
                f"{describe(twice[0], ours)} is in {tensors[twice[0]].file} and in {file}, and "
                f"{weights.name} does not say which of them counts"
            )
        tensors |= here
    return tensors


def _read_header(file: pathlib.Path, ours: Mapping[str, str]) -> dict[str, Tensor]:
    try:
        with safe_open(file, "np") as tensors:
            views = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {
                name: Tensor(file, name, view.get_dtype(), tuple(view.get_shape()))
                for name, view in views.items()
            }
    except (SafetensorError, OSError) as error:
        reason = _find_cut(file, ours) or str(error)
        raise ValueError(f"{file} is not a whole safetensors file: {reason}") from error


def _find_cut(file: pathlib.Path, ours: Mapping[str, str]) -> str | None:
    """Says where a truncated file ends; None if it is not truncated."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        if size < start:
            return f"it has {size} bytes, expected are {start} for its header alone"
        try:
            header = json.loads(stream.read(start - 8))
            header.pop("__metadata__", None)
            ends = {name: start + entry["data_offsets"][1] for name, entry in header.items()}
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
    cut = [name for name, end in ends.items() if end > size]
    if not cut:
        return None
    first = min(cut, key=lambda name: ends[name])
    return (
        f"it has {size} bytes, expected are {max(ends.values())}; the first of {len(cut)} tensors "
        f"cut off is {describe(first, ours)}, which ends at byte {ends[first]}"
    )


def describe(name: str, ours: Mapping[str, str]) -> str:
    """A tensor's name, and ours if it has one."""
    return f"{name} (our {ours[name]})" if name in ours else name


def write(folder: pathlib.Path, sources: Mapping[str, Source], max_shard_bytes: int) -> None:
    """Writes tensors to one file, or to several and an index.

    Args:
      folder: an existing directory.
      sources: the tensors by their names; those of one file are in memory at a time.
      max_shard_bytes: the tensors of a file sum to no more, unless one alone does; >= 1.
    """
    shards: list[list[str]] = []
    free = 0
    for name, source in sources.items():
        if not shards or source.num_bytes > free:
            shards.append([])
            free = max_shard_bytes
        shards[-1].append(name)
        free -= source.num_bytes
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    files = [WEIGHTS] if len(shards) == 1 else files
    for file, names in zip(files, shards, strict=True):
        # safetensors writes an array's bytes as they lie in memory, whatever its strides.
        tensors = {name: np.ascontiguousarray(sources[name].make()) for name in names}
        (folder / file).touch()
        mode = (folder / file).stat().st_mode
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(mode)  # safetensors lets none but the owner read what it writes
    if len(shards) > 1:
        total_size = sum(source.num_bytes for source in sources.values())
        weight_map = {
            name: file for file, names in zip(files, shards, strict=True) for name in names
        }
        write_json(
            folder / INDEX, {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        )
