"""The comparison on posts of Reddit, at a size at which its values mean nothing."""

import argparse
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from clp_jax.evaluation import alignment, comparison, comparison_report, result
from clp_jax.evaluation.grids import reward_weights_grid
from clp_jax.policies import prompting

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("nli", "rouge", "tldr")
METHODS = ("full", "attn", "rewarded_soup", "prompting")
WORDS = [a + b for a in ("ba", "do", "ki", "lu", "me") for b in ("n", "r", "st", "ve")]
POSTS = {"train": 24, "validation": 9}


@pytest.fixture(scope="module", autouse=True)
def _experiments_are_importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


def sentence(draw, least, most):
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))


def write_data(folder):
    """Made-up data sets with the fields of the real ones."""
    draw = random.Random(0)
    for name in ("reddit_tldr_2013", "nli", "preferences"):
        (folder / name).mkdir(parents=True)

    def write(path, rows):
        (folder / path).write_text("".join(json.dumps(row) + "\n" for row in rows))

    for split, count in POSTS.items():
        rows = [
            {"document": sentence(draw, 5, 40) + f" {split} {i}", "summary": sentence(draw, 3, 8)}
            for i in range(count)
        ]
        rows[0]["summary"] = sentence(draw, 100, 100)  # too long: left out
        rows[1]["document"] = "“ba­n”…\n don’t"
        write(f"reddit_tldr_2013/{split}.jsonl", rows)
    labels = itertools.cycle(["entailment", "neutral", "not_entailment", "consistent"])
    for name in ("snli_dev_test", "sick", "cad_nli", "rte", "factual_consistency"):
        rows = [
            {"premise": sentence(draw, 4, 9), "hypothesis": sentence(draw, 2, 5), "label": label}
            for label in itertools.islice(labels, 8)
        ]
        write(f"nli/{name}.jsonl", rows)
    posts = [{"dataset": "d", "post_id": str(i), "post": sentence(draw, 9, 12)} for i in range(4)]
    write("preferences/derived_pairs_docs.jsonl", posts)
    pairs = [
        {**posts[i % 4], "better": sentence(draw, 4, 6), "worse": sentence(draw, 4, 6)}
        for i in range(20)
    ]
    for pair in pairs[:10]:
        del pair["post"]
    write("preferences/derived_pairs.jsonl", pairs[:10])
    write("preferences/news_pairwise_human.jsonl", pairs[10:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data/ and arrays/."""
    from experiments.tldr_from_scratch import prepare

    folder = tmp_path_factory.mktemp("tldr")
    write_data(folder / "data")
    prepare.main(
        [
            f"--data={folder / 'data'}", f"--output={folder / 'arrays'}", "--vocab_size=56",
            "--document_length=63", "--summary_length=23",
        ]
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def prepared(folder):
    from experiments.tldr_from_scratch import arrays

    return arrays.read(str(folder / "arrays"))


@pytest.fixture(scope="module")
def processor(folder):
    path = folder / "arrays" / "vocabulary.model"
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def brute_force_lcs(first, second):
    """The longest of all subsequences of `first` that are in `second`, too."""

    def is_subsequence(chosen):
        rest = iter(second)
        return all(token in rest for token in chosen)

    lengths = range(len(first), 0, -1)
    return next(
        (n for n in lengths if any(map(is_subsequence, itertools.combinations(first, n)))), 0
    )


def test_lcs_is_that_of_brute_force():
    from experiments.tldr_from_scratch import rewards

    rng = np.random.default_rng(0)
    first = rng.integers(2, 5, (60, 8)) * (np.arange(8) < rng.integers(0, 9, (60, 1)))
    second = rng.integers(2, 5, (60, 7)) * (np.arange(7) < rng.integers(0, 8, (60, 1)))
    expected = [
        brute_force_lcs(a[a > 0].tolist(), b[b > 0].tolist())
        for a, b in zip(first, second, strict=True)
    ]
    assert len(set(expected)) > 4
    found = rewards.longest_common_subsequence(jnp.asarray(first), jnp.asarray(second))
    assert found.tolist() == expected
    f_measure = rewards.rouge_l(jnp.asarray(first), jnp.asarray(second))
    for value, lcs, a, b in zip(f_measure.tolist(), expected, first, second, strict=True):
        precision, recall = lcs / max((b > 0).sum(), 1), lcs / max((a > 0).sum(), 1)
        harmonic = 200 * precision * recall / (precision + recall) if lcs else 0.0
        assert value == pytest.approx(harmonic, rel=1e-5)


def test_arrays_say_what_the_data_say(prepared, processor):
    data, pieces = prepared.arrays, [processor.id_to_piece(i) for i in range(56)]
    assert list(prepared.pieces) == pieces
    assert len(prepared.documents) == len(data["sft_validation_index"]) == POSTS["validation"] - 1
    assert prepared.documents[0] == '"ban". don\'t'  # the soft hyphen and the newline are gone
    rows = zip(
        data["sft_validation_index"].tolist(),
        data["sft_validation_summaries"].tolist(),
        strict=True,
    )
    for (index, (summary,)), document, reference in zip(
        rows, prepared.documents, prepared.references, strict=True
    ):
        ids = processor.encode(document)
        assert [t for t in data["documents"][index].tolist() if t] == ids[:63]
        assert (
            prepared.decode(summary) == reference == processor.decode(processor.encode(reference))
        )
    assert data["nli_train_summaries"].shape[1:] == (1, 69)
    assert data["preference_train_summaries"].shape[1:] == (2, 69)


def test_labels_and_weak_pairs(prepared):
    data = prepared.arrays
    posts = {
        prepared.decode(data["documents"][i].tolist()): prepared.decode(s[0].tolist())
        for i, s in zip(data["sft_train_index"], data["sft_train_summaries"], strict=True)
    }
    pairs = zip(
        data["nli_train_index"],
        data["nli_train_summaries"],
        data["nli_train_labels"].tolist(),
        strict=True,
    )
    seen = []
    for index, (summary,), label in pairs:
        own = posts.get(prepared.decode(data["documents"][index].tolist()))
        if own is not None:
            seen.append(label)
            assert (prepared.decode(summary.tolist()) == own) == (label == 0)
    assert {0, 1} == set(seen)
    labels = np.concatenate([data["nli_train_labels"], data["nli_validation_labels"]])
    weak = 2 * sum(POSTS.values()) - 4  # two pairs a post; the long summary is in two of each split
    assert len(labels) == 40 + weak
    assert np.count_nonzero(labels == 0) == 20 + sum(POSTS.values()) - 2
    better, worse = np.moveaxis(np.asarray(data["preference_train_summaries"]), 1, 0)
    cut = [prepared.decode(b.tolist()).startswith(prepared.decode(w.tolist()) + " ")
           for b, w in zip(better, worse, strict=True)]  # fmt: skip
    assert sum(cut) == POSTS["train"] - 1


def test_eos_stands_behind_the_tokens():
    from experiments.tldr_from_scratch.arrays import with_eos

    tokens = jnp.array([[5, 6, 0], [7, 8, 9], [0, 0, 0]])
    assert with_eos(tokens).tolist() == [[5, 6, 1, 0], [7, 8, 9, 1], [1, 0, 0, 0]]


@pytest.mark.parametrize("weights", [(0.2, 0.37, 0.43), (1.0, 0.0, 0.0)])
def test_prompts_say_their_weights(prepared, processor, weights):
    from experiments.tldr_from_scratch.arrays import with_weights

    prompts = jnp.array([[5, 6, 1, 0], [7, 1, 0, 0]])
    table = prepared.arrays["weight_prefixes"]
    found = with_weights(prompts, jnp.asarray(weights), table)
    assert found.shape == (2, 3 * table.shape[2] + 4)
    for row, prompt in zip(found.tolist(), ([5, 6, 1], [7, 1]), strict=True):
        tokens = [t for t in row if t]
        assert row[: len(tokens)] == tokens
        assert tokens[-len(prompt) :] == prompt
        said = processor.decode(tokens[: -len(prompt)])
        assert said == prompting.weight_prefix(NAMES, weights).strip()


def test_batches_have_each_row_once():
    from experiments.tldr_from_scratch import arrays

    batches = arrays.shuffled(10, 3, seed=0)
    first, second = (np.concatenate([next(batches) for _ in range(3)]) for _ in range(2))
    assert len(set(first)) == len(set(second)) == 9
    assert first.tolist() != second.tolist()
    rows = [row[:count] for row, count in arrays.in_order(10, 4)]
    assert np.concatenate(rows).tolist() == list(range(10))


def test_ranges_are_percentiles_and_never_empty():
    from experiments.tldr_from_scratch import rewards

    scores = np.column_stack([np.arange(101.0), np.full(101, 3.0)])
    ranges = rewards.proposed_ranges(scores)
    assert ranges == [(5.0, 95.0), (3.0, 4.0)]
    values = rewards.normalised(jnp.array([[5.0, 3.0], [95.0, 4.0]]), jnp.asarray(ranges))
    np.testing.assert_allclose(values, [[0, 0], [1, 1]], atol=1e-6)


def test_part_ends_at_its_time_or_step():
    from experiments.tldr_from_scratch.setting import Part

    assert list(Part("a", None, 3)) == [0, 1, 2]
    assert list(Part("b", 0.0, None)) == []
    assert list(Part("c", 0.0, 3)) == []


# Most of the time goes to compilation.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
BARE = """
import importlib.machinery, sys

ABSENT = {"tensorflow", "seqio", "gin", "clu", "matplotlib", "scipy", "moocore", "sentencepiece",
          "rouge_score", "safetensors"}
find = importlib.machinery.PathFinder.find_spec

def find_spec(name, *arguments):
    return None if name.partition(".")[0] in ABSENT else find(name, *arguments)

importlib.machinery.PathFinder.find_spec = find_spec
assert importlib.util.find_spec("tensorflow") is None
from experiments.tldr_from_scratch import run

flags = sys.argv[1:]
run.main(["reward_models_and_reference", *flags])
run.main(["policies", *flags])
"""


@pytest.mark.very_slow
def test_both_commands_on_a_bare_machine_and_a_report_of_them(folder):
    output = folder / "output"
    flags = [f"--arrays={folder / 'arrays'}", f"--output={output}", "--size=tiny", "--steps=2",
             "--batch_size=4", "--prompts=6"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", BARE, *flags],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": XLA_FLAGS},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ETA" in done.stderr

    ranges = json.loads((output / "results" / "ranges.json").read_text())
    assert all(low < high for low, high in ranges["ranges"])
    assert [fit["steps"] for fit in ranges["fits"].values()] == [2, 2, 2]
    report = json.loads((output / "results" / "policies.json").read_text())["methods"]
    assert tuple(report) == METHODS
    for method in METHODS:
        assert sum(part["steps"] for part in report[method]["parts"]) == 2
        assert report[method]["complete"]
        check_sweep(
            result.load(result.find(str(output / "results" / method))), ranges, report, method
        )
    check_comparison(output / "results", folder / "report")


def check_sweep(swept, ranges, report, method):
    assert swept.names == NAMES
    np.testing.assert_allclose(swept.reward_weights, reward_weights_grid(3))
    assert swept.completions.shape == (13, 6)
    assert np.all((swept.prompt_length >= 1) & (swept.prompt_length <= 24))
    low, high = np.array(ranges["ranges"]).T
    np.testing.assert_allclose(
        swept.prompt_normalised, (swept.prompt_raw - low) / (high - low), atol=1e-4
    )
    np.testing.assert_allclose(swept.values, report[method]["values"], atol=1e-3)
    assert np.all(np.isfinite(swept.prompt_values))


def check_comparison(results, output):
    compared = comparison.compare(
        [alignment.read(str(results / method)) for method in METHODS],
        baseline="rewarded_soup",
        resamples=20,
    )
    assert [run.label for run in compared.runs] == list(METHODS)
    text = comparison_report.write(compared, output, prompts=1)
    assert "prompting" in text
    assert (output / "report.html").is_file()


def test_second_command_names_the_first(folder):
    from experiments.tldr_from_scratch import run

    flags = [f"--arrays={folder / 'arrays'}", f"--output={folder / 'nowhere'}", "--size=tiny"]
    with pytest.raises(SystemExit, match="run reward_models_and_reference first"):
        run.main(["policies", *flags])
    with pytest.raises(SystemExit, match="run prepare first"):
        run.main(["policies", f"--arrays={folder}", flags[1]])


def test_budget_is_divided():
    from experiments.tldr_from_scratch.setting import Setting

    flags = argparse.Namespace(minutes=9, steps=None)
    setting = Setting(flags, 100.0, None, None, None)
    assert setting.deadline(0.5) == 100 + 270
    flags.steps = 3
    assert setting.deadline(0.5) is None
