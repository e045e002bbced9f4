"""The data of reward models: pairs from files, from TFDS and from the self-made corpus."""

import json

import numpy as np
import pytest
import tensorflow as tf

from clp_jax.data import pairs, tasks
from clp_jax.data.briefs import pairs as briefs_pairs

LENGTHS = {"document_length": 12, "summary_length": 16}


@pytest.fixture(scope="module")
def vocabulary():
    return tasks.briefs_vocabulary()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def nli_rows(n, start=0):
    """Two hypotheses for each premise."""
    labels = pairs.NLI_LABELS
    return [
        {
            "premise": f"the mayor built boat {(start + i) // 2}",
            "hypothesis": f"boat {i}",
            "label": labels[i % 3],
            "id": start + i,
        }
        for i in range(n)
    ]


def preference_rows(n):
    return [
        {"post": f"the mayor built boat {i}", "better": f"boat {i}", "worse": "tower"}
        for i in range(n)
    ]


def batches(name, split="train", **kwargs):
    return pairs.PairBatches(name, split, **{"batch_size": 4, **LENGTHS, **kwargs})


def padded(tokens, length):
    return (list(tokens) + [0] * length)[:length]


# ------------------------------------------------------------------------------------------------
# Tasks and batches
# ------------------------------------------------------------------------------------------------


def test_batches_of_nli(tmp_path, vocabulary):
    name = pairs.nli_jsonl(vocabulary, *[write(tmp_path / "a.jsonl", nli_rows(10))] * 2, name="p1")
    seen = []
    for batch in batches(name, "validation", repeat=False):
        assert batch.summaries.shape == (len(batch.rows), 1, 16)
        assert {x.dtype for x in (batch.documents, batch.summaries, batch.labels)} == {
            np.dtype(np.int32)
        }
        for document, summaries, label, row in zip(
            batch.documents, batch.summaries, batch.labels, batch.rows, strict=True
        ):
            assert document.tolist() == padded(vocabulary.encode(row["premise"]), 12)
            assert vocabulary.decode(summaries[0][summaries[0] > 0].tolist()) == row["hypothesis"]
            assert vocabulary.eos_id not in summaries
            assert pairs.class_names(name)[label] == row["label"]
            seen.append(row["id"])
    assert sorted(seen) == list(range(10))
    assert seen != list(range(10))
    sizes = [len(b.labels) for b in batches(name, repeat=False, shuffle=False)]
    assert sizes == [4, 4, 2]


def test_batches_of_preferences(tmp_path, vocabulary):
    rows = [
        {"text": f"a boat {i}", "chosen": f"boat {i}", "rejected": f"a tower {i}"} for i in range(6)
    ]
    name = pairs.preference_jsonl(
        vocabulary, *[write(tmp_path / "a.jsonl", rows)] * 2, post_field="text",
        better_field="chosen", worse_field="rejected", name="p2",
    )  # fmt: skip
    batch = next(batches(name, repeat=True, shuffle=False))
    for i in range(4):
        assert batch.rows[i]["post"] == f"a boat {i}"
        better, worse = batch.summaries[i]
        assert better.tolist() == padded(vocabulary.encode(f"boat {i}"), 16)
        assert worse.tolist() == padded(vocabulary.encode(f"a tower {i}"), 16)
    assert batch.labels.tolist() == [0] * 4
    assert pairs.class_names(name) == ()
    assert [row["better"] for row in pairs.records(name, "train")] == [
        f"boat {i}" for i in range(6)
    ]


def test_labels_by_index_and_own_fields(tmp_path, vocabulary):
    rows = [
        {"text": "a boat", "claim": "boat", "gold": gold, "label": "x"} for gold in ("no", 0, 1)
    ]
    name = pairs.nli_jsonl(
        vocabulary, *[write(tmp_path / "a.jsonl", rows)] * 2, labels=["yes", "no"],
        premise_field="text", hypothesis_field="claim", label_field="gold", name="p3",
    )  # fmt: skip
    batch = next(batches(name, repeat=False, shuffle=False))
    assert batch.labels.tolist() == [1, 0, 1]
    assert [row["label"] for row in batch.rows] == ["no", "yes", "no"]
    assert pairs.class_names(name) == ("yes", "no")


