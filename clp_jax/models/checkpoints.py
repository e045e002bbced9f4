"""Checkpoints of plain LM parameters: our own, T5X's and Hugging Face's, by one interface."""

import contextlib
import difflib
import fcntl
import functools
import os
import pathlib
import shutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from clp_jax.models import hf_checkpoints, t5x_checkpoints
from clp_jax.models.config import T5Config
from clp_jax.models.partitioning import put
from clp_jax.reporting.errors import Diverged, naming

Params = Any

# A training run's MODEL_DIR holds the plain LM parameters of its reference policy here.
REFERENCE = "reference"

# One of these is in every checkpoint that orbax writes for us.
_OWN_FILES = ("_METADATA", "manifest.ocdbt", "ocdbt.process_0")
_NO_DIRECTORY = "there is no such directory"


def save_params(path: str | pathlib.Path, params: Params) -> None:
    """Writes a tree of parameters; what stood at `path` goes only when the new one is whole."""
    with whole_directory(pathlib.Path(path)) as partial, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(partial, params, force=True)


@contextlib.contextmanager
def whole_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Writes a directory that is there whole or not at all; several processes write it together.

    What stood at `path` when a process was killed is put back at the next time. Of processes that
    write to the same parent at a time, one waits for the other.

    Args:
      path: where it shall be.

    Yields:
      A path beside it, where nothing is, to write it to. It becomes `path` at the end of the block,
      and only then what stood there goes; if the block raises, it is removed.
    """
    path = path.resolve()
    partial, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("partial", "old"))
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        if first:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_alone_in(path.parent))
            if old.exists() and not path.exists():
                old.rename(path)
            _remove(partial)
        multihost_utils.sync_global_devices(f"to write {path}")
        try:
            yield partial
            multihost_utils.sync_global_devices(f"written {path}")
            if first:
                _remove(old)
                if path.exists():
                    path.rename(old)
                partial.rename(path)
        finally:
            if first:
                _remove(partial)
        if first:
            _remove(old)
    multihost_utils.sync_global_devices(f"there is {path}")


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Waits for other processes on this machine that write to `folder` by `whole_directory`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def load_params(
    path: str | pathlib.Path, expected: Params, config: T5Config | None = None
) -> Params:
    """Reads plain LM parameters from a checkpoint of any format.

    Args:
      path: one of ours, or a MODEL_DIR that has one under `reference/`; T5X's, local or gs://...
        (`t5x_checkpoints`); a Hugging Face directory (`hf_checkpoints`).
      expected: tree of arrays or shapes that the model has; where they are, or are said to be, the
        parameters will be. A checkpoint in another float dtype is converted.
      config: of the model, which a Hugging Face directory is compared with; None for no comparison.

    Returns:
      Parameters with the structure of `expected`.

    Raises:
      ValueError: no checkpoint there, one that is damaged, or one of another model; names file,
        leaf and what was expected.
      Diverged: it has values that are not finite.
    """
    check_params(path, expected, config)
    template = restore_template(expected)
    if (foreign := _foreign_format(path)) is not None:
        loaded = foreign.load(str(path), expected)
        params = jax.tree.map(lambda x, where: put(x, where.sharding), loaded, template)
    else:
        folder = _own_folder(path)
        with naming(str(folder)), ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore(folder, template)
    check_finite(params, str(path))
    return params


def check_finite(params: Params, source: str) -> None:
    """Raises Diverged, naming the leaves, if a parameter has values that are NaN or infinite."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(params), strict=True)
    if jax.default_backend() == "cpu" and jax.process_count() == 1:  # nothing is copied or compiled
        flags = [np.isfinite(np.asarray(leaf)).all() for leaf in leaves]
    else:
        flags = jax.jit(lambda xs: [jnp.isfinite(x).all() for x in xs])(leaves)
    shown = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    if wrong := [shown(path) for path, flag in zip(paths, flags, strict=True) if not flag]:
        others = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Diverged(
            f"{source} has values that are NaN or infinite in {', '.join(wrong[:3])}{others}: the "
            "training that it is of diverged, or the file is damaged"
        )


def restore_template(tree: Any) -> Any:
    """Shapes that place every array where the tree says, wherever it was saved from.

    Shapes that do not say it are placed on this process's first device.
    """
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def placed(x) -> jax.ShapeDtypeStruct:
        where = getattr(x, "sharding", None) or first
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(placed, tree)


