import base64
import csv
import json
import re

import numpy as np
import pytest
import sweeps

from clp_jax import compare
from clp_jax.evaluation import (
    alignment,
    comparison,
    comparison_plots,
    comparison_tables,
    generations,
    result,
)

CONVEX = np.array([[0.9, 0.1], [0.6, 0.6], [0.1, 0.9]])
LINEAR = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])
OPTIONS = {"prompts": 30, "noise": 0.1, "alphas": [0.1] * 3, "kl": [1.0, 0.5, 0.2]}


@pytest.fixture
def runs(tmp_path):
    """MODEL_DIRs: clp with two evaluated steps, rs with one."""
    for step, share in ((100, 0.5), (500, 1.0)):
        sweeps.save(sweeps.sweep(share * CONVEX, seed=step, **OPTIONS), tmp_path / "clp", step)
    sweeps.save(sweeps.sweep(LINEAR, seed=1, **OPTIONS), tmp_path / "rs", 500)
    return [str(tmp_path / name) for name in ("clp", "rs")]


def main(*arguments):
    compare.main([*arguments, "--resamples=50"])


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def records(folder):
    """metrics.json's numbers: (run, metric, objective, weighting or None) -> record."""
    rows = json.loads((folder / "metrics.json").read_text())["metrics"]
    return {
        (r["run"], r["metric"], r.get("objective"), tuple(r["w"]) if "w" in r else r.get("step")): r
        for r in rows
    }


def test_report_of_two_rewards(runs, tmp_path, capsys):
    main(*runs, "--baseline=rs", f"--output={tmp_path / 'report'}")
    report = tmp_path / "report"
    assert files(report) == [
        "bars.png", "fronts.png", "generations.md", "metrics.csv", "metrics.json", "metrics.txt",
        "progress.png", "report.html", "reward_kl.png",
    ]  # fmt: skip
    text = (report / "metrics.txt").read_text()
    assert capsys.readouterr().out == text
    assert "30 prompts, 3 weightings" in text
    assert "Reference point of every hypervolume: (0, 0) for (nli, rouge)." in text
    assert "hypervolume, reference (0, 0)" in text
    assert "points not above (0, 0)" in text
    centre = next(line for line in text.splitlines() if line.startswith("(0.5, 0.5)"))
    weights, *cells, difference, length, repetition = re.split(r"  +", centre)
    assert weights == "(0.5, 0.5)"
    assert cells == ["clp", "0.600", "0.600", "0.500", "0.490", "0.490", "0.490"]
    assert difference.startswith("0.090 [")
    assert (length, repetition) == ("11.0", "0.000")


def test_every_hypervolume_has_its_reference_point(runs, tmp_path):
    main(*runs, f"--output={tmp_path}", "--reference_point=0.1,-0.05")
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    volumes = [row for row in rows if "hypervolume" in row["metric"]]
    assert len(volumes) == 4  # two runs, and two steps of one
    assert {row["reference_point"] for row in volumes} == {"0.1 -0.05"}
    for r in records(tmp_path).values():
        assert ("reference_point" in r) == (
            "hypervolume" in r["metric"] or r["metric"] == "points_not_above"
        )
    for name in ("metrics.txt", "report.html"):
        text = (tmp_path / name).read_text()
        mentions = re.findall(r"hypervolume[^(\n]*\(([^)]*)\)", text)
        assert len(mentions) >= 3
        assert set(mentions) == {"0.1, -0.05"}


