"""Runs as training leaves them, without the training, for the tests of what is done with them."""

import contextlib
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import smoke

from clp_jax.data.batches import Batches
from clp_jax.data.briefs import corpus
from clp_jax.models import checkpoints
from clp_jax.policies.rewarded_soup import expert_runs
from clp_jax.runs import states
from clp_jax.runs.run_checkpoints import RunCheckpoints
from clp_jax.settings import command_line

STEPS = (3, 7)
ROWS = corpus.generate("validation", 5)
DOCUMENTS = [row["document"] for row in ROWS]
SUMMARIES = [row["summary"] for row in ROWS]
WEIGHTS = {"entailment": 0.7, "rouge": 0.3}


def moved(tree, seed):
    """Parameters far from each other and from those of any other seed."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def made(folder, *bindings, kind="clp_attn", steps=STEPS):
    """A MODEL_DIR as training leaves it, with replicas that training did not move so far."""
    files = [file.replace("clp_attn", kind) for file in smoke.FILES]
    run = smoke.configured(folder, *bindings, files=files)
    command_line.claim_model_dir(str(folder))
    reference = jax.tree.map(lambda x: 1.5 * x, states.init_params(run))
    checkpoints.save_params(folder / checkpoints.REFERENCE, reference)
    runs = expert_runs(run) if run.model.rewarded_soup else [run]
    for i, one in enumerate(runs):
        saved = RunCheckpoints(pathlib.Path(one.model_dir, "checkpoints"), KEEP_ALL)
        state = states.init_state(one, reference)
        for step in steps:
            params = moved(state.params, 10 * i + step)
            at_step = state.replace(step=jnp.int32(step), params=params)
            saved.save(step, at_step, Batches(one.train_dataset_cfg, repeat=True, seed=0))
        saved.close()
    return run


KEEP_ALL = SimpleNamespace(keep=None)


@contextlib.contextmanager
def raises(*parts):
    """A ValueError that says all of `parts`."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        yield
    for part in parts:
        assert part in str(caught.value)