@pytest.mark.parametrize(
    ("make", "rows", "field"),
    [
        (pairs.nli_jsonl, nli_rows(800), "premise"),
        (pairs.preference_jsonl, preference_rows(400) * 2, "post"),
    ],
)
def test_no_document_is_in_both_splits(tmp_path, vocabulary, make, rows, field):
    rows = [*rows, *({**row, field: row[field] + " "} for row in rows[:100])]
    name = make(vocabulary, write(tmp_path / "a.jsonl", rows), validation_fraction=0.2, name="p4")
    train, validation = (pairs.records(name, split) for split in ("train", "validation"))
    documents = [{row[field].strip() for row in part} for part in (train, validation)]
    assert documents[0].isdisjoint(documents[1])
    assert len(train) + len(validation) == 900
    assert 50 <= len(documents[1]) <= 110  # 80 of 400 are expected, with a deviation of 8


@pytest.mark.parametrize("make", [pairs.nli_jsonl, pairs.preference_jsonl])
def test_position_is_restored_exactly(tmp_path, vocabulary, make):
    rows = [{**a, **b} for a, b in zip(nli_rows(60), preference_rows(60), strict=True)]
    path = write(tmp_path / "a.jsonl", rows)
    name = make(vocabulary, path, name="p5")
    unbroken = batches(name, repeat=True, seed=1)
    for _ in range(20):  # more than one epoch
        next(unbroken)
    position = unbroken.position()
    expected = [next(unbroken) for _ in range(20)]
    resumed = batches(name, repeat=True, seed=1)
    resumed.restore(position)
    for batch in expected:
        got = next(resumed)
        np.testing.assert_array_equal(got.documents, batch.documents)
        np.testing.assert_array_equal(got.summaries, batch.summaries)
        np.testing.assert_array_equal(got.labels, batch.labels)
        assert got.rows == batch.rows
    other = batches(name, repeat=True, seed=2)
    assert not all(next(other).rows == batch.rows for batch in expected)


def test_documents_are_trimmed_and_summaries_are_not(tmp_path, vocabulary):
    rows = nli_rows(6)
    rows[4] |= {"premise": "boat " * 30, "hypothesis": "boat " * 5}
    name = pairs.nli_jsonl(vocabulary, *[write(tmp_path / "a.jsonl", rows)] * 2, name="p6")
    tokens = [vocabulary.encode(rows[4][field]) for field in ("premise", "hypothesis")]
    longest = len(tokens[1])
    assert longest > max(len(vocabulary.encode(f"boat {i}")) for i in range(6))
    options = {"repeat": False, "shuffle": False, "batch_size": 6}
    batch = next(batches(name, summary_length=longest, **options))
    assert batch.documents[4].tolist() == tokens[0][:12]
    assert batch.summaries[4, 0].tolist() == tokens[1]
    message = rf"a.jsonl:5: 'hypothesis' has {longest} tokens, .* summary_length={longest - 1}: 'b"
    with pytest.raises(ValueError, match=message):
        batches(name, summary_length=longest - 1, **options)


def test_the_worse_summary_is_not_trimmed_either(tmp_path, vocabulary):
    rows = preference_rows(3)
    rows[1]["worse"] = "tower " * 20
    name = pairs.preference_jsonl(vocabulary, *[write(tmp_path / "a.jsonl", rows)] * 2, name="p7")
    with pytest.raises(ValueError, match=r"a.jsonl:2: 'worse' has \d+ tokens"):
        batches(name, repeat=True)


