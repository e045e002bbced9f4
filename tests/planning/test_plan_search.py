"""What is said of a plan, what is tried to find one that fits, and how the command ends."""

import dataclasses
import json
import types

import pytest
import smoke
from plan_runs import SHALLOW, TINY, TWO, made_plan, over, planned_run

from clp_jax import plan
from clp_jax.planning import memory, planner, report, stand_ins, topology
from clp_jax.runs import states
from clp_jax.settings import gin_config

# ---- The report --------------------------------------------------------------------------------


def test_a_plan_adds_up():
    plan = made_plan()
    assert plan.peak_bytes == 12.5 * 2**30
    assert plan.fits
    assert (plan.seconds, plan.hours) == pytest.approx((0.4, 1.0))
    said = report.text(plan)
    assert "16 chips as 16 x 1 (data x model)" in said
    assert "fits: 12.50 GiB with 0.50 of program code, of 15.75" in said
    assert "3.25 are left" in said
    assert "64 x 4.00 ms" in said
    assert "0.400 s per step, 25 % of the chips' FLOP/s; 9,000 steps take 1.0 hours" in said
    row = next(line for line in said.splitlines() if line.startswith("generate"))
    assert row.split()[1:] == ["3.00", ".", "2.00", ".", ".", "4.00", "3.00", "12.00"]
    assert json.loads(json.dumps(plan.figures()))["hours"] == pytest.approx(1.0)


def test_advice_names_what_would_fit():
    resident = {"parameters": 7 * 2**30, "optimizer": 0, "reference": 5 * 2**30}
    resident |= {"value": 5 * 2**30, "rewards": 0}
    plan = made_plan(resident=resident)
    assert not plan.fits
    run = planned_run(TWO, reward_models=["nli=tiny"])
    sizes = {(1, False): 17, (1, True): 12, (2, False): 8, (4, False): 4}
    ways = [planner.Candidate(*way, size * 2**30, "") for way, size in sizes.items()]
    ways.append(planner.Candidate(8, False, None, "does not divide"))
    said = report.advice(run, plan, ways)
    assert "--gin.NUM_PARTITIONS=2: arrays of 8.00 GiB per chip in place of 17.00" in said
    assert "--gin.NUM_PARTITIONS=4: arrays of 4.00" in said
    assert "NUM_PARTITIONS=1" not in said  # 12 and 4.5 are too much
    assert "remat_policy=\"'full'\"" in said
    assert "4.00 GiB of activations of generate" in said
    assert "--gin.BATCH_SIZE=16 or less" in said
    assert "S is 34.3 % of the model, held 2 times" in said
    assert "more chips" in report.advice(run, plan, ways[:1])


def test_a_search_puts_the_fastest_that_fits_first():
    slow = dataclasses.replace(made_plan().programs[0], compute_seconds=9.0)
    plans = {1: made_plan(programs=(slow,)), 2: made_plan()}
    found = [planner.Candidate(n, False, 1, "", plan) for n, plan in plans.items()]
    found += [
        planner.Candidate(4, False, 1, "not compiled"),
        planner.Candidate(8, True, None, "no"),
    ]
    found.reverse()
    ranked = sorted(found, key=planner._rank)
    assert [each.num_partitions for each in ranked] == [2, 1, 4, 8]
    assert report.found(ranked).endswith("best: --gin.NUM_PARTITIONS=2")


