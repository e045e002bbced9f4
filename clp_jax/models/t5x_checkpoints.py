"""Checkpoints of T5X, read from a directory or a bucket (gs://...) and written to a directory.

T5X has two formats, both read here; the parameters' names and shapes are those of `models/t5.py`.

- legacy, which T5 1.1 and FLAN-T5 are released in and which `save` writes: `checkpoint_N/` has a
  msgpack file `checkpoint`, {'version': 3, 'optimizer': {'target': parameters, 'state': ...}}, the
  leaves being arrays, or tensorstore specs of zarr arrays in `checkpoint_N/target.NAME/`.
- orbax: `checkpoint_N/state/` holds zarr arrays `target.NAME/`, within an OCDBT database or not.

Both go through tensorstore's key-value stores, so that a bucket is read as a directory is. Nothing
but the parameters ('target') is read.
"""

import contextlib
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from flax import serialization, traverse_util

from clp_jax.models.dtypes import DTYPES, converted
from clp_jax.reporting.errors import unknown_name

Params = Any

_INDEX = "checkpoint"
_STEP = re.compile(r"checkpoint_(\d+)")
# Version 2 differs only in that it has bfloat16 as uint16, which is refused.
_VERSIONS = (2, 3)
_DRIVERS = ("zarr", "zarr3")
_CHUNK_BYTES = 64 * 2**20

# In seconds. Arrays are read all at once, so the first may come late.
_HEADER_TIMEOUT, _ARRAY_TIMEOUT = 120.0, 1800.0
_RETRIES = {"max_retries": 6, "initial_delay": "500ms", "max_delay": "8s"}
_CONTEXT = ts.Context({"gcs_request_retries": _RETRIES})


def recognises(path: str) -> bool:
    """Whether `path` looks like a checkpoint of T5X, by names alone.

    A bucket's path always does: no other format is read from one.
    """
    if path.startswith("gs://"):
        return True
    folder = pathlib.Path(path)
    if not folder.is_dir():
        return folder.is_file() and folder.name == _INDEX
    names = {entry.name for entry in folder.iterdir()}
    if (folder / _INDEX).is_file() or any(_STEP.fullmatch(name) for name in names):
        return True
    # A directory named as T5X does is one, if only to say what it lacks, unless it is another's.
    theirs = not names or any(name == "state" or name.startswith("target.") for name in names)
    return theirs and bool(_STEP.fullmatch(folder.resolve().name))