def check_params(
    path: str | pathlib.Path, expected: Params, config: T5Config | None = None
) -> None:
    """Raises as `load_params` does, but reads no arrays."""
    if (foreign := _foreign_format(path)) is not None:
        if foreign is hf_checkpoints and config is not None:
            hf_checkpoints.check_config(path, config)
        check_structure(foreign.shapes(str(path)), expected, str(path))
        return
    folder = _own_folder(path)
    if not folder.is_dir():
        lack = "that is a file; valid is its directory" if folder.exists() else _NO_DIRECTORY
        raise ValueError(f"no checkpoint at {path}: {lack}")
    if not any((folder / name).exists() for name in _OWN_FILES):
        raise ValueError(
            f"{path} is not a checkpoint of parameters: neither ours (nor a MODEL_DIR with a "
            f"{REFERENCE}/), nor of T5X (checkpoint_N/), nor of Hugging Face (config.json)"
        )
    check_structure(saved_structure(folder), expected, str(path))


def saved_structure(folder: pathlib.Path) -> Any:
    """The tree of one of our checkpoints, its leaves with a `shape`.

    Raises:
      ValueError: it cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"no checkpoint at {folder}: {_NO_DIRECTORY}")
    with naming(str(folder)):
        return ocp.StandardCheckpointHandler().metadata(folder).tree


def _foreign_format(path: str | pathlib.Path) -> ModuleType | None:
    """The module that reads `path`; None for our own format."""
    if _holds_reference(path):  # whatever else is in that MODEL_DIR, and however it is named
        return None
    formats = [each for each in (t5x_checkpoints, hf_checkpoints) if each.recognises(str(path))]
    if len(formats) > 1:
        raise ValueError(
            f"{path} holds a checkpoint of T5X (checkpoint_N/ or a file `checkpoint`) and one of "
            "Hugging Face (config.json or weights); move one of them to a directory of its own"
        )
    return formats[0] if formats else None


def _own_folder(path: str | pathlib.Path) -> pathlib.Path:
    folder = pathlib.Path(path).resolve()
    return folder / REFERENCE if _holds_reference(path) else folder


def _holds_reference(path: str | pathlib.Path) -> bool:
    return pathlib.Path(path, REFERENCE).is_dir()


def check_structure(found: Any, expected: Any, source: str, hint: str = "") -> None:
    """Raises ValueError unless two trees have the same leaf names and shapes.

    Args:
      found: tree in a checkpoint (leaves with a `shape`).
      expected: tree of the run.
      source: the checkpoint's path.
      hint: what the difference may come from, added to the message.
    """
    has, needs = _shapes(found), _shapes(expected)
    # Parameters first: they say more than an optimizer's statistics.
    for name in sorted(needs.keys() & has.keys(), key=lambda n: (not n.startswith("params/"), n)):
        if needs[name] != has[name]:
            hint = hint or _vocabulary_hint(name, has[name], needs[name])
            raise ValueError(
                f"{source} is a checkpoint of another model: {name} has shape {list(has[name])} "
                f"there, {list(needs[name])} here{hint}"
            )
    missing, extra = sorted(needs.keys() - has.keys()), sorted(has.keys() - needs.keys())
    if missing:
        nearest = difflib.get_close_matches(missing[0], has, n=3, cutoff=0.0)
        raise ValueError(
            f"{source} is a checkpoint of another model: it lacks {missing[0]} and "
            f"{len(missing) - 1} more; nearest there: {', '.join(nearest)}{hint}"
        )
    if extra:
        raise ValueError(
            f"{source} is a checkpoint of another model: it has {extra[0]} and {len(extra) - 1} "
            f"more, which this model has not{hint}"
        )


def _vocabulary_hint(name: str, there: tuple[int, ...], here: tuple[int, ...]) -> str:
    """What to set if two shapes of a leaf differ in the size of the vocabulary."""
    for leaf, axis in (("token_embedder/embedding", 0), ("logits_dense/kernel", -1)):
        if name.endswith(leaf) and there[axis] != here[axis]:
            return f"; t5.T5Config.vocab_size = {there[axis]} makes it fit"
    return ""


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }
