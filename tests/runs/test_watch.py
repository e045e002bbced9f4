"""Reports of metrics that not every step has, and warnings about the KL to the reference."""

import pytest
import smoke

from clp_jax.reporting.errors import ConfigError
from clp_jax.reporting.metrics_log import Window
from clp_jax.runs.watch import KLWatch


def test_means_are_over_the_steps_that_have_the_metric():
    window = Window()
    for row in ({"b": 1.0}, {"a": 4.0, "b": 3.0}, {"a": 8.0, "b": 8.0, "c": 0.5}):
        window.add(row)
    means = window.means()
    assert means == {"b": 4.0, "a": 6.0, "c": 0.5}
    assert list(means) == ["b", "a", "c"]
    assert window.means() == {}


def warnings(capfd, watch, *reports):
    """What each report's means, of objective/kl or of several metrics, made the watch say."""
    said = []
    for i, means in enumerate(reports):
        watch(100 * (i + 1), means if isinstance(means, dict) else {"objective/kl": means})
        said.append(capfd.readouterr().err)
    return said


def test_warns_at_the_bound_and_then_only_when_it_has_grown_by_half(capfd):
    kls = [9.9, 10.0, 10.1, 12.0, 15.1, 15.2, 22.7, 3.0, 11.0, 40.0]
    said = warnings(capfd, KLWatch(10.0), *kls)
    assert [bool(text) for text in said] == [kl in (10.1, 15.2, 40.0) for kl in kls]


def test_a_warning_says_what_and_what_to_do(capfd):
    means = {
        "objective/kl": 2.25,
        "when_largest/rouge/kl": 7.5,
        "when_largest/entailment/kl": 0.5,
        "when_largest/entailment/length": 30.0,
        "rewards/rouge": 50.0,
    }
    (text,) = warnings(capfd, KLWatch(2.0), means)
    for part in ("step 100", "KL_WARNING=2 nats", "2.25 overall", "samples.jsonl",
                 "7.5 where the weight of 'rouge' is the largest", "KL_WEIGHT_MIN",
                 "POLICY_LEARNING_RATE"):  # fmt: skip
        assert part in text
    assert "entailment" not in text
    assert text.count("\n") == 1


def test_each_reward_warns_for_itself(capfd):
    reports = [{f"when_largest/{name}/kl": 5.0} for name in ("a", "b", "a")]
    assert [bool(text) for text in warnings(capfd, KLWatch(1.0), *reports)] == [True, True, False]


@pytest.mark.parametrize("value", ["0", "-1.0", "True", "'5'", "1e999"])
def test_a_bound_that_is_none(tmp_path, value):
    with pytest.raises(ConfigError, match="KL_WARNING=.* must be a positive number of nats"):
        smoke.configured(tmp_path, f"KL_WARNING={value}")


def test_the_bound_is_configured(tmp_path):
    assert smoke.configured(tmp_path).model.kl_warning is None
    assert smoke.configured(tmp_path, "KL_WARNING=5").model.kl_warning == 5