def shapes(path: str) -> Params:
    """Reads the shapes and dtypes of a checkpoint's parameters.

    Args:
      path: a `checkpoint_N` directory, its file `checkpoint`, or a directory of several
        `checkpoint_N`, of which the latest counts; local or gs://BUCKET/...

    Returns:
      Nested dict of `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: there is no checkpoint, or one that is incomplete, corrupt, of another version or
        of another layout (scanned layers).
    """
    stores = {name: leaf.store for name, leaf in _open(path).items()}
    flat = {k: jax.ShapeDtypeStruct(v.shape, v.dtype.numpy_dtype) for k, v in stores.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def load(path: str, expected: Params) -> Params:
    """Reads a checkpoint's parameters, all arrays in parallel.

    Args:
      path: as `shapes` takes it.
      expected: tree of arrays or shapes, which `shapes` was found to agree with.

    Returns:
      Nested dict of numpy arrays, with the names and dtypes of `expected`.

    Raises:
      ValueError: as `shapes` does; also if a chunk of an array is missing or corrupt.
    """
    leaves = _open(path)
    reads = {}
    for name, value in traverse_util.flatten_dict(expected, sep="/").items():
        store, dtype = leaves[name].store, ts.dtype(jnp.dtype(value.dtype).name)
        reads[name] = (store if store.dtype == dtype else ts.cast(store, dtype)).read()
    arrays = {}
    for name, read in reads.items():
        with _naming(leaves[name].source):
            arrays[name] = np.asarray(read.result(timeout=_ARRAY_TIMEOUT))
    return traverse_util.unflatten_dict(arrays, sep="/")


def save(path: pathlib.Path, params: Params, step: int = 0, dtype: str = "float32") -> None:
    """Writes parameters in T5X's legacy format, without optimizer state.

    Args:
      path: the directory of the checkpoint, which must not exist or be empty. T5X wants it named
        `checkpoint_N`.
      params: tree of parameters.
      step: the training step that T5X reads.
      dtype: of the arrays in the files: float32, bfloat16 or float16.

    Raises:
      ValueError: unknown `dtype`, a value that is not finite or too large for it, or a file cannot
        be written.
    """
    if dtype not in DTYPES:
        raise ValueError(unknown_name("dtype", dtype, DTYPES))
    path.mkdir(parents=True, exist_ok=True)
    folder = _folder(str(path))
    specs = {}
    # One at a time, as each may be copied on its way.
    for name, leaf in traverse_util.flatten_dict(params, sep="/").items():
        array = converted(name, leaf, dtype)
        file = f"target.{name.replace('/', '.')}"
        # Weights hardly compress, and gzip takes 20 times as long. T5X asks for the key.
        metadata = {"shape": list(array.shape), "chunks": _chunks(array), "compressor": None}
        spec = {"driver": "zarr", "dtype": dtype, "metadata": metadata}
        with _naming(f"{path / file} ({name})"):
            stored = {**spec, "kvstore": (folder / file).kvstore}
            ts.open(stored, create=True, context=_CONTEXT).result().write(array).result()
        # Relative to the checkpoint, which may so be moved.
        specs[name] = {**spec, "kvstore": {"driver": "file", "path": f"{file}/"}}
    state = {
        "target": traverse_util.unflatten_dict(specs, sep="/"),
        "state": {"step": np.asarray(step, np.int32)},
    }
    content = serialization.msgpack_serialize({"version": _VERSIONS[-1], "optimizer": state})
    (path / _INDEX).write_bytes(content)


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A directory, local or of a bucket."""

    url: str  # for errors; without a slash at the end
    kvstore: dict[str, Any]  # tensorstore's spec; its path is empty or ends in a slash

    def __truediv__(self, name: str) -> "_Folder":
        path = f"{self.kvstore.get('path', '')}{name}/"
        return _Folder(f"{self.url}/{name}", {**self.kvstore, "path": path})

    def read(self, key: str) -> bytes | None:
        """The content of a file; None if there is none."""
        with _naming(f"{self.url}/{key}"):
            store = ts.KvStore.open(self.kvstore, context=_CONTEXT).result()
            found = store.read(key).result(timeout=_HEADER_TIMEOUT)
        return found.value if found.state == "value" else None

    def keys(self, prefix: str) -> list[str]:
        """Paths of all files whose path begins with `prefix`; none if it may not be listed."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        with _naming(f"{self.url}/{prefix}*"):
            store = ts.KvStore.open(self.kvstore, context=_CONTEXT).result()
            found = store.list(ts.KvStore.KeyRange(prefix, end)).result(timeout=_HEADER_TIMEOUT)
        return sorted(key.decode() for key in found)


def _folder(path: str) -> _Folder:
    if not path.startswith("gs://"):
        absolute = str(pathlib.Path(path).resolve())
        return _Folder(absolute, {"driver": "file", "path": f"{absolute}/"})
    match = re.fullmatch(r"gs://([^/]+)/*(.*?)/*", path)
    if match is None:
        raise ValueError(f"{path!r} names no bucket; valid is gs://BUCKET/FOLDER")
    bucket, name = match.groups()
    kvstore = {"driver": "gcs", "bucket": bucket, "path": f"{name}/" if name else ""}
    return _Folder(path.rstrip("/"), kvstore)


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    """Turns tensorstore's errors into a ValueError that begins with `source`."""
    try:
        yield
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        # What follows is the whole spec, again.
        message = str(error).split(" [tensorstore_spec=")[0] or type(error).__name__
        raise ValueError(f"{source} cannot be read or written: {message}") from error


def _locate(path: str) -> tuple[_Folder, bytes | None]:
    """Finds the directory of a checkpoint, and its msgpack file's content (None if orbax)."""
    folder = _folder(path)
    if path.rstrip("/").endswith(f"/{_INDEX}") or path == _INDEX:
        parent = _folder(path.rstrip("/")[: -len(_INDEX)] or ".")
        index = parent.read(_INDEX)
        if index is not None:
            return parent, index
    index = folder.read(_INDEX)
    if index is not None or folder.keys("state/"):
        return folder, index
    names = {key.split("/")[0] for key in folder.keys("checkpoint_") if "/" in key}
    steps = {int(match[1]): match[0] for name in names if (match := _STEP.fullmatch(name))}
    if steps:
        return _locate(f"{path.rstrip('/')}/{steps[max(steps)]}")
    bucket = (
        ", or the bucket does not exist or may not be listed" if path.startswith("gs://") else ""
    )
    raise ValueError(
        f"{folder.url} is no T5X checkpoint: it has no file `{_INDEX}`, no folder `state/` and no "
        f"folder `checkpoint_N` that is not empty{bucket}"
    )


class _Stored(NamedTuple):
    """Where an array is."""

    file: str  # a directory in the checkpoint
    driver: str
    shape: tuple[int, ...] | None = None  # if known


class _Leaf(NamedTuple):
    """A parameter in a checkpoint, not yet read."""

    source: str  # what an error calls it: file or directory, and the name here
    store: ts.TensorStore


def _open(path: str) -> dict[str, _Leaf]:
    """Finds the parameters and reads their headers; keys are names here, e.g. 'encoder/...'."""
    folder, index = _locate(path)
    if index is None:
        folder, found = _orbax_target(folder / "state")
    else:
        found = _legacy_target(f"{folder.url}/{_INDEX}", index)
    opened = {}
    for name, value in found.items():
        if isinstance(value, np.ndarray):
            opened[name] = f"{folder.url}/{_INDEX}: target/{name}", ts.Future(ts.array(value))
            continue
        array = folder / value.file
        # With missing data filled, zeros would stand for what a copy left out.
        spec = {"driver": value.driver, "kvstore": array.kvstore, "fill_missing_data_reads": False}
        opened[name] = f"{array.url} ({name})", ts.open(spec, read=True, context=_CONTEXT)
    leaves = {}
    for name, (source, future) in opened.items():
        with _naming(source):
            leaves[name] = _Leaf(source, future.result(timeout=_HEADER_TIMEOUT))
        _check(name, leaves[name], found[name])
    return leaves


def _check(name: str, leaf: _Leaf, found: _Stored | np.ndarray) -> None:
    """Raises ValueError unless an opened array is what the checkpoint says, and a parameter."""
    store = leaf.store
    if found.shape not in (None, store.shape):
        raise ValueError(
            f"{leaf.source} has shape {list(store.shape)}; expected is {list(found.shape or ())}, "
            f"which the file `{_INDEX}` says"
        )
    if store.dtype.name not in DTYPES:
        hint = "; T5X's version 2 wrote bfloat16 so" if store.dtype.name == "uint16" else ""
        raise ValueError(
            f"{leaf.source} has dtype {store.dtype.name}; valid are {', '.join(DTYPES)}{hint}"
        )
    if store.rank > 2 or "layers" in name.split("/"):
        raise ValueError(
            f"{leaf.source} has shape {list(store.shape)}, as of layers stacked into one array "
            "(T5X's scan over layers); expected is an array of 1 or 2 axes for each layer, as "
            "t5x.examples.t5 has"
        )


def _legacy_target(source: str, content: bytes) -> dict[str, _Stored | np.ndarray]:
    """The parameters that a legacy checkpoint's msgpack file lists."""
    if content.startswith(b"model_checkpoint_path"):
        raise ValueError(f"{source} is TensorFlow's; convert it: t5x.scripts.convert_tf_checkpoint")
    try:
        tree = serialization.msgpack_restore(content)
    except Exception as error:  # what a decoder meets in arbitrary bytes may raise anything
        raise ValueError(
            f"{source} is truncated or no msgpack file of T5X ({len(content)} bytes): "
            f"{error!r:.200}"
        ) from error
    version = tree.get("version") if isinstance(tree, dict) else None
    if not isinstance(version, int) or version not in _VERSIONS:
        raise ValueError(
            f"{source} is of version {version!r:.100}; valid are {', '.join(map(str, _VERSIONS))}"
        )
    optimizer = tree.get("optimizer")
    target = optimizer.get("target") if isinstance(optimizer, dict) else None
    if not isinstance(target, dict) or not target:
        raise ValueError(f"{source} has no optimizer/target; expected are the parameters there")
    flat = traverse_util.flatten_dict(
        target, is_leaf=lambda _, value: isinstance(value, dict) and "kvstore" in value
    )
    names = {"/".join(map(str, keys)): value for keys, value in flat.items()}
    return {name: _legacy_leaf(f"{source}: target/{name}", v) for name, v in names.items()}


def _legacy_leaf(source: str, value: Any) -> _Stored | np.ndarray:
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    try:
        # tensorstore < 0.1.14 had the path beside the kvstore. It may be one of the machine that
        # wrote the checkpoint: only the directory's own name counts.
        path = value["kvstore"]["path"] if "path" in value["kvstore"] else value["path"]
        driver, file = value["driver"], path.rstrip("/").split("/")[-1]
        shape = tuple(int(size) for size in value["metadata"]["shape"])
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{source} is {value!r:.200}; expected is an array or a spec of tensorstore with "
            "driver, path and shape"
        ) from error
    if driver not in _DRIVERS:
        raise ValueError(f"{source}: {unknown_name('driver', str(driver), _DRIVERS)}")
    if file in ("", ".", ".."):
        raise ValueError(f"{source} has path {path!r}; expected is target.NAME/")
    return _Stored(file, driver, shape)


def _orbax_target(state: _Folder) -> tuple[_Folder, dict[str, _Stored | np.ndarray]]:
    """The store of an orbax checkpoint's item `state`, and the parameters in it."""
    if state.read("manifest.ocdbt") is not None:
        state = _Folder(state.url, {"driver": "ocdbt", "base": state.kvstore})
    keys = state.keys("target.")
    zarr3 = {key.split("/")[0] for key in keys if key.endswith("/zarr.json")}
    found: dict[str, _Stored | np.ndarray] = {
        file.removeprefix("target.").replace(".", "/"): _Stored(file, _DRIVERS[file in zarr3])
        for file in sorted({key.split("/")[0] for key in keys})
    }
    if not found:
        raise ValueError(f"{state.url} has no arrays `target.NAME`; expected are the parameters")
    return state, found


def _chunks(array: np.ndarray) -> list[int]:
    """The shape of the pieces of an array in its files: whole rows, up to some size."""
    if not array.ndim:
        return []
    row = array.itemsize * math.prod(array.shape[1:])
    rows = max(1, min(array.shape[0], _CHUNK_BYTES // max(row, 1)))
    return [rows, *(max(1, size) for size in array.shape[1:])]
