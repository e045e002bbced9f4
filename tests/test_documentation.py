"""Every command of README.md and docs/, and what Python is marked so, run as it stands there."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from concurrent import futures

import pytest
import smoke

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(p.relative_to(smoke.ROOT)) for p in smoke.ROOT.glob("docs/*.md")),
]

# What .ci/run does itself, in a virtual environment of its own.
BY_CI = {"pip install -e .", "pip install -e '.[test]'", "pytest", "pytest -m slow",
         "pip install -e '.[parity]'", "pytest tests_parity",
         "ruff check", "ruff format --check", "mypy", "lint-imports"}  # fmt: skip


# Put behind long commands, by a part of them: here they only have to run.
FEW = "--gin.SFT_STEPS=20 --gin.TRAIN_STEPS=4 --gin.EVAL_EXAMPLES=16 --gin.EVAL_BATCH_SIZE=16"
SHORTER = {
    "clp_jax.fit_reward": "--gin.FIT_STEPS=20 --gin.FIT_BATCH_SIZE=8",
    "briefs_nli.gin": "--gin.pairs.briefs_nli.train_size=200"
    " --gin.pairs.briefs_nli.validation_size=20",
    "briefs_preference.gin": "--gin.pairs.briefs_preferences.train_size=200"
    " --gin.pairs.briefs_preferences.validation_size=20",
    "'runs/prompting'": FEW,
    "'runs/briefs_soup'": "--gin.SFT_STEPS=20 --gin.TRAIN_STEPS=4",
    "clp_jax.judge runs/briefs runs/prompting": "--num_examples=16",
    "--mixing=logits": "--num_examples=16 --grid_points=3",
    "'runs/mine'": "--gin.EVAL_GRID_POINTS=2 --gin.SFT_BATCH_SIZE=8 --gin.EVAL_BATCH_SIZE=8"
    " --gin.TASK_FEATURE_LENGTHS=\"{'inputs': 64, 'targets': 16}\"",
    "'runs/learned'": FEW,
}


# Those that only have to run and take longest to compile do so as the other tests do.
COMPILED_FAST = (
    "'runs/four'", "'runs/mine'", "'runs/prompting'", "'runs/learned'", "clp_jax.fit_reward"
)  # fmt: skip


def programs(page):
    """The Python blocks of a page that are marked to be run."""
    text = (smoke.ROOT / page).read_text()
    return re.findall(r"```python run\n(.*?)```", text, re.DOTALL)


def commands(pages=PAGES):
    """Each command of the pages' bash blocks, in order."""
    found = []
    for page in pages:
        for block in re.findall(r"```bash\n(.*?)```", (smoke.ROOT / page).read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                found.extend(part.strip() for part in line.split(" && ") if part.strip())
    return found


def test_ci_runs_what_the_pages_leave_to_it():
    ci = (smoke.ROOT / ".ci/run").read_text()
    left = [c for c in commands() if c in BY_CI]
    assert {"pip install -e '.[test]'", "pytest"} <= set(left)
    ran = [line.replace("--quiet ", "") for line in ci.splitlines()]
    for command in left:
        if command == "pip install -e .":
            command = "pip install -e '.[test]'"
        installs = command.startswith("pip ")
        assert any(line == command or (installs and line.startswith(command)) for line in ran)


def test_the_python_that_is_run_is_there():
    ran = {page: len(programs(page)) for page in PAGES if programs(page)}
    assert ran == {"README.md": 1, "docs/own_loop.md": 1}


def test_files_that_the_pages_name_exist():
    for page in PAGES:
        text = (smoke.ROOT / page).read_text()
        for name in re.findall(r"`((?:gin|docs|tests|clp_jax)/[\w/]+\.(?:gin|md|py))`", text):
            assert (smoke.ROOT / name).exists(), f"{page} names {name}"


def test_every_macro_is_documented():
    macros = set()
    for path in smoke.ROOT.rglob("gin/**/*.gin"):
        macros |= set(re.findall(r"^([A-Z][A-Z_]+) = ", path.read_text(), re.MULTILINE))
    text = (smoke.ROOT / "docs/configuration.md").read_text()
    assert {name for name in macros if not re.search(rf"\b{name}\b", text)} == set()


def test_headers_say_what_a_file_is_and_its_command():
    for path in [*smoke.ROOT.glob("gin/*.gin"), *smoke.ROOT.glob("gin/rewards/*.gin")]:
        header = path.read_text().split("\n\nfrom __gin__")[0]
        assert header.startswith("# "), path
        if path.name != "base.gin":
            command = r"python -m (clp_jax\.(train|fit_reward)|t5x\.(infer|eval)) --gin_file="
            assert re.search(command, header), path


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory with what README.md supposes: the repository's gin files, data and a reward."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "runs").mkdir()
    for name in ("gin", "launch"):
        (folder / name).symlink_to(smoke.ROOT / name)
    block = re.search(
        r"```python\n(# my_rewards.py\n.*?)```", (smoke.ROOT / "README.md").read_text(), re.DOTALL
    )
    (folder / "my_rewards.py").write_text(block[1])
    from clp_jax.data.briefs import corpus

    rows = corpus.generate("train", 300)
    for name in ("docs.jsonl", "pairs.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.slow
def test_every_command_runs_and_the_front_is_not_a_point(workplace):
    main_job, *_ = [c for c in commands() if c not in BY_CI]
    execute(main_job, workplace)
    (folder,) = pathlib.Path(workplace, "runs/briefs/evaluation").iterdir()
    (front,) = json.loads((folder / "values.json").read_text())["fronts"]
    assert min(front["range"].values()) >= 0.5, front
    assert min(front["kendall_tau"].values()) >= 0.65, front
    # Each page supposes the main job, and none another page.
    with futures.ThreadPoolExecutor(max_workers=3) as pool:
        ran = list(pool.map(lambda page: execute_page(page, main_job, workplace), PAGES))
    assert sum(ran) >= 20


def execute_page(page, main_job, folder):
    """Runs a page's commands but the main job; returns how many these are."""
    ran = [c for c in commands([page]) if c not in BY_CI and c != main_job]
    for command in ran:
        shorter = [flags for part, flags in SHORTER.items() if part in command]
        fast = any(part in command for part in COMPILED_FAST)
        execute(" ".join([command, *shorter]), folder, os.environ if fast else smoke.AS_USERS)
    for program in programs(page):
        execute(f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}", folder)
    return len(ran)


def execute(command, folder, environment=smoke.AS_USERS):
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, check=False,
        env={**environment, "PYTHONPATH": str(folder)}, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
