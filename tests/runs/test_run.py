"""The commands at smoke scale: train, evaluate, generate, resume."""

import io
import json
import os
import sys

import jax
import numpy as np
import pytest
import smoke
from smoke import lines

from clp_jax import evaluate, generate, sft, train
from clp_jax.models import checkpoints
from clp_jax.runs import restoring, states, supervised, training
from clp_jax.settings import command_line
from clp_jax.settings.config import RestoreCheckpointConfig


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """MODEL_DIR of a finished smoke run."""
    model_dir = tmp_path_factory.mktemp("trained")
    train.main(smoke.flags(model_dir))
    return model_dir


def test_a_run_leaves_logs_checkpoints_and_an_evaluation(trained):
    metrics = lines(trained / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [2, 3, 4, 6, 6]  # stats, saves, and the evaluation
    names = {
        "rewards/entailment", "rewards/rouge", "rewards_raw/rouge", "objective/kl",
        "objective/scalarized", "objective/regularized", "rollout/length", "loss/policy",
        "loss/value", "timing/steps_per_second", "data/truncated_prompts",
    }  # fmt: skip
    assert names <= metrics[0].keys()
    assert {"eval/range/rouge", "eval/kendall_tau/entailment"} <= metrics[-1].keys()
    assert all(np.isfinite(list(row.values())).all() for row in metrics)
    for name in ("config.gin", "operative_config.gin", "evaluation/6/front.png"):
        assert (trained / name).stat().st_size > 100
    assert list(trained.glob("events.out.tfevents.*"))
    assert [p.name for p in (trained / "checkpoints").iterdir()] == ["6"]  # keep = 1
    assert lines(trained / "sft/metrics.jsonl")[-1]["step"] == 8


def test_samples_show_weights_and_rewards(trained):
    row = lines(trained / "samples.jsonl")[-1]
    assert row["reward_weights"].keys() == row["rewards"].keys() == {"entailment", "rouge"}
    assert sum(row["reward_weights"].values()) == pytest.approx(1, abs=1e-3)
    assert row["kl_weight"] == 0.01
    assert row["prompt"].startswith("summarize: ")
    assert isinstance(row["completion"], str)


def test_tensorboard_has_the_scalars(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained))
    events.Reload()
    tags = events.Tags()
    assert "rewards/rouge" in tags["tensors"]
    assert any("samples" in tag for tag in tags["tensors"])


def test_a_finished_run_has_nothing_left_to_do(trained, capfd):
    train.main(smoke.flags(trained))
    assert "resuming from step 6" in capfd.readouterr().err
    assert [row["step"] for row in lines(trained / "metrics.jsonl")] == [2, 3, 4, 6, 6]


def test_evaluate(trained, tmp_path, capfd):
    flags = [
        f"--model_dir={trained}",
        f"--output={tmp_path}",
        "--grid_points=2",
        "--num_examples=9",
    ]
    evaluate.main([*flags, "--kl_weight=0.01", "--kl_weight=1.0"])
    result = json.loads((tmp_path / "values.json").read_text())
    assert result["num_prompts"] == 9
    assert result["kl_weights"] == [0.01, 0.01, 1.0, 1.0]
    assert result["reward_weights"] == [[1, 0], [0, 1]] * 2
    for i, alpha in enumerate(result["kl_weights"]):
        for reward, value in zip(result["normalised"][i], result["values"][i], strict=True):
            assert value == pytest.approx((1 - alpha) * reward - alpha * result["kl"][i])
    assert (tmp_path / "front.png").stat().st_size > 1000
    assert "| w entailment | w rouge |" in capfd.readouterr().err


