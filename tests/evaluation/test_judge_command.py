"""The command that judges two saved evaluations."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import smoke

from clp_jax import judge as command
from clp_jax.evaluation.judge import COMPREHENSIVENESS, CONCISENESS, Verdict
from clp_jax.evaluation.result import SweepResult

DOCUMENTS = [f"document {i}" for i in range(6)]


def evaluation(text, alphas=(0.01,), points=6, documents=DOCUMENTS, names=("nli", "tldr")):
    """A sweep with completions `text(w, i)` of document i; all its numbers are 0."""
    share = np.linspace(0, 1, points)
    grid = np.stack([share, 1 - share], axis=1)
    weights = np.concatenate([grid] * len(alphas)).astype(np.float32)
    n, size, m = len(weights), len(documents), len(names)
    texts = [[text([f"{x:g}" for x in w], i) for i in range(size)] for w in weights]
    return SweepResult(
        names=names,
        kl_weights=np.repeat(np.asarray(alphas, np.float32), len(grid)),
        reward_weights=weights,
        **{f"prompt_{k}": np.zeros((n, size, m)) for k in ("raw", "normalised")},
        **{f"prompt_{k}": np.zeros((n, size)) for k in ("kl", "length", "repetition")},
        other_names=(),
        **{f"prompt_other_{k}": np.zeros((n, size, 0)) for k in ("raw", "normalised")},
        documents=np.array(documents, object),
        references=np.array([f"reference {i}" for i in range(size)], object),
        completions=np.array(texts, object),
        truncated_prompts=0,
    )


def saved(model_dir, result, step=500):
    folder = model_dir / "evaluation" / str(step)
    folder.mkdir(parents=True)
    result.save(folder / "prompts.npz")
    return str(model_dir)


@pytest.fixture
def runs(tmp_path):
    """Two MODEL_DIRs. At w = (.8, .2) ours is shorter, but for document 5."""
    ours = evaluation(lambda w, i: f"ours {w[0]} {i}" + (" and more" if i == 5 else ""))
    theirs = evaluation(lambda w, i: f"theirs {w[0]} {i}")
    return saved(tmp_path / "ours", ours), saved(tmp_path / "theirs", theirs)


class Judged:
    """A judge that prefers the shorter summary by conciseness, and always the first otherwise."""

    asked: list = []  # noqa: RUF012

    def __call__(self, questions):
        Judged.asked += questions
        for q in questions:
            concise = q.criterion == CONCISENESS
            yield Verdict.FIRST if not concise or len(q.first) < len(q.second) else Verdict.SECOND


@pytest.fixture(autouse=True)
def fresh():
    Judged.asked = []


JUDGE = f"--judge={__name__}.Judged"


def test_the_command_reads_saved_completions_and_writes_rates(runs, tmp_path, capsys):
    command.main([*runs, JUDGE, f"--output={tmp_path / 'out'}"])
    assert [(q.criterion, q.document, q.first, q.second) for q in Judged.asked[-4:]] == [
        (CONCISENESS, DOCUMENTS[5], "ours 0.8 5 and more", "theirs 0.8 5"),
        (CONCISENESS, DOCUMENTS[5], "theirs 0.8 5", "ours 0.8 5 and more"),
        (COMPREHENSIVENESS, DOCUMENTS[5], "ours 0.2 5 and more", "theirs 0.2 5"),
        (COMPREHENSIVENESS, DOCUMENTS[5], "theirs 0.2 5", "ours 0.2 5 and more"),
    ]
    assert [q.reference for q in Judged.asked[::4]] == [f"reference {i}" for i in range(6)]
    made = json.loads((tmp_path / "out/judge.json").read_text())
    assert made["win"]["value"] == pytest.approx(5 / 6)
    assert made["loss"]["value"] == pytest.approx(1 / 6)
    assert made["win"]["low"] < 5 / 6 < made["win"]["high"] <= 1
    assert made["criteria"][COMPREHENSIVENESS]["consistent"]["value"] == 0
    assert (made["ours"], made["theirs"], made["judge"]) == (*runs, JUDGE.partition("=")[2])
    assert made["kl_weight"] == pytest.approx(0.01)
    assert made["reward_weights"] == {CONCISENESS: [0.8, 0.2], COMPREHENSIVENESS: [0.2, 0.8]}
    printed = capsys.readouterr().err
    assert "| ours wins | 0.833 [" in printed
    assert "| conciseness | 0.833 [" in printed
    assert "over 6 of 6 articles" in printed


def test_weights_and_documents_by_flag(runs, tmp_path):
    command.main(
        [*runs, JUDGE, "--concise_weights=1,0", "--comprehensive_weights=0.4,0.6",
         "--num_examples=2", f"--output={tmp_path / 'out'}"]
    )  # fmt: skip
    assert [q.first for q in Judged.asked] == [
        "ours 1 0", "theirs 1 0", "ours 0.4 0", "theirs 0.4 0",
        "ours 1 1", "theirs 1 1", "ours 0.4 1", "theirs 0.4 1",
    ]  # fmt: skip
    assert json.loads((tmp_path / "out/judge.json").read_text())["num_articles"] == 2


def test_the_default_folder_lies_in_ours_and_a_second_call_asks_nothing(runs, tmp_path):
    folder = os.path.join(runs[1], "evaluation/500")
    command.main([runs[0], folder + "/", JUDGE])
    (judged,) = (tmp_path / "ours/evaluation/500/judge").iterdir()
    assert {path.name for path in judged.iterdir()} == {"judge.json", "answers.jsonl"}
    before = (judged / "judge.json").read_text()
    Judged.asked = []
    command.main([runs[0], folder + "/", JUDGE])
    assert Judged.asked == []
    assert (judged / "judge.json").read_text() == before


def test_one_alpha_of_several(runs, tmp_path, capsys):
    several = saved(tmp_path / "several", evaluation(lambda w, i: f"{w} {i}", alphas=(0.01, 0.1)))
    with pytest.raises(SystemExit):
        command.main([several, runs[1], JUDGE])
    assert "several KL weights: give --kl_weight, one of 0.01, 0.1" in capsys.readouterr().err
    command.main([several, runs[1], JUDGE, "--kl_weight=0.01"])
    command.main([runs[0], several, JUDGE])  # ours has one
    with pytest.raises(SystemExit):
        command.main([several, runs[1], JUDGE, "--kl_weight=0.1"])
    assert f"{runs[1]} has no completions at w = (0.8, 0.2), α = 0.1" in capsys.readouterr().err


def changed(**fields):
    return dataclasses.replace(evaluation(lambda w, i: "x"), **fields)


@pytest.mark.parametrize(
    ("theirs", "flags", "message"),
    [
        (
            lambda: evaluation(lambda w, i: "x", points=3), [],
            "theirs2 has no completions at w = (0.8, 0.2), α = 0.01; "
            "it has w = (0, 1), (0.5, 0.5), (1, 0) at α = 0.01",
        ),
        (
            lambda: changed(documents=np.array([*DOCUMENTS[:3], "other", *DOCUMENTS[4:]], object)),
            [], "different documents; the first that differs is document 3: 'document 3' and 'oth",
        ),
        (
            lambda: evaluation(lambda w, i: "x", documents=DOCUMENTS[:4]), [],
            "on 6 documents, {theirs} on 4; --num_examples=4 compares those that both have",
        ),
        (lambda: changed(), ["--num_examples=7"], "--num_examples=7: "),
        (lambda: changed(), ["--num_examples=0"], "--num_examples=0: "),
        (
            lambda: changed(names=("nli", "rouge")), [],
            "cannot be compared: their objectives are nli, tldr and nli, rouge",
        ),
        (
            lambda: changed(), ["--concise_weights=0.5,0.25,0.25"],
            "w = (0.5, 0.25, 0.25) has 3 weights, but {ours} has 2 objectives: nli, tldr",
        ),
        (lambda: changed(), ["--concise_weights=a,b"], "'a,b' is not a list of numbers"),
        (lambda: changed(), ["--judge=http://localhost:1/v1"], "needs --judge_model"),
        (lambda: changed(), ["--judge=reward:ruge"], "unknown reward 'ruge'"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(runs, tmp_path, capsys, theirs, flags, message):
    path = saved(tmp_path / "theirs2", theirs())
    with pytest.raises(SystemExit) as raised:
        command.main([runs[0], path, JUDGE, *flags])
    assert raised.value.code == 2
    assert message.format(ours=runs[0], theirs=path) in capsys.readouterr().err
    assert Judged.asked == []


def test_fewer_documents_may_be_compared(runs, tmp_path):
    fewer = saved(tmp_path / "fewer", evaluation(lambda w, i: "x", documents=DOCUMENTS[:4]))
    command.main([runs[0], fewer, JUDGE, "--num_examples=4"])
    assert len(Judged.asked) == 16


def test_no_evaluation_there(runs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([runs[0], str(tmp_path / "nowhere"), JUDGE])
    assert "nowhere has no evaluation" in capsys.readouterr().err


def chat_flags(chat_server, *runs):
    return [
        *runs,
        f"--judge={chat_server.url}",
        "--judge_model=m",
        "--concurrency=1",
        "--retries=0",
    ]


def test_malformed_answers_are_counted_and_asked_again_on_request(
    runs, chat_server, tmp_path, capsys
):
    # Of document 0, both answers about conciseness.
    chat_server.script = [(200, {"choices": []}), (200, b"")]
    flags = [*chat_flags(chat_server, *runs), f"--output={tmp_path / 'out'}"]
    command.main(flags)
    made = json.loads((tmp_path / "out/judge.json").read_text())
    assert (made["undecided"], made["num_articles"], made["judge_model"]) == (1, 6, "m")
    assert made["criteria"][CONCISENESS]["malformed"] == 2
    assert made["criteria"][COMPREHENSIVENESS]["malformed"] == 0
    printed = capsys.readouterr().err
    assert "| 2 of 12 |" in printed
    assert "1 articles lack an answer (malformed) and are left out" in printed
    assert len(chat_server.requests) == 24
    command.main([*flags, "--malformed_again"])
    assert len(chat_server.requests) == 26
    made = json.loads((tmp_path / "out/judge.json").read_text())
    assert (made["undecided"], made["win"]["value"]) == (0, pytest.approx(5 / 6))


def prompts(chat_server):
    return [request["messages"][0]["content"] for _, _, request in chat_server.requests]


def test_an_endpoint_that_fails_ends_it_and_the_same_command_goes_on(runs, chat_server, capsys):
    chat_server.script = [None] * 9 + [(401, b"no key")] * 2
    flags = chat_flags(chat_server, *runs)
    with pytest.raises(SystemExit) as raised:
        command.main(flags)
    assert raised.value.code == 2
    assert "status 401, 'no key'" in capsys.readouterr().err
    failed = len(chat_server.requests)
    (folder,) = pathlib.Path(runs[0], "evaluation/500/judge").iterdir()
    assert [path.name for path in folder.iterdir()] == ["answers.jsonl"]
    command.main(flags)
    assert len(chat_server.requests) - failed == 24 - 9
    assert set(prompts(chat_server)[failed:]).isdisjoint(prompts(chat_server)[:9])


def test_a_run_that_was_killed_asks_only_what_it_lacks(runs, chat_server):
    arguments = chat_flags(chat_server, *runs)
    process = []

    def kill(request):
        process[0].send_signal(signal.SIGKILL)
        return {}

    chat_server.script = [None] * 12 + [kill]
    chat_server.delay = lambda request: 0.1  # so that those before the last are on disk
    process.append(
        subprocess.Popen(
            [sys.executable, "-m", "clp_jax.judge", *arguments], cwd=smoke.ROOT,
            stderr=subprocess.PIPE, text=True,
        )
    )  # fmt: skip
    _, error = process[0].communicate(timeout=120)
    assert process[0].returncode == -signal.SIGKILL, error
    asked, chat_server.delay = prompts(chat_server), lambda request: 0.0
    command.main(arguments)
    again = [prompt for prompt in prompts(chat_server)[len(asked) :] if prompt in asked]
    assert len(set(prompts(chat_server))) == 24
    assert 1 <= len(again) <= 3
