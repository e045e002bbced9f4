"""Checkpoints of plain LM parameters, and the check that a checkpoint fits the model."""

import difflib
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

Params = Any

# A training run's MODEL_DIR holds the plain LM parameters of its reference policy here.
REFERENCE = "reference"


def save_params(path: str | pathlib.Path, params: Params) -> None:
    """Writes a tree of parameters; what stood at `path` goes only when the new one is whole."""
    path = pathlib.Path(path).resolve()
    partial = path.with_name(f".{path.name}.partial")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(partial, params, force=True)
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)


def load_params(path: str | pathlib.Path, expected: Params) -> Params:
    """Reads a checkpoint of plain LM parameters.

    Args:
      path: the checkpoint, or a MODEL_DIR that has one under `reference/`.
      expected: tree of arrays or shapes that the model has.

    Returns:
      Parameters with the structure of `expected`.

    Raises:
      ValueError: no checkpoint there, or one of another model.
    """
    folder = check_params(path, expected)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, restore_template(expected))


def restore_template(tree: Any) -> Any:
    """Shapes that place every array on this process's first device, wherever it was saved from."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def check_params(path: str | pathlib.Path, expected: Params) -> pathlib.Path:
    """Returns the checkpoint's own directory; raises as `load_params` does, but reads no arrays."""
    folder = pathlib.Path(path).resolve()
    folder = folder / REFERENCE if (folder / REFERENCE).is_dir() else folder
    if not folder.is_dir():
        raise ValueError(f"no checkpoint at {path}: there is no such directory")
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            found = checkpointer.metadata(folder).item_metadata
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(f"{path} is not a checkpoint: {error}") from error
    if found is None:
        raise ValueError(f"{path} is not a checkpoint of parameters, nor is there a {REFERENCE}/")
    check_structure(found.tree, expected, str(path))
    return folder


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


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }
