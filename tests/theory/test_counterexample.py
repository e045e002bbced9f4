import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from clp_jax import counterexample as command
from clp_jax.algorithm import losses
from clp_jax.theory import counterexample, counterexample_report, tabular


@pytest.fixture(scope="module")
def result():
    return counterexample.run()


def test_clp_finds_the_compromise_and_rewarded_soups_does_not(result):
    clp, soups = result.clp, result.rewarded_soups
    assert len(result.seeds) == len(clp.largest_gaps) == len(soups.compromise) == 10
    assert clp.largest_gaps.max() <= 0.005
    assert soups.largest_gaps.min() >= 0.15
    assert clp.compromise.min() >= 0.98
    assert soups.compromise.max() <= 0.15


def test_mixing_the_experts_logits_fails_too(result):
    assert result.logit_mixing.largest_gaps.min() >= 0.15
    assert result.logit_mixing.compromise.max() <= 0.15


def test_the_experts_are_good_at_their_own_rewards(result):
    # So it is the mixing that fails; with as many updates in all as CLP has.
    assert result.rewarded_soups.gaps[:, [0, -1]].max() <= 0.001
    np.testing.assert_allclose(
        result.logit_mixing.policies[:, [0, -1]], result.rewarded_soups.policies[:, [0, -1]]
    )


def test_the_bound_on_logit_mixing_says_how_much_is_lost(result):
    mixed = result.logit_mixing
    for policies, gaps in zip(mixed.policies, mixed.gaps, strict=True):
        experts, suboptimality = policies[[0, -1]], gaps[[0, -1]]
        bound = tabular.mixing_bound(experts, [0.5, 0.5], suboptimality)
        assert gaps[10] <= bound <= 2 * gaps[10]
        assert bound <= tabular.printed_bound(experts, 0.5, suboptimality.max())


def test_the_largest_gaps_of_mixing_are_in_the_middle(result):
    where = result.optimal.reward_weights[result.rewarded_soups.gaps.argmax(axis=1), 0]
    assert np.all(np.abs(where - 0.5) < 0.2)


def test_gaps_values_and_the_optimum_are_one_account(result):
    for method in (result.optimal, *result.methods):
        scalarized = np.sum(method.values * method.reward_weights, axis=-1)
        best = np.sum(result.optimal.values * method.reward_weights, axis=-1)
        np.testing.assert_allclose(method.gaps, best - scalarized, atol=1e-12)
        assert method.gaps.min() > -1e-12
    np.testing.assert_array_equal(result.optimal.reward_weights[[0, 10, 20]],
                                  [[1, 0], [0.5, 0.5], [0, 1]])  # fmt: skip
    # p(y3) at w = ½: softmax of (1 − α)/α (½, ½, ¾), from a uniform reference.
    expected = log_softmax(0.97 / 0.03 * np.array([0.5, 0.5, 0.75]))
    np.testing.assert_allclose(result.optimal.compromise, np.exp(expected[2]))


def test_optimal_experts_would_mix_to_the_optimum():
    # What fails is not the mixing of optimal logits: it is exact for every α > 0.
    best = tabular.optimal_policy(counterexample.REFERENCE, counterexample.REWARDS, 0.03)
    mixture = tabular.mix(best, [0.5, 0.5])
    expected = tabular.optimal_policy(
        counterexample.REFERENCE, counterexample.REWARDS.mean(axis=0), 0.03
    )
    np.testing.assert_allclose(mixture, expected, atol=1e-9)


def test_optimal_values_at_the_centre():
    # 0.732, 0.658 and 0.75: α log(⅓ (2 exp(½ (1 − α)/α) + exp(¾ (1 − α)/α))).
    mean = counterexample.REWARDS.mean(axis=0)
    for kl_weight, expected in ((0.01, 0.732), (0.05, 0.658), (0.0, 0.75)):
        best = tabular.optimal_value(counterexample.REFERENCE, mean, kl_weight)
        assert best == pytest.approx(expected, abs=5e-4)


