"""What is said of a slice before it is rented: figures by hand, and the command on tiny models."""

import dataclasses
import importlib.util
import json
import os
import re
import sys
import types

import jax.numpy as jnp
import plan_closed_forms as by_hand
import pytest
import smoke
from plan_runs import ROUGE, SHALLOW, TINY, TWO, over, planned_run

from clp_jax.algorithm.conditioning import count_parameters
from clp_jax.machine import accelerators
from clp_jax.planning import memory, stand_ins, topology
from clp_jax.reporting.errors import ConfigError
from clp_jax.runs import states
from clp_jax.settings import gin_config

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[tpu]'"
)


# ---- Slices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:16x32", "unknown topology 'v5e:16x32'.*nearest: .*v5e:16x16"),
        ("v5e:4x2", "it is called v5e:2x4"),
        ("v6e:4x4", "figures are known of v5e alone; for example v5e:4x4"),
        ("4x4", "unknown topology '4x4'.*nearest: .*v5e:4x4"),
    ],
)
def test_an_unknown_slice_names_valid_ones(name, message):
    with pytest.raises(ValueError, match=message):
        topology.check(name)


def test_without_libtpu_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'clp-jax\[tpu\]'"):
        topology.prepare()


def pci(folder, vendor, kind):
    device = folder / f"0000:00:{len(list(folder.iterdir())):02x}.0"
    device.mkdir()
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")


def test_a_tpu_is_told_from_googles_other_devices(tmp_path):
    assert not accelerators.has_tpu(tmp_path)
    pci(tmp_path, "0x8086", "0x120000")
    pci(tmp_path, "0x1ae0", "0x020000")  # a network adapter
    pci(tmp_path, "0x1ae0", "0x010802")  # a disk
    assert not accelerators.has_tpu(tmp_path)
    pci(tmp_path, "0x1ae0", "0x120000")
    assert accelerators.has_tpu(tmp_path)


@pytest.mark.parametrize(
    ("given", "tpu", "plugins", "chosen"),
    [
        (None, False, [], "cpu"),
        ("tpu", False, [], "tpu"),
        (None, True, [], None),
        (None, False, ["cuda"], None),
    ],
)
def test_a_chip_is_looked_for_where_there_may_be_one(monkeypatch, given, tpu, plugins, chosen):
    monkeypatch.setenv("JAX_PLATFORMS", given or "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    monkeypatch.setattr(accelerators, "has_tpu", lambda: tpu)
    monkeypatch.setattr(accelerators, "entry_points", lambda group: plugins)
    updates = []
    # One that no test before this has told where to compute.
    config = types.SimpleNamespace(jax_platforms=None, update=lambda *s: updates.append(s))
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(config=config))
    accelerators.look_for_none_in_vain()
    assert (os.environ["JAX_PLATFORMS"] or None) == chosen
    assert updates == ([("jax_platforms", "cpu")] if chosen == "cpu" else [])


# ---- Memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fully_sharded", [False, True])
@pytest.mark.parametrize(("data", "model"), [(16, 1), (4, 4), (1, 4), (32, 2)])
def test_bytes_of_each_part_by_hand(data, model, fully_sharded):
    run = planned_run(TWO, *SHALLOW, reward_models=["nli=tiny"])
    config = run.model.module.config
    reward = run.model.rewards.rewards[0].reward.model.module.config
    found = memory.resident(run, over(data, model, fully_sharded))
    shape = (data, model, fully_sharded)
    plain = 4 * by_hand.on_a_chip(config, *shape)
    cut = model * (data if fully_sharded else 1)
    conditioned = 4 * by_hand.conditioned(config, encoder=3, decoder=2) / cut
    assert found["reference"] == found["value"] == plain
    assert found["parameters"] == plain + conditioned
    assert found["rewards"] == 4 * by_hand.on_a_chip(reward, *shape)
    # Adafactor's rows and columns, which stay whole.
    assert 0 < found["optimizer"] < 0.02 * 2 * 4 * sum(by_hand.parameters(config)[::2])


def test_the_second_replica_costs_what_s_has():
    """m|S| + |S^C| with T5-large and the first 12 layers: 19.3 % of the model more for m = 2."""
    large = ("t5.T5Config.emb_dim = 1024", "t5.T5Config.num_heads = 16",
             "t5.T5Config.num_encoder_layers = 24", "t5.T5Config.num_decoder_layers = 24",
             "t5.T5Config.mlp_dim = 2816", "subset.attention.first_layers = 12")  # fmt: skip
    several = planned_run(TWO, *large, reward_models=["nli=tiny"])
    single = planned_run(ROUGE, *large)
    place = over(16, 1)
    held = [memory.resident(run, place) for run in (several, single)]
    extra = sum(sum(each.values()) * sign for each, sign in zip(held, (1, -1), strict=True))
    extra -= held[0]["rewards"]
    count = count_parameters(states.state_shapes(several).params, 2)
    assert count.conditioned == by_hand.conditioned(several.model.module.config, 12, 12)
    assert count.fraction == pytest.approx(0.193, abs=5e-4)
    assert extra == pytest.approx(4 * count.conditioned, rel=0.005)