def test_length_of_summaries_with_another_vocabulary(tmp_path):
    import seqio

    name = pairs.preference_jsonl(
        seqio.ByteVocabulary(), *[write(tmp_path / "a.jsonl", preference_rows(3))] * 2, name="p7b"
    )
    batch = next(batches(name, summary_length=6, repeat=False))
    assert (batch.summaries > 0).sum(axis=2).tolist() == [[6, 5]] * 3
    with pytest.raises(ValueError, match=r"a.jsonl:1: 'better' has 6 tokens"):
        batches(name, summary_length=5, repeat=False)


# ------------------------------------------------------------------------------------------------
# Errors
# ------------------------------------------------------------------------------------------------

GOOD = json.dumps({**nli_rows(1)[0], **preference_rows(1)[0]}) + "\n"


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        ("nli", {"label": "entails"}, "unknown label 'entails'; nearest: entailment, "),
        ("nli", {"label": 3}, "the label is 3, expected one of entailment, .* from 0 to 2"),
        ("nli", {"label": -1}, "the label is -1"),
        ("nli", {"label": True}, "the label is True"),
        ("nli", {"label": None}, "the label is None"),
        ("nli", {"label": [1]}, r"the label is \[1\]"),
        ("nli", {"label": ...}, "unknown field 'label'; nearest: "),
        ("nli", {"premise": ""}, "field 'premise' is blank"),
        ("nli", {"hypothesis": " \n"}, "field 'hypothesis' is blank"),
        ("nli", {"hypothesis": ...}, "unknown field 'hypothesis'; nearest: "),
        ("preference", {"post": " "}, "field 'post' is blank"),
        ("preference", {"better": ""}, "field 'better' is blank"),
        ("preference", {"worse": "\t"}, "field 'worse' is blank"),
        ("preference", {"worse": 3}, "field 'worse' is 3, expected a string"),
        ("preference", {"better": ...}, "unknown field 'better'; nearest: "),
        ("preference", {"worse": " boat 0 "}, "'better' and 'worse' are the same: 'boat 0'"),
    ],
)
def test_bad_lines(tmp_path, vocabulary, make, change, message):
    row = {**json.loads(GOOD), **change}
    row = {field: value for field, value in row.items() if value is not ...}
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD + "\n" + json.dumps(row) + "\n")
    register = {"nli": pairs.nli_jsonl, "preference": pairs.preference_jsonl}[make]
    with pytest.raises(ValueError, match=r"a.jsonl:3: " + message):
        register(vocabulary, str(path))


@pytest.mark.parametrize("make", [pairs.nli_jsonl, pairs.preference_jsonl])
def test_bad_files(tmp_path, vocabulary, make):
    path = tmp_path / "a.jsonl"
    for content, message in (
        ("\n", "a.jsonl is empty; expected one JSON object with '"),
        (GOOD + "{", "a.jsonl:2: not valid JSON"),
        (GOOD + "[]", "a.jsonl:2: expected a JSON object"),
        (GOOD, "a.jsonl has no (train|validation) examples with validation_fraction=0.1"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            make(vocabulary, str(path))
    path.write_text(GOOD)
    with pytest.raises(ValueError, match="/nowhere.jsonl is not a file"):
        make(vocabulary, str(path), "/nowhere.jsonl")


def test_bad_labels(vocabulary):
    for make in (lambda labels: pairs.nli_jsonl(vocabulary, "/nowhere", labels=labels),
                 lambda labels: pairs.anli(vocabulary, labels=labels)):  # fmt: skip
        with pytest.raises(ValueError, match="labels has 'yes' twice"):
            make(("yes", "no", "yes"))
        with pytest.raises(ValueError, match="labels must be two or more names"):
            make(("yes",))


def test_unknown_task_and_split(vocabulary):
    pairs.briefs_nli(vocabulary, 4, 4)
    message = "unknown task of pairs 'brief_nli'; nearest: briefs_nli"
    with pytest.raises(ValueError, match=message):
        pairs.class_names("brief_nli")
    with pytest.raises(ValueError, match=message):
        batches("brief_nli", repeat=True)
    with pytest.raises(ValueError, match=r"unknown split 'test' \(from task 'briefs_nli'\)"):
        batches("briefs_nli", "test", repeat=True)


@pytest.mark.parametrize("make", [pairs.briefs_nli, pairs.briefs_preferences])
def test_empty_splits(vocabulary, make):
    with pytest.raises(ValueError, match="has no validation examples with validation_size=0"):
        make(vocabulary, 4, 0)


# ------------------------------------------------------------------------------------------------
# TFDS
# ------------------------------------------------------------------------------------------------


def store(folder, name, round_name, rows, texts=("context", "hypothesis")):
    tfds = pytest.importorskip("tensorflow_datasets")
    features = {text: tfds.features.Text() for text in ("uid", *texts)}
    parts = {"train": rows, "validation": rows[:2]}
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        config=round_name,
        version="0.1.0",
        features=tfds.features.FeaturesDict(
            {**features, "label": tfds.features.ClassLabel(names=["e", "n", "c"])}
        ),
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices(
                {
                    **{text: [f"{text} {round_name} {i}" for i in part] for text in features},
                    "label": [i % 3 for i in part],
                }
            )
            for split, part in parts.items()
        },
        data_dir=str(folder),
    )


