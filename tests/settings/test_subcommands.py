"""The console script: every file at the top of the package is a command of it."""

import os
import pathlib
import subprocess
import sys

import pytest
import smoke

from clp_jax.settings import subcommands

COMMANDS = [
    path.stem for path in sorted(smoke.ROOT.glob("clp_jax/*.py")) if path.stem != "__init__"
]


def test_every_command_has_its_line(capsys):
    subcommands.main([])
    nothing = capsys.readouterr().out
    subcommands.main(["help"])
    assert capsys.readouterr().out == nothing
    subcommands.main(["--help"])
    text = capsys.readouterr().out
    assert text == nothing
    listed = dict(line.split(None, 1) for line in text.splitlines() if line.startswith("  "))
    assert [name for name in listed if not name.startswith("--")] == COMMANDS
    assert listed["train"] == (
        "Train a conditional language policy (CLP): one model, steered at inference by (α, w)."
    )


def test_version(capsys):
    subcommands.main(["--version"])
    assert capsys.readouterr().out == "clp-jax 0.1.0\n"


def test_an_unknown_command(capsys):
    with pytest.raises(SystemExit) as ended:
        subcommands.main(["trian", "--gin_file=gin/clp_attn.gin"])
    assert ended.value.code == 2
    message = "clp-jax: error: unknown command 'trian'; nearest: train, "
    assert capsys.readouterr().err.startswith(message)


def test_a_command_runs_with_what_stands_behind_it(capsys, tmp_path):
    subcommands.main(["train", *smoke.flags(tmp_path / "run"), "--dry_run"])
    assert "value/token_embedder/embedding [256, 16] float32" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("called", "usage"), [("/usr/bin/clp-jax", "clp-jax"), ("pytest", "python -m clp_jax.")]
)
def test_help_calls_a_command_as_the_user_did(monkeypatch, capsys, called, usage):
    monkeypatch.setattr(sys, "argv", [called])
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            subcommands.main([name, "--help"])
        assert ended.value.code == 0
        separator = " " if usage == "clp-jax" else ""
        text = capsys.readouterr().out
        assert text.startswith(f"usage: {usage}{separator}{name} ")
        assert "--verbose" in text


def test_help_needs_no_heavy_import():
    program = (
        "import sys\nfrom clp_jax.settings import subcommands\nsubcommands.main(['--help'])\n"
        "for name in subcommands.names():\n"
        "    try: subcommands.main([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "print([m for m in ('jax', 'numpy', 'tensorflow', 'seqio') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_rewards_of_ones_own_are_found_where_one_is(tmp_path, monkeypatch, capsys):
    (tmp_path / "rewards_here.py").write_text(
        "def brevity(prompts, completions):\n    return [-float(len(c)) for c in completions]\n"
    )
    (tmp_path / "a.jsonl").write_text('{"document": "A goose.", "summary": "Geese"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    flags = ["--rewards=rewards_here.brevity", "--range=brevity=-30,0", "--input=a.jsonl"]
    subcommands.main(["score", *flags])
    assert '"brevity": -5.0' in capsys.readouterr().out


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(the wheel alone in a folder of its own, the wheel, that of the source distribution)."""
    tree, folder = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("installed")
    for name in ("clp_jax", "gin", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", smoke.ROOT / name, tree], check=True)
    for flags in (["--wheel", "--outdir=direct"], ["--outdir=by_sdist"]):
        command = [sys.executable, "-m", "build", *flags]
        subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (direct,), (by_sdist,) = tree.glob("direct/*.whl"), tree.glob("by_sdist/*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={folder}"]
    subprocess.run([*install, direct], check=True)
    return folder, direct, by_sdist


@pytest.mark.slow
def test_the_source_distribution_builds_the_same_wheel(installed):
    import zipfile

    def contents(path):
        with zipfile.ZipFile(path) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}

    _, direct, by_sdist = installed
    assert contents(direct) == contents(by_sdist)
    gin_files = {str(path.relative_to(smoke.ROOT)) for path in smoke.ROOT.glob("gin/**/*.gin")}
    assert {f"clp_jax/{name}" for name in gin_files} <= set(contents(direct))


@pytest.mark.slow
def test_the_wheel_alone_works_in_any_directory(installed, tmp_path):
    folder, *_ = installed

    def run(*arguments):
        done = subprocess.run(
            [folder / "bin" / "clp-jax", *arguments], cwd=tmp_path, text=True, check=False,
            capture_output=True, env={**os.environ, "PYTHONPATH": str(folder)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    # A file of the user's own wins over the shipped one of its name.
    own = "TRAIN_STEPS = 2\nEVAL_GRID_POINTS = 2\n"
    pathlib.Path(tmp_path, "smoke.gin").write_text((smoke.ROOT / "gin/smoke.gin").read_text() + own)
    run("train", *[f"--gin_file={name}.gin" for name in ("clp_attn", "briefs", "smoke")])
    model_dir = "--model_dir=runs/smoke"
    assert (tmp_path / "runs/smoke/evaluation/2/values.json").is_file()
    run("evaluate", model_dir, "--num_examples=8", "--output=evaluated")
    assert (tmp_path / "evaluated/values.json").is_file()
    (tmp_path / "a.jsonl").write_text('{"document": "A goose sings in Lyon."}\n')
    done = run("generate", model_dir, "--reward_weights=1,0", "--input=a.jsonl")
    assert '"completion": ' in done.stdout
    run("export", model_dir, "--reward_weights=1,0", "--output=exported")
    assert (tmp_path / "exported/model.safetensors").is_file()
    program = "import clp_jax; print(clp_jax.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, text=True, check=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    ).stdout  # fmt: skip
    assert where.startswith(str(folder))
