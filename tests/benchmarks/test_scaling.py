"""The scaling tables: shallow networks continued along a line, and rows as Markdown."""

import dataclasses
import pathlib

import pytest

from clp_jax.algorithm import subset

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import scaling

    return scaling


@pytest.fixture
def setting(scaling):
    return scaling.Setting("base", "large", "attn", 3, "v5e:4x4")


def test_a_row_is_the_run_that_it_says(scaling, setting):
    run = scaling.configured(setting)
    assert run.model.module.config.num_decoder_layers == 12
    assert [r.reward.model.module.config.emb_dim for r in run.model.rewards.rewards] == [1024] * 3
    assert (run.max_prompt_length, run.max_decode_length) == (512, 64)
    assert run.train_dataset_cfg.batch_size == 32
    assert run.model.subset == subset.attention()
    few = scaling.configured(setting, 2)
    networks = [few.model.module, *(r.reward.model.module for r in few.model.rewards.rewards)]
    assert {n.config.num_encoder_layers for n in networks} == {2}
    assert {n.config.num_decoder_layers for n in networks} == {2}
    assert few.model.module.config.emb_dim == 768


def test_figures_are_continued_to_the_full_depth(scaling, setting, monkeypatch):
    from clp_jax.planning import planner

    def plan(run, name, say):
        depths = {"update": run.model.module.config.num_encoder_layers}
        reward = run.model.rewards.rewards[0].reward.model.module.config.num_encoder_layers
        depths["reward nli"] = reward
        made = [
            planner.ProgramPlan(
                program, {}, 100 + 7 * n, 10 + n, 1e3 * n, 0.5 + 0.1 * n, 0.25 * n, (), 1.0
            )
            for program, n in depths.items()
        ]
        return planner.Plan(name, 16, 1, False, {}, tuple(made), 10)

    monkeypatch.setattr(planner, "plan", plan)
    candidate = planner.Candidate(2, False, 5, "")
    for full in (False, True):
        update, reward = scaling.planned(setting, candidate, full)
        assert (update["name"], update["working_bytes"]) == ("update", 100 + 7 * 12)
        assert update["compute_seconds"] == pytest.approx(0.5 + 0.1 * 12)
        assert reward["working_bytes"] == 100 + 7 * 24  # T5-large
        assert reward["flops"] == 24e3


def test_the_table_says_what_fits(scaling, setting):
    row = dataclasses.asdict(setting) | {
        "num_partitions": 4, "fully_sharded": False, "arrays": 3 * 2**30, "peak": 5 * 2**30,
        "seconds": 0.25, "fits": True, "layers": "full",
    }  # fmt: skip
    alone = dataclasses.asdict(setting) | {"topology": "v5e:1x1", "fits": False, "layers": "few"}
    lines = scaling.table([row, alone]).splitlines()
    assert "| v5e:4x4 | 16 | 4 x 4 | all | 3.00 | 5.00 | yes | 0.250 |" in lines[3]
    assert "| v5e:1x1 | 1 | none | 2 + 2 and 4 + 4 |  |  | no |  |" in lines[2]
