"""What is said of checkpoints whose files are deleted, emptied or halved, one JSON line for each.

    python damaged_checkpoints.py FOLDER

A process of its own: of several arrays that cannot be read, orbax drops all errors but the first,
and they appear anywhere later.
"""

import itertools
import json
import pathlib
import shutil
import sys

import jax
import numpy as np

from clp_jax.models import checkpoints
from clp_jax.runs.run_checkpoints import RunCheckpoints
from clp_jax.settings.config import SaveCheckpointConfig

HOW = ("deleted", "empty", "halved")
FILES = ("_METADATA", "manifest.ocdbt", "d/*", "ocdbt.process_0/d/*")
STATE_FILES = ("state/_METADATA", "state/manifest.ocdbt", "state/ocdbt.process_0/d/*")
STEPS = (1, 3, 5)

KERNEL = np.random.default_rng(0).normal(size=(60, 70)).astype(np.float32)
PARAMS = {"a": {"kernel": KERNEL}, "b": np.ones(3, np.float32)}
SHAPES = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)


class Nowhere:
    """A position in data that has none."""

    def position(self):
        return {"x": np.zeros(1)}


def save_steps(folder):
    """Checkpoints of several steps of a run."""
    saved = RunCheckpoints(folder, SaveCheckpointConfig(period=1, keep=len(STEPS)))
    for step in STEPS:
        saved.save(step, PARAMS, Nowhere())
    saved.close()


def damage(folder, pattern, how):
    """Deletes, empties or halves the largest file of those that match."""
    file = max(folder.glob(pattern), key=lambda file: file.stat().st_size)
    content = file.read_bytes()
    file.unlink()
    if how != "deleted":
        file.write_bytes(content[: len(content) // 2] if how == "halved" else b"")


def refusal(call, *args):
    """The message of the ValueError that a call raises."""
    try:
        call(*args)
    except ValueError as error:
        return str(error)
    return "none was raised"


def main(root):
    checkpoints.save_params(root / "whole", PARAMS)
    for file, how in itertools.product(FILES, HOW):
        run = root / "run"  # as a MODEL_DIR holds it
        shutil.copytree(root / "whole", run / checkpoints.REFERENCE)
        damage(run / checkpoints.REFERENCE, file, how)
        for place in (run / checkpoints.REFERENCE, run):
            print(json.dumps([file, how, refusal(checkpoints.load_params, place, SHAPES)]))
        shutil.rmtree(run)
    save_steps(root / "steps")
    for file, how in itertools.product(STATE_FILES, HOW):
        shutil.copytree(root / "steps", root / "copy")
        damage(root / "copy" / str(max(STEPS)), file, how)
        print(json.dumps([file, how, refusal(RunCheckpoints(root / "copy").restore, SHAPES)]))
        shutil.rmtree(root / "copy")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
