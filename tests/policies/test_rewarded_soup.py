"""Rewarded Soups: what is trained, and what is mixed."""

import json

import jax
import numpy as np
import pytest
import smoke

from clp_jax import evaluate, export, generate, train
from clp_jax.algorithm import conditioning
from clp_jax.algorithm.weighting import FixedRewardWeights, Weighting
from clp_jax.policies import rewarded_soup
from clp_jax.policies.policy import CLPPolicy
from clp_jax.runs import restoring, training

SOUP = ["gin/rewarded_soup.gin", "gin/briefs.gin", "gin/smoke.gin"]
SINGLE = ["gin/single_objective.gin", "gin/briefs.gin", "gin/smoke.gin"]


def same(a, b):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(a) == len(b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(a, b, strict=True)
    )


@pytest.fixture(scope="module")
def soup_dir(tmp_path_factory):
    """A soup at smoke scale: 7 steps, 4 for the first expert and 3 for the second."""
    folder = tmp_path_factory.mktemp("soup")
    train.main(smoke.flags(folder, "TRAIN_STEPS=7", files=SOUP))
    return folder


def test_the_budget_is_divided(tmp_path):
    names = ("entailment", "rouge", "quality")
    run = smoke.configured(tmp_path, f"REWARDS={names}", "TRAIN_STEPS=8", files=SOUP)
    experts = rewarded_soup.expert_runs(run)
    assert [e.total_steps for e in experts] == [3, 3, 2]
    for i, (expert, name) in enumerate(zip(experts, names, strict=True)):
        assert expert.model.reward_weights_sampler == FixedRewardWeights(tuple(np.eye(3)[i]))
        assert expert.model_dir == str(tmp_path / "experts" / name)
        assert expert.random_seed == run.random_seed
    with pytest.raises(ValueError, match="TRAIN_STEPS=1 cannot be divided over 2 experts"):
        rewarded_soup.expert_runs(smoke.configured(tmp_path, "TRAIN_STEPS=1", files=SOUP))


@pytest.mark.slow
def test_an_expert_is_a_run_of_its_reward_alone(soup_dir, tmp_path):
    run = smoke.configured(soup_dir, "TRAIN_STEPS=7", files=SOUP)
    params, reference, steps = restoring.restore_params(run)
    assert steps == 7
    corners = ("(1.0, 0.0)", "(0.0, 1.0)")
    for i, (weights, done) in enumerate(zip(corners, (4, 3), strict=True)):
        bindings = (
            f"REWARD_WEIGHTS={weights}", f"TRAIN_STEPS={done}", "SFT_STEPS=0",
            f"INITIAL_CHECKPOINT_PATH={str(soup_dir)!r}",
        )  # fmt: skip
        folder = tmp_path / str(i)
        train.main(smoke.flags(folder, *bindings, files=SINGLE))
        alone = smoke.configured(folder, *bindings, files=SINGLE)
        state, other_reference = restoring.restore(alone)
        assert same(reference, other_reference)
        assert same(conditioning.expert(params, i), conditioning.expert(state.params, 0))


@pytest.mark.slow
def test_parameters_are_mixed_linearly(soup_dir):
    run = smoke.configured(soup_dir, "TRAIN_STEPS=7", files=SOUP)
    policy, _ = restoring.restore_policy(run)
    assert isinstance(policy, CLPPolicy)
    params, reference, _ = restoring.restore_params(run)
    experts = [conditioning.expert(params, i) for i in range(2)]
    mixed = policy.language_model(Weighting.of(0.01, [0.25, 0.75]))
    expected = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, *experts)
    for got, want in zip(*map(jax.tree.leaves, (mixed, expected)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert not same(experts[0], experts[1])
    assert not same(experts[0], reference)


@pytest.mark.slow
def test_a_soup_is_evaluated_at_its_last_step(soup_dir):
    values = json.loads((soup_dir / "evaluation/7/values.json").read_text())
    assert values["reward_weights"] == [[1, 0], [0.5, 0.5], [0, 1]]
    assert not list((soup_dir / "experts").glob("*/evaluation"))


@pytest.mark.slow
def test_a_soup_that_was_stopped_goes_on(soup_dir, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    whole = training._train

    def killed(run, *arguments, **options):
        if run.model_dir.endswith("rouge"):
            raise Killed
        whole(run, *arguments, **options)

    flags = smoke.flags(tmp_path, "TRAIN_STEPS=7", files=SOUP)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_train", killed)
        with pytest.raises(Killed):
            train.main(flags)
    train.main(flags)
    runs = [smoke.configured(d, "TRAIN_STEPS=7", files=SOUP) for d in (soup_dir, tmp_path)]
    states = [restoring.restore_params(run)[0] for run in runs]
    assert same(*states)


@pytest.mark.slow
def test_every_command_takes_a_soup(soup_dir, tmp_path, capfd):
    evaluate.main([f"--model_dir={soup_dir}", "--mixing=logits", "--num_examples=4"])
    logits = json.loads((soup_dir / "evaluation/7-logits-custom/values.json").read_text())
    assert len(logits["values"]) == 3
    (tmp_path / "in.jsonl").write_text('{"document": "The mayor built a boat in Paris."}\n')
    texts = []
    for mixing in ("parameters", "logits"):
        capfd.readouterr()
        generate.main(
            [f"--model_dir={soup_dir}", "--reward_weights=1,0", f"--mixing={mixing}",
             f"--input={tmp_path / 'in.jsonl'}"]
        )  # fmt: skip
        texts.append(json.loads(capfd.readouterr().out)["completion"])
    assert texts[0] == texts[1]  # at a corner one expert speaks, whatever is mixed
    output = tmp_path / "exported"
    export.main([f"--model_dir={soup_dir}", "--reward_weights=0.5,0.5", f"--output={output}"])
    assert (output / "model.safetensors").is_file()
    with pytest.raises(SystemExit):
        export.main([f"--model_dir={soup_dir}", "--part=value", f"--output={tmp_path / 'v'}"])
    assert "a soup has no value network" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main([f"--model_dir={soup_dir}", "--step=3"])
    assert "its experts' last steps, 7 in all" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("SUBSET=@subset.attention()", "SUBSET must be @subset.full()"),
        ("CONDITION_PROMPT=True", "CONDITION_PROMPT must be False"),
        ("KL_WEIGHT_SAMPLER=@weighting.InverseCDFKLWeight()", "KL_WEIGHT_SAMPLER must be"),
        ("REWARDS=('rouge',)", "REWARDS must be two or more"),
        # (0.1 - 0.01) / (0.1 * 0.99) = 0.909: the corner of the soup would be mostly reference.
        ("weighting.FixedKLWeight.kl_weight=0.1", "f_mix is 0.909091 at that α"),
        ("KL_MIX=@weighting.LinearKLMix()", "f_mix is 0.01 at that α"),
    ],
)
def test_what_a_soup_cannot_be(tmp_path, binding, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        smoke.configured(tmp_path, binding, files=SOUP)


def test_logits_of_a_prompted_policy_are_not_mixed(tmp_path):
    run = smoke.configured(tmp_path, "CONDITION_PROMPT=True")
    with pytest.raises(ValueError, match="CONDITION_PROMPT=True"):
        restoring.policy_of(run, None, None, mixing="logits")
    with pytest.raises(ValueError, match="unknown mixing 'logit'.*nearest: logits"):
        smoke.configured(tmp_path, "EVAL_MIXING='logit'")
