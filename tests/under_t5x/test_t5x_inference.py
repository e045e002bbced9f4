"""t5x.infer and t5x.eval with runs of ours, and the commands of the page."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import smoke
from smoke import lines
from t5x_runs import (  # noqa: F401 - fixtures
    STEPS,
    ours,
    reference,
    run_t5x,
    theirs,
    with_t5x,
)

from clp_jax.runs import restoring

pytestmark = with_t5x


def test_infer_gives_the_completions_of_generate(tmp_path, theirs):
    from clp_jax import generate

    completions = {}
    for weights in ("1,0", "0,1"):
        output = tmp_path / weights
        arguments = [
            f"--gin_file={theirs}/config.gin", "--gin_file=gin/t5x_infer.gin",
            f"--gin.REWARD_WEIGHTS=({weights})", f"--gin.INFER_OUTPUT_DIR='{output}'",
        ]  # fmt: skip
        run_t5x("infer", arguments)
        (file,) = output.glob("*.jsonl-00000-of-00001")
        rows = lines(file)
        completions[weights] = [row["prediction"] for row in rows]
        documents = tmp_path / "documents.jsonl"
        run = smoke.configured(theirs, *STEPS)
        from clp_jax.data import tasks

        columns = tasks.columns(run.infer_eval_dataset_cfg.mixture_or_task_name, "validation")
        documents.write_text(
            "".join(json.dumps({"document": r["document"]}) + "\n" for r in columns)
        )
        expected = tmp_path / "expected.jsonl"
        generate.main([
            f"--model_dir={theirs}", f"--reward_weights={weights}", f"--input={documents}",
            f"--output={expected}",
        ])  # fmt: skip
        assert completions[weights] == [row["completion"] for row in lines(expected)]
        assert len(completions[weights]) == 20
    assert completions["1,0"] != completions["0,1"]


def test_eval_gives_the_rewards_of_evaluate(tmp_path, theirs):
    output = run_t5x(
        "eval",
        [
            f"--gin_file={theirs}/config.gin", "--gin_file=gin/t5x_eval.gin",
            "--gin.REWARD_WEIGHTS=(1, 0)", f"--gin.EVAL_OUTPUT_DIR='{tmp_path}'",
            "--gin.EVAL_TEMPERATURE=0.0",
        ],
    )  # fmt: skip
    (values,) = tmp_path.rglob("values.json")
    assert list(values.parent.glob("events*")), output
    found = json.loads(values.read_text())
    assert found["reward_weights"] == [[1.0, 0.0]]
    run = smoke.configured(theirs, *STEPS)
    policy, _ = restoring.restore_policy(run, temperature=0.0)
    from clp_jax.evaluation import sweep

    expected = sweep.sweep(policy, run, [(0.01, np.array([1.0, 0.0]))], None, "")
    assert found["normalised"] == pytest.approx(expected.prompt_normalised.mean(1), abs=1e-6)
    assert found["kl"] == pytest.approx(expected.prompt_kl.mean(1), abs=1e-4)


def test_every_command_of_the_page_runs(tmp_path):
    text = (smoke.ROOT / "docs/t5x.md").read_text()
    commands = [
        line
        for block in re.findall(r"```bash t5x\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(commands) == 4
    (tmp_path / "gin").symlink_to(smoke.ROOT / "gin")
    for command in commands:
        command = command.replace("python", sys.executable, 1)
        if "t5x.train" in command:
            command += " --gin_file=gin/smoke.gin"
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
    (values,) = (tmp_path / "runs/t5x_evaluated").rglob("values.json")
    assert json.loads(values.read_text())["kl_weights"] == pytest.approx([0.1])
