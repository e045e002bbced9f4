"""The reproduction: how a claim is judged, and the whole of it in miniature."""

import ctypes
import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import platform
import re
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import smoke
import sweeps

from clp_jax.reporting.errors import RunFailed
from clp_jax.reproduction import claims, report, runs, workers
from clp_jax.reproduction.checks import Check, Claim
from clp_jax.reproduction.results import Results
from clp_jax.reproduction.runs import RunSpec


def test_a_check_has_to_hold_in_every_seed():
    assert Check.of("x", [0.3, 0.4], at_least=0.3).holds
    assert not Check.of("x", [0.29, 0.9], at_least=0.3).holds
    assert Check.of("x", [0.3, 0.4], at_most=0.4).holds
    assert not Check.of("x", [0.1, 0.41], at_most=0.4).holds
    assert not Check.of("x", [0.1, 0.35], 0.2, 0.4).holds
    assert not Check.of("x", [math.nan, 0.3], at_least=0).holds
    assert not Check.of("x", [math.nan], at_most=0).holds


def test_the_margin_is_students():
    # n = 3: t = 4.303, standard deviation 0.1, so 4.303 · 0.1 / √3.
    check = Check.of("x", [0.1, 0.2, 0.3], 0.15)
    assert check.mean == pytest.approx(0.2)
    assert check.margin == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert check.row() == {
        "figure": "x",
        "mean over seeds": "0.200 ± 0.248",
        "each seed": "0.100, 0.200, 0.300",
        "bound": "≥ 0.15",
        "holds": "no",
    }


@pytest.mark.parametrize(
    ("values", "verdict"),
    [((1, 1), "holds"), ((1, 0), "partly"), ((0, 0), "does not hold")],
)
def test_verdicts(values, verdict):
    found = Claim("1", "it is so", tuple(Check.of("x", [v], at_least=1) for v in values))
    assert found.verdict == verdict


def test_a_run_ends_with_the_reproduction_that_started_it(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing, os, time
        from clp_jax.reproduction import workers

        def run():
            workers._prepare(min(os.sched_getaffinity(0)), "compiled")
            print(os.getpid(), flush=True)
            time.sleep(120)

        if __name__ == "__main__":
            process = multiprocessing.get_context("forkserver").Process(target=run)
            process.start()
            process.join()
        """)
    )
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as parent:
        worker = int(parent.stdout.readline())
        assert pathlib.Path(f"/proc/{worker}").exists()
        parent.kill()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            status = pathlib.Path(f"/proc/{worker}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return
        if status.rpartition(")")[2].split()[0] == "Z":  # a zombie, which nobody waits for
            return
        time.sleep(0.1)
    pytest.fail("the process of the run goes on")


def two_reward_results(tmp_path, full, soup, steps=(125, 250, 500)):
    """Results whose fronts are given; every other method is a point."""
    point = np.tile([0.4, 0.4], (11, 1))
    for method in ("full", "attn", "logit", "prompting", "soup"):
        values = {"full": full, "attn": full, "soup": soup}.get(method, point)
        for seed, step in [(s, t) for s in (0, 1, 2) for t in steps]:
            folder = tmp_path / f"runs/two_rewards/{method}/{seed}/evaluation/{step}"
            sweeps.save(sweeps.sweep(values, WEIGHTS, names=("entailment", "rouge")), folder)
    return Results(tmp_path, runs.BRIEFS)


W = np.linspace(1, 0, 11)
WEIGHTS = np.stack([W, 1 - W], axis=1)
WIDE = np.stack([np.sin(np.pi / 2 * W), np.cos(np.pi / 2 * W)], axis=1)  # bulges out
STRAIGHT = np.stack([W, 1 - W], axis=1)


def test_two_rewards_are_judged_by_their_fronts(tmp_path):
    dominance, steerable = claims.two_rewards(two_reward_results(tmp_path / "a", WIDE, STRAIGHT))
    by_name = {check.what: check for check in dominance.checks}
    # Half the unit square lies under the straight line; of a front of points, a staircase does.
    volume = by_name["hypervolume: full-CLP − Rewarded Soups"].values[0]
    stairs = [sum((a[0] - b[0]) * a[1] for a, b in zip(front, [*front[1:], [0, 0]], strict=True))
              for front in (WIDE.tolist(), STRAIGHT.tolist())]  # fmt: skip
    assert volume == pytest.approx(stairs[0] - stairs[1], abs=1e-6)
    centre = by_name["V_w at the centre: full-CLP − Rewarded Soups"].values
    assert centre == pytest.approx([math.sqrt(0.5) - 0.5] * 3, abs=1e-6)
    assert [c.what for c in dominance.checks if not c.holds] == [
        "hypervolume: prompting − Rewarded Soups"
    ]
    assert steerable.verdict == "holds"
    # The other way round nothing that asks for a front above the soup's holds.
    dominance, _ = claims.two_rewards(two_reward_results(tmp_path / "b", STRAIGHT, WIDE))
    held = [check.what for check in dominance.checks if check.holds]
    assert held == ["V_w at the corners: full-CLP − Rewarded Soups, the smaller one"]


def test_the_oracle_is_no_further_from_itself(tmp_path):
    from clp_jax.data.briefs import corpus, oracle

    documents = [brief["document"] for brief in corpus.generate("validation", 4)]
    best = oracle.front(documents, WEIGHTS, ("entailment", "rouge"))
    swept = sweeps.sweep(
        best - 0.25, WEIGHTS, names=("entailment", "rouge"), documents=np.array(documents, object)
    )
    for seed in range(3):
        sweeps.save(swept, tmp_path / f"runs/two_rewards/full/{seed}/evaluation/500")
    results = Results(tmp_path, runs.BRIEFS)
    (row,) = claims.oracle_gaps(results, "two_rewards", ("full",))
    assert row == {
        "method": "full-CLP", "mean gap": "0.250", "largest gap": "0.250",
        "mean gap at the corners": "0.250",
    }  # fmt: skip


def test_mixes_are_compared_after_as_many_steps(tmp_path):
    def save(name, step, kl):
        for seed in runs.BRIEFS.seeds:
            swept = sweeps.sweep(STRAIGHT, WEIGHTS, kl=np.linspace(0, kl, 11), noise=0)
            sweeps.save(swept, tmp_path / f"runs/{name}/full/{seed}/evaluation/{step}")

    save("multi_kl", 250, kl=3)
    save("multi_kl", 1000, kl=9)
    save("linear_kl_mix", 250, kl=1)
    (check,) = claims._kl_mix(Results(tmp_path, runs.BRIEFS)).checks
    assert check.mean == pytest.approx(2)


def write_pools_of_memory(path):
    """Writes which pools glibc has in a run's process, when a thread has asked for memory."""
    workers._prepare(min(os.sched_getaffinity(0)), os.path.dirname(path))
    thread = threading.Thread(target=bytearray, args=(2**20,))
    thread.start()
    thread.join()
    libc = ctypes.CDLL("libc.so.6")
    libc.fopen.restype, libc.fopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]
    libc.malloc_info.argtypes, libc.fclose.argtypes = (
        [ctypes.c_int, ctypes.c_void_p],
        [ctypes.c_void_p],
    )
    file = libc.fopen(path.encode(), b"w")
    libc.malloc_info(0, file)
    libc.fclose(file)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_the_threads_of_a_run_share_one_pool_of_memory(tmp_path):
    path = tmp_path / "pools.xml"
    process = multiprocessing.get_context("forkserver").Process(
        target=write_pools_of_memory, args=(str(path),)
    )
    process.start()
    process.join()
    assert path.read_text().count("<heap nr=") == 1


