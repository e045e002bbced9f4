"""A step over eight virtual devices is the step on one, however the mesh is cut."""

import os
import pathlib
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
import smoke

pytestmark = pytest.mark.slow
MESHES = ["8x1", "4x2", "2x4", "4x2 fully sharded"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    output = tmp_path_factory.mktemp("meshes") / "found.pickle"
    script = pathlib.Path(__file__).with_name("mesh_steps.py")
    done = subprocess.run(
        [sys.executable, script, output], capture_output=True, text=True, check=False, timeout=400,
        env={**os.environ, "PYTHONPATH": str(smoke.ROOT / "tests")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return pickle.loads(output.read_bytes())


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_takes_the_steps_of_one_device(found, mesh):
    one, many = found["meshes"]["1x1"], found["meshes"][mesh]
    assert many["samples"] == one["samples"]
    for expected, got in zip(one["metrics"], many["metrics"], strict=True):
        names = [name for name in expected if not name.startswith("timing/")]
        assert {name for name in got if not name.startswith("timing/")} == set(names)
        for name in names:
            # The terms of the policy's loss are of the size of the gradient's, and cancel.
            scale = 50 if name == "loss/policy" else 1
            assert got[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5 * scale), name
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5),
        many["state"],
        one["state"],
    )
    first, *later = many["compiled"]
    assert first >= 3  # generate, score, update
    assert later == [0] * len(later)


def test_a_mesh_evaluates_as_one_device(found):
    one, many = (found["meshes"][name]["values"] for name in ("1x1", "4x2 fully sharded"))
    for name in ("values", "normalised", "kl"):
        np.testing.assert_allclose(many[name], one[name], atol=1e-5)
    assert many["num_prompts"] == one["num_prompts"] == 12


@pytest.mark.parametrize("name", ["largest_share", "largest_share_of_a_reward"])
def test_parameters_are_cut_over_the_devices(found, name):
    share = {mesh: found["meshes"][mesh][name] for mesh in ["1x1", *MESHES]}
    assert share["1x1"] == share["8x1"] == 1
    # Layer norms and relative positions stay whole, and they are many in a network this small.
    assert share["4x2"] == pytest.approx(1 / 2, abs=0.05)
    assert share["2x4"] == pytest.approx(1 / 4, abs=0.05)
    assert share["4x2 fully sharded"] == pytest.approx(1 / 8, abs=0.05)


def test_jit_over_the_mesh_is_pmap_of_what_each_device_does(found):
    jitted, mapped = found["pmap"]["tokens"]
    np.testing.assert_array_equal(jitted, mapped)
    assert len(np.unique(jitted)) > 20
    (*jitted, metrics), (*mapped, mapped_metrics) = found["pmap"]["gradients"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), jitted, mapped
    )
    for name, value in metrics.items():
        scale = 50 if name == "loss/policy" else 1
        assert mapped_metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-5 * scale)
    assert max(abs(x).max() for x in jax.tree.leaves(jitted)) > 0.01
