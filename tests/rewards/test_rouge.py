import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
from rouge_score import rouge_scorer

from clp_jax.reporting.errors import RewardError
from clp_jax.rewards.base import NamedReward, RewardStack
from clp_jax.rewards.rouge import RougeLsum

REFERENCES = [
    "The cat sat on the mat.\nIt was running happily.",
    "a b c d",
    "nothing shared",
    "",
    "some words",
    "The players were running; a player runs.",
    "first line\n\nsecond line here",
]
COMPLETIONS = [
    "A cat sits on mats.\nHappily it ran on the mat.",
    "a c x d d",
    "quite different",
    "some words",
    "",
    "player run",
    "second line here\nfirst line",
]
OPTIONS = [
    {},
    {"use_stemmer": False},
    {"measure": "recall"},
    {"measure": "precision", "use_stemmer": False},
]


def expected(use_stemmer=True, measure="fmeasure"):
    scorer = rouge_scorer.RougeScorer(["rougeLsum"], use_stemmer=use_stemmer)
    scores = [scorer.score(r, c)["rougeLsum"] for r, c in zip(REFERENCES, COMPLETIONS, strict=True)]
    return [100 * getattr(s, measure) for s in scores]


def score(rouge, repeats=1):
    prompts = [""] * len(COMPLETIONS) * repeats
    return rouge(prompts, COMPLETIONS * repeats, summary=REFERENCES * repeats)


@pytest.fixture
def pool():
    rouge = RougeLsum(workers=2, measure="recall", use_stemmer=False)
    yield rouge
    rouge.close()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_inline_equals_rouge_score(options):
    scores = score(RougeLsum(workers=0, **options))
    assert scores == expected(**options)
    assert scores[3] == scores[4] == 0.0
    assert len(set(scores)) > 3  # the cases tell something apart


def test_lines_are_the_sentences():
    rouge = RougeLsum(workers=0)
    # By hand: as two sentences each, every word is matched; as one, the longest common
    # subsequence is two of four words.
    assert rouge([""], ["c d\na b"], summary=["a b\nc d"]) == [100.0]
    assert rouge([""], ["c d a b"], summary=["a b c d"]) == [50.0]


def test_without_newlines_it_is_rouge_l():
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    reference, completion = "to be or not to be is to be", "not to be or to be or be to"
    assert RougeLsum(workers=0)([""], [completion], summary=[reference]) == [
        100 * scorer.score(reference, completion)["rougeL"].fmeasure
    ]


def test_pool_equals_inline_in_order_and_survives_a_killed_worker(pool):
    assert score(pool, repeats=9) == expected(use_stemmer=False, measure="recall") * 9
    for process in pool._pool._processes.values():
        os.kill(process.pid, signal.SIGKILL)
    assert score(pool, repeats=9) == expected(use_stemmer=False, measure="recall") * 9
    assert pool([""], ["a b"], summary=["a b"]) == [100.0]  # fewer texts than workers
    pool.close()
    assert pool._pool is None
    pool.close()


def test_pickle_leaves_the_pool_behind(pool):
    score(pool)
    copy = pickle.loads(pickle.dumps(pool))
    assert copy._pool is None
    assert copy.columns == ("summary",)
    assert copy([], [], summary=[]) == []
    copy._workers = 0
    assert score(copy) == expected(use_stemmer=False, measure="recall")


def test_another_column():
    rouge = RougeLsum(workers=0, column="highlights")
    assert rouge.columns == ("highlights",)
    assert rouge([""], ["a b"], highlights=["a b"], summary=["c"]) == [100.0]
    with pytest.raises(ValueError, match=r"unknown column 'highlights'.*nearest: highlight"):
        rouge([""], ["a"], highlight=["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers is -1"),
        ({"workers": 1.5}, "workers is 1.5"),
        ({"measure": "fmesure"}, r"unknown measure 'fmesure' .*nearest: fmeasure"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RougeLsum(**options)


def test_bad_texts():
    rouge = RougeLsum(workers=0)
    with pytest.raises(ValueError, match="column 'summary': 1 values for 2 completions"):
        rouge(["", ""], ["a", "b"], summary=["a"])
    with pytest.raises(TypeError, match="column 'summary', row 1 is None"):
        rouge(["", ""], ["a", "b"], summary=["a", None])
    with pytest.raises(TypeError, match="completion 0 is b'a'"):
        rouge([""], [b"a"], summary=["a"])


def test_default_number_of_workers(monkeypatch):
    for cpus, workers in ((1, 1), (2, 1), (4, 3), (64, 8), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cpus=cpus: cpus)
        assert RougeLsum()._workers == workers


def test_range_is_that_of_the_paper():
    stack = RewardStack([NamedReward.of("rouge", RougeLsum(workers=0))])
    assert stack.ranges == {"rouge": (19.0, 29.0)}
    assert stack.columns == ("summary",)
    scores = stack([""], ["c d a b"], columns={"summary": ["a b c d"]})
    assert scores.normalised.tolist() == [[pytest.approx((50 - 19) / 10)]]


def run(*args, **kwargs):
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, timeout=60, **kwargs
    )


def test_workers_import_neither_jax_nor_tensorflow():
    program = """
from clp_jax.rewards.rouge import RougeLsum
rouge = RougeLsum(workers=1)
rouge([''], ['a'], summary=['a'])
print(rouge._pool.submit(eval, "' '.join(__import__('sys').modules)").result())
"""
    done = run("-c", program)  # and the program ends by itself, with its pool open
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"clp_jax.rewards.rouge", "rouge_score.rouge_scorer"} <= loaded
    assert not loaded & {"jax", "jaxlib", "flax", "tensorflow", "seqio", "gin"}


def test_a_script_without_a_main_guard_fails_and_does_not_hang(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from clp_jax.rewards.rouge import RougeLsum\n"
        "RougeLsum(workers=1)([''], ['a'], summary=['a'])\n"
    )
    done = run(str(script))
    assert done.returncode == 1
    assert "RougeLsum(workers=0) scores without them" in done.stderr


def test_workers_that_keep_dying_are_a_reward_error(pool, monkeypatch):
    monkeypatch.setattr("clp_jax.rewards.rouge._start_worker", os._exit)
    monkeypatch.setattr(pool, "_options", (3,))
    stack = RewardStack([NamedReward.of("rouge", pool)])
    with pytest.raises(RewardError, match="reward 'rouge' raised RuntimeError: the ROUGE worker"):
        stack(["", ""], ["a", "b"], columns={"summary": ["a", "b"]})


def test_workers_end_when_the_parent_is_killed():
    program = """
import sys, time
from clp_jax.rewards.rouge import RougeLsum
rouge = RougeLsum(workers=1)
rouge([''], ['a'], summary=['a'])
print(*rouge._pool._processes, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + 10
    while _alive(worker):
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.05)


def _alive(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            # An orphan may stay a zombie where nobody reaps it.
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
