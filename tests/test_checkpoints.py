"""Our own checkpoints of parameters, and directories that are there whole or not at all."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from clp_jax.models import checkpoints

TWO_DEVICES = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp
from clp_jax.models import checkpoints
checkpoints.save_params(sys.argv[1], jax.device_put({"x": jnp.arange(3.0)}, jax.devices()[1]))
"""


def test_a_checkpoint_is_read_on_another_machine(tmp_path):
    command = [sys.executable, "-c", TWO_DEVICES, str(tmp_path / "saved")]
    subprocess.run(command, check=True, capture_output=True)
    got = checkpoints.load_params(tmp_path / "saved", {"x": jax.ShapeDtypeStruct((3,), "float32")})
    np.testing.assert_array_equal(got["x"], [0, 1, 2])


def test_a_checkpoint_that_is_replaced_is_whole_at_all_times(tmp_path, monkeypatch):
    checkpoints.save_params(tmp_path / "x", {"x": np.zeros(3)})
    checkpoints.save_params(tmp_path / "x", {"x": np.ones(3)})
    shapes = {"x": jax.ShapeDtypeStruct((3,), "float64")}
    assert checkpoints.load_params(tmp_path / "x", shapes)["x"].sum() == 3
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_directory_whose_writing_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "x"
    for content in ("first", "second"):
        with checkpoints.whole_directory(path) as partial:
            partial.mkdir()
            (partial / "file").write_text(content)

    def fail():
        with checkpoints.whole_directory(path) as partial:
            partial.mkdir()
            (partial / "file").write_text("half")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert (path / "file").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    for suffix in ("partial", "old"):
        (tmp_path / f".x.{suffix}").mkdir()
        (tmp_path / f".x.{suffix}" / "rest").touch()
    with checkpoints.whole_directory(tmp_path / "x") as partial:
        assert not partial.exists()
        partial.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert not any((tmp_path / "x").iterdir())