def test_evaluation_does_not_depend_on_the_batch_size(trained, tmp_path):
    values = {}
    for size in (4, 5):
        run = command_line.saved_run(str(trained))
        run = command_line.with_evaluation(run, 2, 9)
        import dataclasses

        run = dataclasses.replace(
            run,
            infer_eval_dataset_cfg=dataclasses.replace(run.infer_eval_dataset_cfg, batch_size=size),
        )
        from clp_jax.evaluation import sweep

        policy, _ = restoring.restore_policy(run)
        seen = []
        original = policy.generate
        policy.generate = lambda w, p, k, o=original, s=seen: s.append(np.array(p)) or o(w, p, k)
        values[size] = sweep.sweep(policy, run)
        assert {p.shape[0] for p in seen} == {size}  # one compiled shape, the last batch included
    assert values[4].num_prompts == values[5].num_prompts == 9


def documents(path, n=3):
    rows = [{"document": f"The mayor built a boat in Paris {i}.", "id": i} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_generate_to_standard_output(trained, tmp_path, capfd):
    rows = documents(tmp_path / "in.jsonl")
    flags = [f"--model_dir={trained}", "--reward_weights=0.8,0.2", "--batch_size=2"]
    generate.main([*flags, f"--input={tmp_path / 'in.jsonl'}"])
    out = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["document"] for row in out] == [row["document"] for row in rows]
    assert out[0]["reward_weights"] == {"entailment": 0.8, "rouge": 0.2}
    assert out[0]["kl_weight"] == 0.01
    assert all(isinstance(row["completion"], str) for row in out)


def test_generate_from_standard_input_to_a_file(trained, tmp_path, monkeypatch):
    documents(tmp_path / "in.jsonl")
    monkeypatch.setattr(sys, "stdin", io.StringIO((tmp_path / "in.jsonl").read_text()))
    flags = [f"--model_dir={trained}", "--reward_weights=0,1", "--kl_weight=0.5"]
    generate.main([*flags, "--input=-", f"--output={tmp_path / 'out.jsonl'}"])
    first = lines(tmp_path / "out.jsonl")
    generate.main(
        [*flags, f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"]
    )
    assert lines(tmp_path / "out.jsonl") == first  # greedy: the same again
    assert len(first) == 3


def test_generate_counts_long_prompts(trained, tmp_path, capfd):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"document": "boat " * 200}) + "\n")
    generate.main([f"--model_dir={trained}", "--reward_weights=1,0", f"--input={path}"])
    assert "1 of 1 prompts are longer than 48 tokens: truncated" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reward_weights=0.5,0.3,0.2"], "has 3 weights, but there are 2 rewards"),
        (["--reward_weights=1.5,-0.5"], "negative weight"),
        (["--reward_weights=0.9,0.9"], "sums to 1.8"),
        (["--reward_weights=nan,1"], "not finite"),
        (["--reward_weights=a,b"], "is not a list of numbers"),
        (["--reward_weights=1,0", "--kl_weight=0.001"], "--kl_weight=0.001 is outside [0.01, 1]"),
        (["--reward_weights=1,0", "--step=5"], "no checkpoint of step 5"),
        (["--reward_weights=1,0", "--input=/nowhere"], "/nowhere is not a file"),
        (["--reward_weights=1,0", "--temperature=-1"], "temperature"),
        (["--reward_weights=1,0", "--model_dir=/nowhere"], "--model_dir=/nowhere holds no run"),
    ],
)
def test_generate_refuses(trained, tmp_path, capfd, flags, message):
    documents(tmp_path / "in.jsonl")
    with pytest.raises(SystemExit) as exit_info:
        generate.main([f"--model_dir={trained}", f"--input={tmp_path / 'in.jsonl'}", *flags])
    error = capfd.readouterr().err
    assert exit_info.value.code == 2
    assert message in error
    assert "Traceback" not in error


def test_generate_names_the_bad_line(trained, tmp_path, capfd):
    (tmp_path / "in.jsonl").write_text('{"document": "a"}\n{"text": "b"}\n')
    with pytest.raises(SystemExit):
        generate.main([
            f"--model_dir={trained}", "--reward_weights=1,0", f"--input={tmp_path / 'in.jsonl'}"
        ])  # fmt: skip
    assert "in.jsonl:2: unknown field 'document'; nearest: text" in capfd.readouterr().err


