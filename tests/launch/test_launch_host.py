import os
import signal
import subprocess
import sys
import time

import pytest
import smoke
from launch_stubs import LAUNCH, Stubs, alive

TRAINER = """#!{python} -IS
import os, signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print(*sys.argv[1:], sep="|", flush=True)
open({folder!r} + "/started", "a").write(str(os.getpid()) + " ")
while not os.path.exists({folder!r} + "/end"):
    time.sleep(0.02)
sys.exit(int(open({folder!r} + "/end").read()))
"""


@pytest.fixture
def host(tmp_path):
    """A host on which the code is installed; `end` holds the code with which training ends."""
    host = Stubs(tmp_path / "host", "sudo", "findmnt", "gcsfuse", "python3")
    home = host.folder / "home"
    (home / "clp-jax").mkdir(parents=True)
    trainer = home / "clp-jax-environment/bin/python"
    trainer.parent.mkdir(parents=True)
    (home / "clp-jax-run").mkdir()
    (home / "clp-jax-run/prepared").touch()
    trainer.write_text(TRAINER.format(python=sys.executable, folder=str(host.folder)))
    trainer.chmod(0o755)
    (host.folder / "answers").write_text("[]")
    yield host
    for pid in started(host):
        if alive(pid):
            subprocess.run(["kill", "-KILL", str(pid)], check=True)


def started(host):
    """The process ids of the trainings that were started."""
    file = host.folder / "started"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def start(host, *arguments):
    return subprocess.Popen(
        ["bash", LAUNCH / "tpu_vm_worker.sh", *arguments],
        env=host.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, cwd=host.folder, start_new_session=True,
    )  # fmt: skip


def prepare(host):
    """The code, packed, is installed on the host."""
    packed = host.folder / "home/code.tar.gz"
    subprocess.run(["tar", "-czf", packed, "-C", smoke.ROOT, "launch/common.sh"], check=True)
    return host.run("tpu_vm_worker.sh", "prepare", "buck", "archive", "code.tar.gz")


def wait_until(true):
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("code", [0, 2, 75])
def test_a_host_passes_arguments_output_and_exit_code_on(code, host):
    (host.folder / "end").write_text(str(code))
    done = host.run("tpu_vm_worker.sh", "train", "run-1", "--a=b c", "--multihost")
    assert done.returncode == code
    assert done.stdout == "-u|-m|clp_jax.train|--a=b c|--multihost\n"
    (copied,) = host.folder.glob("gcs/logs/run-1/*.log")
    assert copied.read_text() == done.stdout


def test_a_second_call_follows_the_training_under_way(host):
    first = start(host, "train", "run-1", "--a")
    wait_until(lambda: started(host))
    second = start(host, "train", "run-1", "--a")
    assert "clp_jax.train|--a" in second.stdout.readline()
    (host.folder / "end").write_text("3")
    assert (first.wait(30), second.wait(30)) == (3, 3)
    first.communicate(timeout=30)
    second.communicate(timeout=30)
    assert len(started(host)) == 1


def test_a_lost_connection_does_not_end_the_training(host):
    first = start(host, "train", "run-1")
    wait_until(lambda: started(host))
    os.killpg(first.pid, signal.SIGHUP)
    first.communicate(timeout=30)
    (pid,) = started(host)
    assert alive(pid)
    second = start(host, "train", "run-1")
    second.stdout.readline()
    (host.folder / "end").write_text("0")
    second.communicate(timeout=30)
    assert second.returncode == 0
    assert len(started(host)) == 1


def test_a_run_that_has_ended_is_started_anew_once_the_host_was_prepared(host):
    for number, code in enumerate(("75", "0"), 1):
        (host.folder / "end").write_text(code)
        assert prepare(host).returncode == 0
        done = host.run("tpu_vm_worker.sh", "train", "run-1")
        assert done.returncode == int(code)
        assert done.stdout.count("clp_jax.train") == 1
        # A connection that was lost in the last moment makes gcloud call again.
        again = host.run("tpu_vm_worker.sh", "train", "run-1")
        assert again.returncode == int(code)
        assert len(started(host)) == number


def test_preparing_stops_what_trains_installs_and_mounts(host):
    first = start(host, "train", "run-1")
    wait_until(lambda: started(host))
    done = prepare(host)
    assert done.returncode == 0, done.stderr
    output, _ = first.communicate(timeout=30)
    assert first.returncode == 75
    assert output.endswith("saved\n")
    home = host.folder / "home"
    assert [p.name for p in (home / "clp-jax").rglob("*.sh")] == ["common.sh"]
    pip, environment, install, look, _, _, mounted = host.calls
    assert pip[-1] == "uv"
    assert environment[-1] == f"{home}/clp-jax-environment"
    assert f"--constraint={home}/clp-jax/launch/constraints-tpu.txt" in install
    assert install[-1] == f"--editable={home}/clp-jax[tpu]"
    assert look[0] == "findmnt"
    assert mounted == [
        "gcsfuse", "--implicit-dirs", "--metadata-cache-ttl-secs=0", "buck", f"{host.folder}/gcs"
    ]  # fmt: skip


def test_a_mounted_bucket_is_not_mounted_again(host):
    host.answer("findmnt", "buck")
    assert prepare(host).returncode == 0
    assert [call[0] for call in host.calls] == ["python3"] * 3 + ["findmnt"]


def test_an_installation_that_fails_is_told(host):
    host.answer("uv pip install", 1)
    assert prepare(host).returncode != 0
    assert host.calls[-1][:4] == ["python3", "-m", "uv", "pip"]