def test_csv_and_json_hold_the_numbers_of_the_comparison(runs, tmp_path):
    main(*runs, "--baseline=rs", f"--output={tmp_path}")
    compared = comparison.compare([alignment.read(r) for r in runs], "rs", resamples=50)
    (front,) = compared.fronts
    found = records(tmp_path)
    metrics = front.metrics["clp"]
    expected = {
        ("clp", "hypervolume", None, None): metrics.hypervolume.value,
        ("clp", "range", "rouge", None): metrics.ranges[1].value,
        ("clp", "kendall_tau", "nli", None): metrics.controllability[0].value,
        ("clp", "self_regret", None, None): metrics.self_regret.value,
        ("rs", "evenness", None, None): front.metrics["rs"].evenness.value,
        ("rs", "extent", None, None): front.metrics["rs"].extent.value,
        ("rs", "points_not_above", None, None): front.not_above["rs"],
        ("clp", "mean_difference", None, None): front.dominance["clp"].mean,
        ("clp", "least_difference", None, None): front.dominance["clp"].least,
        ("clp", "share_above", None, None): front.dominance["clp"].share_above,
        ("clp", "igd_plus", None, None): front.igd_plus["clp"][0],
        ("clp", "igd_plus_of_baseline", None, None): front.igd_plus["clp"][1],
        ("clp", "V", None, (0.5, 0.5)): 0.49,
        ("clp", "difference", None, (0.5, 0.5)): 0.09,
        ("clp", "shortfall", None, (0.5, 0.5)): 1 - 0.49 / 0.4,
        ("rs", "reward", "rouge", (0.0, 1.0)): 0.9,
        ("rs", "V_objective", "rouge", (0.0, 1.0)): 0.9 * 0.9 - 0.1 * 0.2,
        ("rs", "kl", None, (1.0, 0.0)): 1.0,
        ("rs", "length", None, (0.0, 1.0)): 12.0,
        ("rs", "repetition", None, (0.0, 1.0)): 0.0,
        ("clp", "progress_range", "nli", 100): 0.9 * 0.4 - 0.1 * 0.8,
        ("clp", "progress_length", None, 100): 11.0,
    }
    for key, value in expected.items():
        assert found[key]["value"] == pytest.approx(value, abs=1e-6), key
    assert found["clp", "hypervolume", None, None]["low"] == metrics.hypervolume.low
    assert found["clp", "hypervolume", None, None]["high"] == metrics.hypervolume.high
    assert found["clp", "difference", None, (0.5, 0.5)]["low"] == front.dominance["clp"].low[1]
    assert {r["metric"] for r in found.values() if "baseline" in r} == {
        "mean_difference", "least_difference", "share_above", "igd_plus", "igd_plus_of_baseline",
        "difference", "shortfall",
    }  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    for row, record in zip(rows, found.values(), strict=True):
        assert (row["run"], row["metric"]) == (record["run"], record["metric"])
        assert (float(row["value"]) if row["value"] else None) == record["value"]
    header = json.loads((tmp_path / "metrics.json").read_text())
    assert header["baseline"] == "rs"
    assert header["runs"]["clp"].endswith("clp/evaluation/500/prompts.npz")


def test_html_report_holds_the_figures_and_the_generations(runs, tmp_path):
    main(*runs, f"--output={tmp_path}", "--prompts=2")
    page = (tmp_path / "report.html").read_text()
    embedded = [base64.b64decode(x) for x in re.findall(r'src="data:image/png;base64,(.*?)"', page)]
    figures = ("fronts.png", "reward_kl.png", "bars.png", "progress.png")
    assert embedded == [(tmp_path / name).read_bytes() for name in figures]
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    for table in ("Fronts at α = 0.1", "Against clp at α = 0.1", "Weightings at α = 0.1",
                  "Progress over training steps"):  # fmt: skip
        assert f"<h2>{table}</h2>" in page
    assert "completion 1 of prompt 1" in page
    assert "reference 1" in page
    assert "completion 1 of prompt 2" not in page


def test_generations_stand_side_by_side(runs):
    compared = comparison.compare([alignment.read(run) for run in runs], resamples=2)
    shown = generations.examples(compared, 99)
    assert len(shown) == 30
    example = shown[4]
    assert (example.document, example.reference) == ("document 4", "reference 4")
    assert [row["w (nli, rouge)"] for row in example.rows] == ["(1, 0)", "(0.5, 0.5)", "(0, 1)"]
    scores = comparison_tables.numbers(compared.runs[1].result.prompt_normalised[1, 4])
    assert example.rows[1]["rs"] == f"completion 1 of prompt 4\n(R nli, R rouge: {scores})"
    assert list(example.rows[0]) == ["w (nli, rouge)", "clp", "rs"]


def test_texts_with_markup_are_shown_as_texts():
    nasty = "a | b\n# c <b> [x](http://example.com) `d` *e* __f__ \\ ~~g~~ & h"
    swept = sweeps.sweep(CONVEX, documents=np.array([nasty] * 4, object),
                         completions=np.full((3, 4), nasty, object))  # fmt: skip
    run = alignment.EvaluatedRun("a|b", "p", swept)
    text = generations.markdown(generations.examples(comparison.compare([run], resamples=2), 1))
    escaped = (
        r"a \| b<br>\# c &lt;b&gt; \[x\](http://example.com) \`d\` \*e\* \_\_f\_\_ "
        r"\\ \~\~g\~\~ &amp; h"
    )
    assert text.count(escaped) == 4
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}


def test_one_run_alone_has_no_baseline(runs, tmp_path):
    main(runs[1], f"--output={tmp_path / 'report'}", "--prompts=0")
    assert files(tmp_path / "report") == [
        "fronts.png", "generations.md", "metrics.csv", "metrics.json", "metrics.txt",
        "report.html", "reward_kl.png",
    ]  # fmt: skip
    assert "Against" not in (tmp_path / "report/metrics.txt").read_text()
    assert "Generations" not in (tmp_path / "report/report.html").read_text()


def test_figures_of_an_older_report_do_not_stay(runs, tmp_path):
    main(*runs, f"--output={tmp_path}")
    (tmp_path / "mine.png").write_bytes(b"")
    main(runs[1], f"--output={tmp_path}")
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "fronts.png", "reward_kl.png", "mine.png",
    }  # fmt: skip


