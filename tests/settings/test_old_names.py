"""What a config.gin of 0.1.0 imports is found where it stands now; two are kept as written then."""

import importlib
import pathlib
import shutil
import subprocess
import sys

import pytest

from clp_jax.algorithm import subset
from clp_jax.settings import command_line, gin_config, old_names

FOLDER = pathlib.Path(__file__).parent


def test_a_run(tmp_path):
    shutil.copy(FOLDER / "config_of_0_1_0.gin", tmp_path / "config.gin")
    run = command_line.saved_run(str(tmp_path))
    assert run.model.subset == subset.attention()
    assert run.model.rewards.names == ("entailment", "rouge")
    assert (run.total_steps, run.sft.steps, run.train_dataset_cfg.batch_size) == (500, 800, 32)


def test_it_is_the_run_of_the_files_of_today(tmp_path):
    shutil.copy(FOLDER / "config_of_0_1_0.gin", tmp_path / "config.gin")
    command_line.configured_run(
        "test", None, ["--gin_file=gin/clp_attn.gin", "--gin_file=gin/briefs.gin"]
    )
    command_line.claim_model_dir(str(tmp_path))  # would name what differs
    assert "from clp_jax.settings import config" in (tmp_path / "config.gin").read_text()


def test_a_fit():
    from clp_jax.reward_fitting.fit_config import FitRun

    gin_config.load([str(FOLDER / "fit_config_of_0_1_0.gin")])
    assert gin_config.configured(FitRun).total_steps == 2


def test_as_t5x_reads_it():
    program = (
        "import sys, gin\n"
        "def evaluate(): pass\n"  # as in t5x.eval's main module
        "gin.parse_config_file(sys.argv[1])\n"
        "from clp_jax.settings.config import Run\n"
        "print(gin.get_configurable(Run)().total_steps)"
    )
    file = str(FOLDER / "config_of_0_1_0.gin")
    done = subprocess.run(
        [sys.executable, "-c", program, file], capture_output=True, text=True, check=True
    )
    assert done.stdout == "500\n"


@pytest.mark.parametrize("name", old_names.MOVED)
def test_each_is_the_module_itself(name):
    module = importlib.import_module(name)
    assert module is importlib.import_module(old_names.MOVED[name])
    assert module.__name__ == module.__spec__.name == old_names.MOVED[name]


def test_other_names_are_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"clp_jax\.subzet"):
        importlib.import_module("clp_jax.subzet")
