"""The files of gin/experiments and gin/ablations, at small scale: each does what it says."""

import dataclasses
import pathlib
import re

import pytest
import smoke

from clp_jax.algorithm import subset, weighting

EXPERIMENTS = sorted((smoke.ROOT / "gin/experiments").glob("*.gin"))
ABLATIONS = sorted((smoke.ROOT / "gin/ablations").glob("*.gin"))


def configured(tmp_path, *files, method="gin/clp_attn.gin", bindings=()):
    files = [method, *files, "gin/briefs.gin", "gin/smoke.gin"]
    return smoke.configured(tmp_path, *bindings, files=files)


def test_there_is_a_file_for_each_experiment_of_the_paper():
    assert [path.stem for path in EXPERIMENTS] == [
        "multi_kl", "nli_rouge", "nli_rouge_mixture", "nli_tldr", "three_rewards",
    ]  # fmt: skip
    assert [path.stem for path in ABLATIONS] == [
        "condition_prompt", "dirichlet_0.3", "dirichlet_0.5", "dirichlet_1.0", "first_layers",
        "kl_weight_0.1", "linear_kl_mix", "model_large", "model_mini", "model_small",
        "training_iterations",
    ]  # fmt: skip


@pytest.mark.parametrize("path", [*EXPERIMENTS, *ABLATIONS], ids=lambda path: path.stem)
def test_headers_name_the_section_and_a_command_with_files_that_exist(path):
    header = path.read_text().split("\n\nfrom __gin__")[0]
    assert re.search(r"\((Sec\.|App\.)|Sec\. ", header), header
    command = re.search(r"python -m clp_jax.train (.*)", header)[1]
    files = re.findall(r"--gin_file=(\S+)", command)
    assert str(path.relative_to(smoke.ROOT)) in files
    assert all((smoke.ROOT / file).is_file() for file in files)


@pytest.mark.parametrize(
    ("name", "rewards"),
    [
        ("nli_rouge", ("entailment", "rouge")),
        ("nli_tldr", ("entailment", "quality")),
        ("three_rewards", ("entailment", "rouge", "quality")),
    ],
)
def test_rewards_of_an_experiment(tmp_path, name, rewards):
    for method in ("clp_full", "clp_logit", "prompting", "rewarded_soup"):
        run = configured(tmp_path, f"gin/experiments/{name}.gin", method=f"gin/{method}.gin")
        assert run.model.rewards.names == rewards
        assert run.model.kl_weight_sampler == weighting.FixedKLWeight(0.01)
        assert run.model.rewarded_soup == (method == "rewarded_soup")


def test_one_reward_over_kl_weights(tmp_path):
    run = configured(tmp_path, "gin/experiments/multi_kl.gin")
    (reward,) = run.model.rewards.rewards
    assert reward.name == "nli_rouge"
    assert reward.reward.weights == {"entailment": 0.9, "rouge": 0.1}
    assert run.model.kl_weight_sampler == weighting.InverseCDFKLWeight(run.model.kl_mix)
    dera = configured(tmp_path, "gin/experiments/nli_rouge_mixture.gin", method="gin/dera.gin")
    assert dera.model.rewards.rewards[0].reward.weights == reward.reward.weights
    assert dera.evaluation.mixing == "logits"
    assert dera.model.subset == subset.none()
    assert dera.model.kl_weight_sampler == weighting.FixedKLWeight(0.01)


@pytest.mark.parametrize(
    ("name", "changed", "value"),
    [
        ("dirichlet_0.3", "reward_weights_sampler", weighting.DirichletRewardWeights(0.3, 2)),
        ("dirichlet_0.5", "reward_weights_sampler", weighting.DirichletRewardWeights(0.5, 2)),
        ("dirichlet_1.0", None, None),
        ("condition_prompt", "condition_prompt", True),
        ("first_layers", "subset", subset.attention(6)),
    ],
)
def test_an_ablation_changes_one_thing(tmp_path, name, changed, value):
    plain = configured(tmp_path)
    ablated = configured(tmp_path, f"gin/ablations/{name}.gin")
    # Objects that gin makes anew each time compare by identity.
    same = {"rewards", "vocabulary", "policy_optimizer", "value_optimizer"}
    for field in dataclasses.fields(plain.model):
        before, after = (getattr(run.model, field.name) for run in (plain, ablated))
        if field.name == changed:
            assert after == value != before
        elif field.name not in same:
            assert after == before, field.name
    assert ablated.total_steps == plain.total_steps


def test_ablations_of_the_kl(tmp_path):
    run = configured(tmp_path, "gin/ablations/kl_weight_0.1.gin")
    assert run.model.kl_weight_sampler == weighting.FixedKLWeight(0.1)
    assert run.model.kl_mix == weighting.SoftmaxKLMix(0.1)
    files = ("gin/experiments/multi_kl.gin", "gin/ablations/linear_kl_mix.gin")
    run = configured(tmp_path, *files)
    assert run.model.kl_mix == weighting.LinearKLMix(0.01)
    assert run.model.kl_weight_sampler == weighting.InverseCDFKLWeight(run.model.kl_mix)


@pytest.mark.parametrize(
    ("name", "width", "layers"),
    [("model_small", 512, 8), ("model_large", 1024, 24), ("model_mini", 32, 2)],
)
def test_ablations_of_the_size(tmp_path, name, width, layers):
    # Behind the data, as the paper's are behind gin/xsum.gin.
    files = ["gin/clp_attn.gin", "gin/briefs.gin", f"gin/ablations/{name}.gin"]
    run = smoke.configured(tmp_path, "t5.T5Config.vocab_size=32128", files=files)
    config = run.model.module.config
    assert (config.emb_dim, config.num_encoder_layers) == (width, layers)
    assert run.model.subset == subset.attention(12 if name == "model_large" else None)


def test_more_iterations_keep_what_was_evaluated(tmp_path):
    files = ["gin/clp_full.gin", "gin/briefs.gin", "gin/ablations/training_iterations.gin"]
    run = smoke.configured(tmp_path, files=files)
    assert (run.total_steps, run.eval_period) == (90_000, 10_000)
    assert run.checkpoint_cfg.save.keep is None


def test_the_reproduction_runs_the_files_that_are_there(tmp_path):
    from clp_jax.reproduction import runs

    found = runs.specs(runs.BRIEFS, pathlib.Path(tmp_path))
    assert len({spec.name for spec in found}) == len(found)
    assert {seed for spec in found for seed in spec.settings["RANDOM_SEED"]} == {"0", "1", "2"}
    used = {file for spec in found for file in spec.files}
    assert all((smoke.ROOT / file).is_file() for file in used)