def test_evaluate_refuses_alpha_outside_its_range(trained, capfd):
    with pytest.raises(SystemExit):
        evaluate.main([f"--model_dir={trained}", "--kl_weight=2"])
    assert "--kl_weight=2 is outside [0.01, 1]" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("SUBSET=@subset.full()", "another configuration"),
        ("SUBSET=@subset.matching()", "regex"),
        ("MIXTURE_OR_TASK_NAME='brief'", "unknown task 'brief'"),
        ("INITIAL_CHECKPOINT_PATH='/nowhere'", "another configuration"),
    ],
)
def test_train_refuses(trained, capfd, binding, message):
    with pytest.raises(SystemExit) as exit_info:
        train.main(smoke.flags(trained, binding))
    assert exit_info.value.code == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (["SUBSET=@subset.matching()", "subset.matching.regex='attenton'"], "matches no parameter"),
        (["INITIAL_CHECKPOINT_PATH='/nowhere'"], "no checkpoint at /nowhere"),
        (["SFT_STEPS=0"], "set INITIAL_CHECKPOINT_PATH, or SFT_STEPS"),
        (["REWARDS=('rouge', 'test_run.needs_titles')"], "needs a column .*'title'.*task 'briefs'"),
        (["REWARDS=('rouge', 'test_run.one_short')"], "'one_short' returned 1 scores for 2"),
        (["REWARDS=('rouge', 'test_run.says_none')"], "'says_none'.*None"),
        (["REWARDS=('rouge', 'test_run.says_nan')"], "'says_nan'.*nan"),
        (["REWARDS=('rouge', 'test_run.raises')"], "my own bug.*'raises' raised KeyError"),
        (["tasks.briefs.train_size=7"], "has 7 examples, fewer than one batch of 8"),
    ],
)
def test_train_refuses_before_it_writes(tmp_path, capfd, bindings, message):
    import re

    with pytest.raises(SystemExit):
        train.main(smoke.flags(tmp_path / "new", *bindings))
    assert re.search(message, capfd.readouterr().err, re.DOTALL)
    assert not (tmp_path / "new").exists()


def one_short(prompts, completions):
    return [0.0] * (len(completions) - 1)


def says_none(prompts, completions):
    return [None] * len(completions)


def says_nan(prompts, completions):
    return [float("nan")] * len(completions)


def raises(prompts, completions):
    raise KeyError("my own bug")


def needs_titles(prompts, completions, title):
    return [0.0] * len(completions)


def test_checkpoint_of_another_model_size(trained, tmp_path, capfd):
    flags = smoke.flags(
        tmp_path / "new", f"INITIAL_CHECKPOINT_PATH={str(trained)!r}", "t5.T5Config.mlp_dim=48"
    )
    with pytest.raises(SystemExit):
        train.main(flags)
    assert "a checkpoint of another model" in capfd.readouterr().err


@pytest.mark.parametrize(
    "binding", ["REWARDS=('entailment', 'quality', 'rouge')", "SUBSET=@subset.full()",
                "t5.T5Config.emb_dim=24"]
)  # fmt: skip
def test_checkpoint_of_another_m_or_s_or_size(trained, binding):
    run = smoke.configured(trained, binding)
    message = r"another model: .*params/.*\(m\), SUBSET and the model must be"
    with pytest.raises(ValueError, match=message):
        training.check_checkpoint(run)


def test_initial_checkpoint_is_the_reference(trained, tmp_path):
    run = smoke.configured(tmp_path / "new", f"INITIAL_CHECKPOINT_PATH={str(trained)!r}")
    reference = training.load_reference(run)
    expected = checkpoints.load_params(trained, states.reference_shapes(run))
    jax.tree.map(np.testing.assert_array_equal, reference, expected)
    # From now on the run reads its own copy.
    import dataclasses

    gone = dataclasses.replace(
        run,
        checkpoint_cfg=dataclasses.replace(
            run.checkpoint_cfg, restore=RestoreCheckpointConfig("/nowhere")
        ),
    )
    jax.tree.map(np.testing.assert_array_equal, training.load_reference(gone), expected)