def test_an_update_is_the_exact_policy_gradient_on_average(monkeypatch):
    # One expert, one update without the normalisation, averaged over many samples of it.
    monkeypatch.setattr(losses, "normalize", lambda advantages: (advantages, 1.0))
    rewards, kl_weight, count = counterexample.REWARDS[:1], 0.3, 4000
    keys = jax.random.split(jax.random.key(1), count)
    reference = jax.tree.map(lambda x: jnp.repeat(x, count, 0), counterexample._init(keys[:1]))
    alone = counterexample.FixedRewardWeights((1.0,))
    params = counterexample._train(reference, keys, rewards, alone, kl_weight, 1)
    changes = params.conditioned["layers_2"]["bias"][:, 0] - reference["layers_2"]["bias"]
    # ∂V/∂logits of a uniform policy, whose KL is 0 and stationary: (1 − α) (R − mean R) / 3.
    gradient = (1 - kl_weight) * (rewards[0] - rewards[0].mean()) / 3
    np.testing.assert_allclose(
        changes.mean(axis=0), counterexample.LEARNING_RATE * gradient, atol=2e-4
    )


def test_seeds_do_not_depend_on_what_runs_beside_them(result):
    again = counterexample.run(range(5, 15))
    for ours, theirs in zip(result.methods, again.methods, strict=True):
        np.testing.assert_allclose(ours.policies[5:], theirs.policies[:5], atol=1e-5)
    different = np.abs(result.clp.policies[:5] - again.clp.policies[5:])
    assert different.max(axis=(1, 2)).min() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_weight": 1.0}, r"kl_weight=1 is outside \[0, 1\)"),
        ({"kl_weight": float("nan")}, "kl_weight=nan is outside"),
        ({"steps": 1}, "steps=1"),
        ({"seeds": []}, "no seeds"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        counterexample.run(**settings)


def test_the_table_and_the_files(result, tmp_path):
    (*seeds, worst) = counterexample_report.rows(result)
    assert [row["seed"] for row in seeds] == [str(i) for i in range(10)]
    assert seeds[2]["CLP: p(y3)"] == f"{result.clp.compromise[2]:.4f}"
    assert worst["CLP: largest gap"] == f"{result.clp.largest_gaps.max():.4f}"
    assert worst["CLP: p(y3)"] == f"{result.clp.compromise.min():.4f}"
    least = f"{result.rewarded_soups.largest_gaps.min():.4f}"
    assert worst["Rewarded Soups: largest gap"] == least
    most = f"{result.logit_mixing.compromise.max():.4f}"
    assert worst["logit mixing: p(y3)"] == most
    counterexample_report.write(result, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "counterexample.json", "counterexample.png"]  # fmt: skip
    saved = json.loads((tmp_path / "counterexample.json").read_text())
    assert (saved["kl_weight"], saved["steps"], saved["seeds"]) == (0.03, 2000, list(range(10)))
    soups = saved["methods"]["Rewarded Soups"]
    assert np.shape(soups["values"]) == (10, 21, 2)
    assert soups["largest_gaps"] == result.rewarded_soups.largest_gaps.tolist()
    assert np.max(soups["gaps"], axis=1).tolist() == soups["largest_gaps"]


def test_the_command_without_kl(tmp_path, capsys):
    output = tmp_path / "runs" / "out"
    command.main(["--seeds=2", "--steps=20", "--kl_weight=0", f"--output={output}"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 + 1
    saved = json.loads((output / "counterexample.json").read_text())
    assert saved["kl_weight"] == 0
    assert saved["methods"]["optimal"]["compromise"] == [1]
    assert np.all(np.isfinite(saved["methods"]["CLP"]["values"]))
    with pytest.raises(SystemExit, match="2"):
        command.main(["--seeds=0", f"--output={output}"])
    assert "no seeds" in capsys.readouterr().err


def test_help_needs_no_heavy_import():
    code = (
        "import sys\nfrom clp_jax import counterexample\n"
        "try: counterexample.main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'jax' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--kl_weight" in done.stdout
