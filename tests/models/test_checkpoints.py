"""Our own checkpoints of parameters, and directories that are there whole or not at all."""

import collections
import json
import re
import shutil
import subprocess
import sys
import threading

import damaged_checkpoints
import jax
import numpy as np
import pytest
from damaged_checkpoints import KERNEL, PARAMS, SHAPES, save_steps
from hf_directories import write_directory

from clp_jax.models import checkpoints, hf_checkpoints, t5x_checkpoints
from clp_jax.runs.run_checkpoints import RunCheckpoints

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


def test_what_stood_there_when_a_process_was_killed_is_put_back(tmp_path):
    old = tmp_path / ".x.old"  # renamed, and then the process ended
    old.mkdir()
    (old / "file").write_text("first")
    with pytest.raises(OSError, match="no space"), checkpoints.whole_directory(tmp_path / "x"):
        raise OSError("no space")
    assert (tmp_path / "x" / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_file_is_replaced_as_a_directory_is(tmp_path):
    (tmp_path / "x").write_text("a file")
    with checkpoints.whole_directory(tmp_path / "x") as partial:
        partial.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").is_dir()


def test_writers_of_one_directory_wait_for_each_other(tmp_path):
    entered = threading.Event()

    def write(content):
        with checkpoints.whole_directory(tmp_path / "x") as partial:
            entered.set()
            partial.mkdir()
            (partial / content).touch()

    second = threading.Thread(target=write, args=("second",))
    with checkpoints.whole_directory(tmp_path / "x") as partial:
        second.start()
        assert not entered.wait(0.3)
        partial.mkdir()
        (partial / "first").touch()
    second.join(timeout=30)
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "x"
    checkpoints.save_params(path, PARAMS)
    return path


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """(file, what happened to it) -> the messages."""
    root = tmp_path_factory.mktemp("damaged")
    command = [sys.executable, damaged_checkpoints.__file__, str(root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    messages = collections.defaultdict(list)
    for line in done.stdout.splitlines():
        file, how, message = json.loads(line)
        messages[file, how].append(message.replace(str(root), "ROOT"))
    return messages


@pytest.mark.parametrize("how", damaged_checkpoints.HOW)
@pytest.mark.parametrize("file", damaged_checkpoints.FILES)
def test_a_damaged_checkpoint_is_named_and_what_of_it_is(refusals, file, how):
    named = {"_METADATA": "[Mm]etadata", "manifest.ocdbt": '"[ab][./]|manifest', "d/*": "/d/"}.get(
        file, '"[ab][./]'
    )
    for message in refusals[file, how]:
        assert re.match(f"ROOT/run/reference cannot be read: .*({named})", message), message
        assert len(message) < 500
    assert len(refusals[file, how]) == 2


@pytest.mark.parametrize("how", damaged_checkpoints.HOW)
@pytest.mark.parametrize("file", damaged_checkpoints.STATE_FILES)
def test_a_damaged_step_of_a_run_says_where_the_run_can_go_on(refusals, file, how):
    (message,) = refusals[file, how]
    way_out = "cannot be read: .*; without ROOT/copy/5 the run continues from step 3"
    assert re.match(f"ROOT/copy/5.* {way_out}", message), message


def test_a_step_that_is_empty_says_so_and_without_it_the_run_goes_on(tmp_path):
    save_steps(tmp_path)
    (tmp_path / "9").mkdir()
    with pytest.raises(ValueError, match="9/state.* no such directory; without .* from step 5"):
        RunCheckpoints(tmp_path).restore(SHAPES)
    (tmp_path / "9").rmdir()
    np.testing.assert_array_equal(RunCheckpoints(tmp_path).restore(SHAPES)["b"], PARAMS["b"])


def test_what_is_no_checkpoint(saved, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in {
        "none": "no checkpoint at .*none: there is no such directory",
        "empty": "empty is not a checkpoint of parameters: neither ours",
        "empty/file": "no checkpoint at .*file: that is a file; valid is its directory",
    }.items():
        (tmp_path / "empty" / "file").touch()
        with pytest.raises(ValueError, match=message):
            checkpoints.check_params(tmp_path / path, SHAPES)


@pytest.mark.parametrize("name", ["runs", "checkpoint_9"])
def test_a_run_has_its_own_reference_whatever_else_is_in_it(saved, tmp_path, name):
    run = tmp_path / name
    shutil.copytree(saved, run / checkpoints.REFERENCE)
    t5x_checkpoints.save(run / "checkpoint_7", jax.tree.map(np.zeros_like, PARAMS))
    (run / "config.json").write_text("{}")
    got = checkpoints.load_params(run, SHAPES)
    np.testing.assert_array_equal(got["a"]["kernel"], KERNEL)


def test_a_hugging_face_directory_may_have_the_name_of_a_step(tmp_path):
    path = write_directory(tmp_path / "checkpoint_7")
    shapes = hf_checkpoints.shapes(path)
    got = checkpoints.load_params(path, shapes)
    jax.tree.map(np.testing.assert_array_equal, got, hf_checkpoints.load(path, shapes))


def test_two_checkpoints_in_one_directory_are_told_apart_by_the_user(tmp_path):
    path = write_directory(tmp_path / "both")
    t5x_checkpoints.save(path / "checkpoint_7", PARAMS)
    with pytest.raises(ValueError, match="both holds a checkpoint of T5X .*and one of Hugging"):
        checkpoints.load_params(path, SHAPES)
    got = checkpoints.load_params(path / "checkpoint_7", SHAPES)
    np.testing.assert_array_equal(got["a"]["kernel"], KERNEL)