def test_dry_run_prints_and_writes_nothing(tmp_path, capfd):
    train.main([*smoke.flags(tmp_path / "new"), "--dry_run"])
    out, err = capfd.readouterr()
    for text in (
        "m|S| + |S^C| = 2 x",
        "entailment: host, (-2.25, 0)",
        "Dirichlet",
        "6, checkpoint",
    ):
        assert text in err
    assert "policy/conditioned/encoder/layers_0/attention/query/kernel [2, 16, 16] float32" in out
    assert not (tmp_path / "new").exists()


def test_prompting_and_groups_of_weightings(tmp_path):
    files = ["gin/prompting.gin", *smoke.FILES[1:]]
    bindings = ["WEIGHTINGS_PER_BATCH=4", "EVAL_EXAMPLES=4", "TRAIN_STEPS=2", "SFT_STEPS=1"]
    train.main(smoke.flags(tmp_path, *bindings, files=files))
    samples = lines(tmp_path / "samples.jsonl")
    weights = {row["reward_weights"]["rouge"] for row in samples if row["step"] == 2}
    assert len(weights) == 4  # one sample of each group
    generate_input = tmp_path / "in.jsonl"
    documents(generate_input)
    generate.main([
        f"--model_dir={tmp_path}", "--reward_weights=0.37,0.63", f"--input={generate_input}",
        f"--output={tmp_path / 'out.jsonl'}",
    ])  # fmt: skip
    assert len(lines(tmp_path / "out.jsonl")) == 3


def test_sft_makes_a_reference_that_train_takes(tmp_path, capfd):
    sft.main(smoke.flags(tmp_path, "SFT_STEPS=2"))
    run = smoke.configured(tmp_path, "SFT_STEPS=2")
    reference = training.load_reference(run)
    sft.main(smoke.flags(tmp_path, "SFT_STEPS=2"))
    assert "has its reference already" in capfd.readouterr().err
    for command in (sft, train):  # neither takes another run's directory
        with pytest.raises(SystemExit):
            command.main(smoke.flags(tmp_path, "SFT_STEPS=3"))
        assert "SFT_STEPS: 2 -> 3" in capfd.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, training.load_reference(run), reference)


def test_sft_begins_with_the_initial_checkpoint(trained, tmp_path, capfd):
    bindings = [f"INITIAL_CHECKPOINT_PATH={str(trained)!r}", "SFT_STEPS=1"]
    run = smoke.configured(tmp_path / "on", *bindings)
    step = supervised.SupervisedStep(run, states.placement(run))
    expected = checkpoints.load_params(trained, states.reference_shapes(run))
    first = step.first_state()
    jax.tree.map(np.testing.assert_array_equal, first["params"], expected)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), (first, step.state_shapes()))
    assert shapes[0] == shapes[1]
    losses = []
    for name, some in (("on", bindings), ("new", bindings[1:])):
        sft.main(smoke.flags(tmp_path / name, *some))
        losses.append(lines(tmp_path / name / "sft/metrics.jsonl")[0]["loss/cross_entropy"])
    assert losses[0] < losses[1] - 0.2
    assert capfd.readouterr().err.count("from random parameters") == 1
    # Training takes a checkpoint as it is, and says so.
    again = smoke.configured(tmp_path / "as_it_is", *bindings)
    jax.tree.map(np.testing.assert_array_equal, training.load_reference(again), expected)
    assert "SFT_STEPS=1 are not trained" in capfd.readouterr().err


def test_help_helps():
    for module in ("train", "sft", "evaluate", "generate", "export"):
        done = smoke.command(f"clp_jax.{module}", "--help", env={**os.environ, "COLUMNS": "200"})
        assert done.returncode == 0, done.stderr
        assert f"python -m clp_jax.{module} --" in done.stdout