def test_a_run_that_fails_is_named(tmp_path):
    spec = RunSpec("broken/full/0", ("gin/clp_full.gin", "gin/no_such.gin"), {}, 3)
    later = RunSpec("broken/full/1", *dataclasses.astuple(spec)[1:])
    with pytest.raises(RunFailed, match=r"run broken/full/0 failed.*unknown gin file"):
        workers.execute([spec, later], tmp_path, 1)
    assert not later.model_dir(tmp_path).exists()  # nothing begins behind it


def test_a_run_whose_process_was_killed_has_failed():
    reply, end = multiprocessing.Pipe(duplex=False)
    end.close()
    assert workers._error(reply) == "its process was killed"


def test_a_run_waits_for_its_reference():
    one, two = (RunSpec(f"reference_{size}", (), {}, 0) for size in ("tiny", "mini"))
    of_one, of_two = (RunSpec(f"a/b/{i}", (), {}, 3, ref.name) for i, ref in enumerate((one, two)))
    assert workers._ready([of_one, two, of_two], running=[one]) == [two]
    assert workers._ready([of_one, of_two], running=[one]) == [of_two]
    assert workers._ready([of_one, of_two], running=[]) == [of_one, of_two]


@pytest.mark.very_slow
def test_all_of_it_in_miniature_and_again(tmp_path):
    output = tmp_path / "runs"
    done = smoke.command("clp_jax.reproduce", "--quick", f"--output={output}")
    assert done.returncode == 0, done.stderr[-3000:]
    text = (output / "reproduction.md").read_text()
    sections = re.findall(r"^## (.*): (holds|partly|does not hold)$", text, re.MULTILINE)
    for section in ("4.1.1", "4.1.2", "4.1.3", "4.2.1", "4.2.2", "4.2.3", "C.1", "C.7", "Fig. 19"):
        assert any(section in name for name, _ in sections), section
    for image in re.findall(r"!\[\w+\]\((.*?)\)", text):
        assert (output / image).read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"!\[", text)) == len(report._FIGURES)
    # Nothing is made again but what is missing.
    gone = output / "runs/multi_kl/dera/0/evaluation/6/values.json"
    before = json.loads(gone.read_text())
    gone.unlink()
    done = smoke.command("clp_jax.reproduce", "--quick", f"--output={output}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"20 runs, 1 of them to be made", done.stderr)
    assert json.loads(gone.read_text()) == before
