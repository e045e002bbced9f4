"""A quiet console: known harmless lines are left out, everything else is seen."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys

import pytest
import smoke

from clp_jax.reporting import console

LINES = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1796101705.192564    2353 port.cc:153] oneDNN custom operations are on.
E0000 00:00:1796101710.058184    2353 cuda_platform.cc:52] failed call to cuInit: INTERNAL: 303
"""
NEWS = """\
E0000 00:00:1796101710.058184    2353 file_system.cc:52] disk quota exceeded
W0000 00:00:1796101710.058184    2353 retry.cc:1] the service does not answer
normalizer.cc(51) LOG(ERROR) the model is damaged
Fatal Python error: Segmentation fault
no end of line"""


@pytest.fixture
def quiet():
    """As in a command; what it changed is undone."""
    finders, filters = list(sys.meta_path), list(logging.getLogger("absl").filters)
    console.quiet()
    yield
    sys.meta_path[:] = finders
    logging.getLogger("absl").filters[:] = filters


def test_news_pass_and_harmless_lines_do_not(quiet, capfd):
    with console.without_harmless_lines():
        os.write(2, LINES.encode())
        os.write(2, NEWS.encode())
    assert capfd.readouterr().err == NEWS + "\n"  # what is written next begins a line
    os.write(2, LINES.encode())  # later lines are as ever
    assert capfd.readouterr().err == LINES


def test_news_pass_when_something_is_raised(quiet, capfd):
    with contextlib.suppress(KeyError), console.without_harmless_lines():
        os.write(2, NEWS.encode())
        raise KeyError
    assert capfd.readouterr().err == NEWS + "\n"


def test_nothing_is_held_back_without_quiet(capfd, monkeypatch):
    monkeypatch.setattr(logging.getLogger("absl"), "filters", [])  # a test may have run a command
    with console.without_harmless_lines():
        os.write(2, LINES.encode())
        assert capfd.readouterr().err == LINES


def test_loggers(quiet, caplog):
    logger = logging.getLogger("absl")
    harmless = (
        "CheckpointManagerOptions.read_only=True, setting save_interval_steps=0.",
        "Given directory is read only=/tmp/run/checkpoints",
        "Using an uncached FunctionDataset for training is not recommended since it often results",
    )
    logger.propagate = True
    for message in (*harmless, "Given up after 5 retries"):
        logger.warning(message)
    assert [record.getMessage() for record in caplog.records] == ["Given up after 5 retries"]


OF_LIBRARIES = ("absl", "0000 00:00", "oneDNN", "LOG(INFO)", "read_only", "read only", "uncached")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(MODEL_DIR, stderr of its training)."""
    model_dir = tmp_path_factory.mktemp("quiet")
    flags = smoke.flags(model_dir, "TRAIN_STEPS=4", "EVAL_GRID_POINTS=2")
    done = smoke.command("clp_jax.train", *flags)
    assert done.returncode == 0, done.stderr
    return model_dir, done.stderr


def of_libraries(text):
    return [line for line in text.splitlines() if any(part in line for part in OF_LIBRARIES)]


def test_a_run_and_its_resumption_are_quiet(trained):
    model_dir, said = trained
    assert of_libraries(said) == []
    assert "clp 4/4" in said
    again = smoke.command(
        "clp_jax.train", *smoke.flags(model_dir, "TRAIN_STEPS=6", "EVAL_GRID_POINTS=2")
    )
    assert "resuming from step 4" in again.stderr
    assert of_libraries(again.stderr) == []


def test_verbose_brings_the_libraries_back(trained):
    model_dir, _ = trained
    arguments = (f"--model_dir={model_dir}", "--num_examples=8", "--grid_points=2")
    output = f"--output={model_dir / 'elsewhere'}"
    verbose = smoke.command("clp_jax.evaluate", *arguments, output, "--verbose")
    found = "\n".join(of_libraries(verbose.stderr))
    for part in ("oneDNN", "read_only"):
        assert part in found


DYING = """
import os
from clp_jax.reporting import console
console.quiet()
with console.without_harmless_lines():
    os.write(2, b"I0000 00:00:1 1 port.cc:1] harmless\\n")
    os.write(2, b"F0000 00:00:1 1 port.cc:1] the processor lacks AVX\\n")
    os.abort()
"""


def test_what_a_process_dies_of_is_seen():
    done = subprocess.run(
        [sys.executable, "-c", DYING], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGABRT
    assert "F0000 00:00:1 1 port.cc:1] the processor lacks AVX\n" in done.stderr
    assert "harmless" not in done.stderr


def test_closed_stderr(trained, tmp_path):
    model_dir, _ = trained
    (tmp_path / "a.jsonl").write_text('{"document": "A goose sings."}\n')
    command = (
        f"{sys.executable} -m clp_jax.generate --model_dir={model_dir} --reward_weights=1,0 "
        f"--input={tmp_path / 'a.jsonl'} 2>&-"
    )
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True, check=True)
    (row,) = map(json.loads, done.stdout.splitlines())
    assert row["document"] == "A goose sings."
    wrong = command.replace("--reward_weights=1,0", "--reward_weights=1,1")
    done = subprocess.run(wrong, shell=True, stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