def test_anli_through_tfds(tmp_path, vocabulary):
    store(tmp_path, "anli", "r2", range(5))
    store(tmp_path, "anli", "r3", range(7))
    name = pairs.anli(vocabulary, data_dir=str(tmp_path))
    rows = pairs.records(name, "train")
    assert len(rows) == 7
    for row in rows:
        text, round_name, i = row["premise"].split()
        assert (text, round_name) == ("context", "r3")
        assert row["hypothesis"] == f"hypothesis r3 {i}"
        assert row["label"] == ("entailment", "neutral", "contradiction")[int(i) % 3]
    name = pairs.anli(vocabulary, ("anli/r2", "anli/r3"), data_dir=str(tmp_path))
    assert len(pairs.records(name, "train")) == 12
    batch = next(batches(name, "validation", repeat=False, shuffle=False))
    assert len(batch.rows) == 4
    assert [pairs.class_names(name)[i] for i in batch.labels] == [r["label"] for r in batch.rows]
    name = pairs.anli(vocabulary, data_dir=str(tmp_path), labels=("yes", "no"))
    with pytest.raises(ValueError, match="anli/r3 train example .: the label is 2, .* yes, no"):
        pairs.records(name, "train")


def test_tfds_data_of_other_features(tmp_path, vocabulary):
    store(tmp_path, "other", "r1", range(3), texts=("premise", "hypothesis"))
    name = pairs.anli(vocabulary, "other/r1", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="other/r1 train example 0: unknown feature 'context'; "):
        pairs.records(name, "train")


# ------------------------------------------------------------------------------------------------
# Briefs
# ------------------------------------------------------------------------------------------------


def test_briefs_tasks(vocabulary):
    name = pairs.briefs_nli(vocabulary, 40, 12, seed=2)
    assert pairs.class_names(name) == briefs_pairs.LABELS
    assert pairs.records(name, "validation") == briefs_pairs.nli("validation", 12, seed=2)
    lengths = {"document_length": 128, "summary_length": 64}
    for batch in batches(name, "validation", repeat=False, **lengths):
        for document, row in zip(batch.documents, batch.rows, strict=True):
            assert vocabulary.decode(document[document > 0].tolist()) == row["premise"]
    name = pairs.briefs_preferences(vocabulary, 40, 12, seed=2, hard=False)
    expected = briefs_pairs.preferences("train", 40, seed=2, hard=False)
    assert pairs.records(name, "train") == expected
    batch = next(batches(name, repeat=True, **lengths))
    for i, row in enumerate(batch.rows):
        texts = [vocabulary.decode(tokens[tokens > 0].tolist()) for tokens in batch.summaries[i]]
        assert texts == [row["better"], row["worse"]]