# ---- Searching ---------------------------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch):
    """16 chips, and plans that are made up in place of compiling: (cut, a plan or an error)."""
    asked, answers = [], {}

    def placement(run, name):
        place = over(16 // run.num_partitions, run.num_partitions, run.fully_sharded)
        states.check_placement(run, place)
        return place

    def plan(run, name, say):
        asked.append((run.num_partitions, run.fully_sharded))
        answer = answers.get(asked[-1], made_plan())
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(topology, "devices", lambda name: range(16))
    monkeypatch.setattr(topology, "prepare", lambda: None)
    monkeypatch.setattr(planner, "placement", placement)
    monkeypatch.setattr(planner, "plan", plan)
    return types.SimpleNamespace(asked=asked, answers=answers)


def test_a_search_compiles_for_so_many_of_the_cheapest_cuts(compiler):
    slow = dataclasses.replace(made_plan().programs[0], compute_seconds=9.0)
    compiler.answers[1, False] = made_plan(programs=(slow,))
    compiler.answers[4, False] = ValueError("a program cannot be made")
    run = planned_run(TWO, *SHALLOW, reward_models=["nli=tiny"])
    found = planner.search(run, "v5e:4x4", 3)
    # FULLY_SHARDED communicates more than any NUM_PARTITIONS.
    assert compiler.asked == [(1, False), (2, False), (4, False)]
    assert [(c.num_partitions, c.fully_sharded, c.problem) for c in found[:5]] == [
        (2, False, ""), (1, False, ""), (4, False, "a program cannot be made"),
        (1, True, "not compiled"), (2, True, "not compiled"),
    ]  # fmt: skip
    whole, cut = (found[1].resident_bytes, found[0].resident_bytes)
    assert cut == pytest.approx(whole / 2, rel=0.02)
    # 12 heads cannot be cut 8 and 16 times.
    assert all("num_heads has length 12" in c.problem for c in found[-3:])
    assert {c.num_partitions for c in found[-3:]} == {8, 16}


def test_arrays_that_do_not_fit_are_not_compiled_for(compiler, monkeypatch):
    run = planned_run(TWO, *SHALLOW, reward_models=["nli=tiny"])
    whole, in_two = (sum(memory.resident(run, over(16 // n, n)).values()) for n in (1, 2))
    small = dataclasses.replace(topology.V5E, usable_hbm_bytes=(whole + in_two) // 2)
    monkeypatch.setattr(topology, "V5E", small)
    found = planner.search(run, "v5e:4x4", 9)
    assert (1, False) not in compiler.asked
    assert (2, False) in compiler.asked
    (refused,) = [c for c in found if (c.num_partitions, c.fully_sharded) == (1, False)]
    assert refused.problem == "its arrays alone do not fit"
    assert refused.resident_bytes == whole


def test_a_soup_is_planned_as_one_expert_with_the_steps_of_all():
    lengths = "TASK_FEATURE_LENGTHS = {'inputs': 16, 'targets': 8}"
    settings = [lengths, TWO, *SHALLOW, "TRAIN_STEPS = 900"]
    gin_config.load(["gin/rewarded_soup.gin"], settings)
    stand_ins.bind(["nli=tiny"])
    run = gin_config.configured_run()
    policy = planner.policy_run(run)
    assert run.model.rewarded_soup
    assert not policy.model.rewarded_soup
    assert policy.total_steps == 900


@pytest.mark.parametrize(
    ("arguments", "answer", "status", "said"),
    [
        ([], made_plan(), 0, "fits: 12.50 GiB"),
        ([], made_plan(resident=dict.fromkeys(memory.PARTS, 2**32)), 1, "does not fit"),
        (["--search=2"], made_plan(), 0, "best: --gin.NUM_PARTITIONS=1"),
        (["--search=2"], ValueError("no"), 1, "nothing fits: take more chips"),
    ],
)
def test_the_exit_status_says_whether_it_fits(
    compiler, tmp_path, capsys, arguments, answer, status, said
):
    compiler.answers |= dict.fromkeys([(1, False), (2, False)], answer)
    divisible = "--gin.SFT_BATCH_SIZE=16"
    flags = [*smoke.flags(tmp_path), *TINY, divisible, "--topology=v5e:4x4", *arguments]
    with pytest.raises(SystemExit) as ended:
        plan.main(flags)
    assert ended.value.code == status
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:3x3"], "unknown topology 'v5e:3x3'"),
        (["--gin.REWARDS=('nli',)"], "--reward_model=nli=SIZE"),
        (["--gin_file=gin/xsum.gin", "--gin.VOCABULARY_FILE='nowhere'"], "--without_files"),
        (["--search=0"], "--search=0 must be at least 1"),
    ],
)
def test_wrong_settings_name_right_ones(compiler, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        plan.main([*smoke.flags(tmp_path), *TINY, *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert compiler.asked == []