@pytest.mark.parametrize("m", [1, 3])
def test_other_numbers_of_rewards(tmp_path, m):
    weights = np.ones((3, 1)) if m == 1 else np.eye(3)
    alphas = [0.01, 0.1, 1.0] if m == 1 else [0.1] * 3
    for name, add in (("a", 0.0), ("_$b", 0.1)):
        rewards = np.linspace(0.2, 0.6, 3 * m).reshape(3, m) + add
        for step in (1, 2):
            made = sweeps.sweep(rewards, weights, alphas, [2.0, 1.0, 0.0])
            sweeps.save(made, tmp_path / name, step)
    paths = [str(tmp_path / name) for name in ("a", "_$b")]
    main(*paths, f"--output={tmp_path / 'report'}")
    pngs = {path.name for path in (tmp_path / "report").glob("*.png")}
    # With one reward, reward against KL is the front.
    assert pngs == {"bars.png", "reward_kl.png", "progress.png", *["fronts.png"] * (m > 1)}
    text = (tmp_path / "report/metrics.txt").read_text()
    if m == 1:
        assert "Reference point of every hypervolume: (0, -2) for (nli, −KL)." in text
        assert "α = 0.01" in text
    else:
        assert "w (nli, rouge, tldr)" in text
    assert "NaN" not in (tmp_path / "report/metrics.json").read_text()


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn and saved."""
    figures, save = [], comparison_plots.Figure.savefig

    def saved(figure, path, **options):
        figures.append(figure)
        save(figure, path, **options)

    monkeypatch.setattr(comparison_plots.Figure, "savefig", saved)
    return figures


def compared(runs, **options):
    return comparison.compare([alignment.read(run) for run in runs], resamples=50, **options)


def test_fronts_are_drawn_in_the_papers_form(runs, tmp_path, drawn):
    comparison_plots.fronts(compared(runs, baseline="rs"), tmp_path / "f.png")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line for line in axes.lines if line.get_label() in ("clp", "rs")}
    for name, rewards in (("clp", CONVEX), ("rs", LINEAR)):
        values = 0.9 * rewards - 0.1 * np.array([[1.0], [0.5], [0.2]])
        np.testing.assert_allclose(lines[name].get_xydata(), values, atol=1e-6)
    assert lines["rs"].get_linestyle() == "--"
    assert lines["clp"].get_linestyle() == "-"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$V$ nli", "$V$ rouge")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["clp", "rs"]


def test_reward_against_kl(runs, tmp_path, drawn):
    comparison_plots.reward_kl(compared(runs), tmp_path / "f.png")
    line = drawn[0].axes[0].lines[0]
    np.testing.assert_allclose(line.get_xydata(), [[1, 0.9], [0.5, 0.6], [0.2, 0.9]], atol=1e-6)


def test_bars_and_their_whiskers(runs, tmp_path, drawn):
    compared_runs = compared(runs, baseline="rs")
    comparison_plots.bars(compared_runs, tmp_path / "f.png")
    (axes,) = drawn[0].axes
    shortfall = compared_runs.fronts[0].shortfall["clp"]
    (bars,) = [c for c in axes.containers if hasattr(c, "patches")]
    np.testing.assert_allclose([bar.get_height() for bar in bars], shortfall.value)
    (whiskers,) = [c for c in axes.collections if hasattr(c, "get_segments")]
    ends = [segment[:, 1] for segment in whiskers.get_segments()]
    np.testing.assert_allclose(ends, np.stack([shortfall.low, shortfall.high], 1))
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1\n0", "0.5\n0.5", "0\n1"]
    assert axes.get_ylabel() == "$1 - V / V$ of rs (lower is better)"


def test_progress_has_a_line_a_step(runs, tmp_path, drawn):
    comparison_plots.progress(compared(runs), tmp_path / "f.png")
    (axes,) = drawn[0].axes  # rs was evaluated once
    assert axes.get_title() == "clp, α = 0.1"
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["step 100", "step 500"]
    assert axes.lines[0].get_xdata()[0] == pytest.approx(0.9 * 0.45 - 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{rs}", "other={rs}/nowhere"], "nowhere has no evaluation"),
        (["{rs}", "{rs}"], "two runs are called 'rs'"),
        (["{rs}", "--reference_point=0;0"], "--reference_point=0;0: expected numbers between"),
        (["{rs}", "--baseline=clp"], "unknown baseline 'clp'; nearest: rs"),
        (["{rs}", "{broken}"], "is not a file of evaluated prompts"),
    ],
)
def test_errors_are_one_message(runs, tmp_path, capsys, arguments, message):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / result.PROMPTS).write_text("no")
    filled = [a.format(rs=runs[1], broken=broken) for a in arguments]
    with pytest.raises(SystemExit) as stopped:
        main(*filled, f"--output={tmp_path / 'report'}")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("clp_jax.compare: error: ")
    assert message in error
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("flag", ["--prompts=-1", "--resamples=x"])
def test_counts_are_checked(runs, tmp_path, capsys, flag):
    with pytest.raises(SystemExit):
        compare.main([*runs, f"--output={tmp_path}", flag])
    assert f"argument {flag.split('=')[0]}: invalid" in capsys.readouterr().err