def test_a_reward_of_ones_own_is_whole_on_each_chip():
    class Mine:
        on_device, params = True, {"table": jnp.zeros((3, 5)), "offset": 1.0}

        def score_tokens(self, params, prompts, completions, mask):
            return jnp.sum(mask, axis=1)

    run = planned_run(ROUGE, *SHALLOW)
    stack = type(run.model.rewards)([dataclasses.replace(run.model.rewards.rewards[0],
                                                         name="mine", reward=Mine())])  # fmt: skip
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, rewards=stack))
    assert memory.resident(run, over(4, 2))["rewards"] == 4 * 16


# ---- Stand-ins ---------------------------------------------------------------------------------


def test_what_a_plan_does_not_read_need_not_be_set_nor_be_there():
    run = planned_run(TWO, reward_models=["nli=small"])
    reward = run.model.rewards.rewards[0].reward
    assert reward.on_device
    assert reward.model.module.config.emb_dim == 512
    assert reward.model.module.config.dtype == jnp.bfloat16
    gin_config.load(["gin/clp_attn.gin", "gin/xsum.gin"], [ROUGE])
    stand_ins.bind(without_files=True)
    assert gin_config.configured_run().model.vocabulary.vocab_size == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nli", "--reward_model=nli: write NAME=SIZE"),
        ("nli=huge", "unknown size 'huge' .from --reward_model.; nearest: "),
    ],
)
def test_a_wrong_reward_model_is_named(text, message):
    with pytest.raises(ConfigError, match=message):
        planned_run(TWO, reward_models=[text])


# ---- The command -------------------------------------------------------------------------------

# Without what conftest.py sets for programs that compile fast: the compiler is what is asked here.
AS_USERS = {name: value for name, value in smoke.AS_USERS.items() if name != "JAX_PLATFORMS"}


def planned(tmp_path, *arguments):
    """The command at smoke scale; (its result, its figures)."""
    file = tmp_path / "plan.json"
    given = [*smoke.flags(tmp_path), *TINY, f"--json={file}", *arguments]
    done = smoke.command("clp_jax.plan", *given, env=AS_USERS)
    return done, json.loads(file.read_text()) if file.is_file() else None


@needs_libtpu
def test_a_tiny_run_is_compiled_for_four_chips(tmp_path):
    done, figures = planned(tmp_path, "--topology=v5e:2x2", "--gin.NUM_PARTITIONS=2",
                            "--gin.FULLY_SHARDED=True", "--gin.REWARDS=('nli', 'rouge')",
                            "--reward_model=nli=tiny")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "TPU" not in done.stderr
    assert "compiled update in" in done.stderr
    assert "4 chips as 2 x 2 (data x model)" in done.stdout
    names = [program["name"] for program in figures["programs"]]
    assert names == ["generate", "reward nli", "score", "update"]
    generate, *_, update = figures["programs"]
    assert 24 in [steps for steps, _ in generate["loops"]]  # the decode loop
    assert update["communication_seconds"] > 0
    config = smoke.configured(tmp_path).model.module.config
    by_one = 4 * by_hand.on_a_chip(config, 2, 2, True)
    assert figures["resident"]["reference"] == by_one
    assert generate["flops"] == by_hand.generate(config, 16, 48, 24) / 4
    assert figures["fits"]


@needs_libtpu
def test_a_run_that_does_not_fit_is_told_what_would(tmp_path):
    done, figures = planned(tmp_path, "--topology=v5e:2x2", "--gin.REWARDS=('nli', 'rouge')",
                            "--reward_model=nli=xxl")  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "does not fit: 41.48 GiB, of 15.75" in done.stdout
    assert "nothing was compiled" in done.stdout
    assert "--gin.NUM_PARTITIONS=1 --gin.FULLY_SHARDED=True: arrays of 10.37 GiB" in done.stdout
    assert not figures["fits"]


@needs_libtpu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gin.NUM_PARTITIONS=3"], "NUM_PARTITIONS=3 must divide the number of devices, 16"),
        (["--gin.BATCH_SIZE=12"], "BATCH_SIZE=12 cannot be shared equally by 16"),
        (["--gin.NUM_PARTITIONS=4"], "axis 'heads' of num_heads has length 2"),
    ],
)
def test_what_does_not_divide_names_what_does(tmp_path, arguments, message):
    done, _ = planned(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


@needs_libtpu
def test_a_search_says_which_flags_to_use(tmp_path):
    done, figures = planned(tmp_path, "--topology=v5e:1x1", "--search")
    assert done.returncode == 0, done.stderr
    assert "best: --gin.NUM_PARTITIONS=1" in done.stdout
    assert figures["chips"] == 1


@needs_libtpu
def test_other_commands_run_on_the_cpu_without_flags(tmp_path):
    done = smoke.command("clp_jax.train", *smoke.flags(tmp_path), "--dry_run", env=AS_USERS)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^devices? .*\bcpu\b", done.stderr, re.MULTILINE)
    for word in ("TPU", "libtpu", "metadata"):
        assert word not in done.stderr
