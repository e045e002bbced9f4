import json

import numpy as np
import pytest
import seqio
import smoke
import tensorflow as tf

from clp_jax.data import tasks
from clp_jax.data.batches import Batches
from clp_jax.settings.config import DatasetConfig

LENGTHS = {"inputs": 16, "targets": 8}


@pytest.fixture(scope="module")
def vocabulary():
    return tasks.briefs_vocabulary()


def records(n, words="the mayor built a boat in Paris"):
    return [{"document": f"{words} {i}", "summary": f"boat {i}", "id": str(i)} for i in range(n)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(name, split="train", **kwargs):
    return DatasetConfig(name, kwargs.pop("lengths", LENGTHS), split, **{"batch_size": 4, **kwargs})


def test_batches_hold_tokens_and_the_text_that_belongs_to_them(tmp_path, vocabulary):
    name = tasks.jsonl(vocabulary, write(tmp_path / "a.jsonl", records(40)), name="j1")
    seen = set()
    for batch, _ in zip(Batches(config(name), repeat=True, seed=3), range(20), strict=False):
        for row, reference, text, document, summary in zip(
            batch.prompts, batch.references, batch.prompt_texts,
            batch.columns["document"], batch.columns["summary"], strict=True,
        ):  # fmt: skip
            assert text == "summarize: " + document
            expected = [*vocabulary.encode(text), vocabulary.eos_id]
            assert row.tolist() == (expected + [0] * 16)[:16]
            assert reference.tolist() == ([*vocabulary.encode(summary), 1] + [0] * 8)[:8]
            seen.add(document)
        assert set(batch.columns) == {"document", "summary", "id"}
    assert len(seen) > 20
    assert seen <= {row["document"] for row in tasks.columns(name, "train")}


def test_validation_is_held_out_when_there_is_one_file(tmp_path, vocabulary):
    name = tasks.jsonl(vocabulary, write(tmp_path / "a.jsonl", records(400)), name="j2")
    train, validation = tasks.columns(name, "train"), tasks.columns(name, "validation")
    assert {r["id"] for r in train}.isdisjoint(r["id"] for r in validation)
    assert len(train) + len(validation) == 400
    assert 5 <= len(validation) <= 40


def test_own_field_names_and_two_files(tmp_path, vocabulary):
    rows = [{"text": "a boat", "title": "boat"}]
    train, validation = write(tmp_path / "t.jsonl", rows), write(tmp_path / "v.jsonl", rows * 2)
    name = tasks.jsonl(
        vocabulary, train, validation, document_field="text", summary_field="title",
        prompt_prefix="tl;dr ", name="j3",
    )  # fmt: skip
    assert len(tasks.columns(name, "validation")) == 2
    assert tasks.columns(name, "train")[0]["prompt"] == "tl;dr a boat"
    assert tasks.columns(name, "train")[0]["summary"] == "boat"
    assert tasks.prompt_prefix(name) == "tl;dr "


def test_evaluation_sees_every_example_once(tmp_path, vocabulary):
    path = write(tmp_path / "a.jsonl", records(10))
    name = tasks.jsonl(vocabulary, path, path, name="j4")
    batches = list(Batches(config(name, "validation", shuffle=False), repeat=False))
    assert [len(b.prompts) for b in batches] == [4, 4, 2]
    assert [i for b in batches for i in b.columns["id"]] == [str(i) for i in range(10)]


def test_truncated_prompts_are_counted(tmp_path, vocabulary):
    rows = [*records(3), {"document": "boat " * 40, "summary": "boat", "id": "long"}]
    name = tasks.jsonl(vocabulary, *[write(tmp_path / "a.jsonl", rows)] * 2, name="j5")
    batch = next(Batches(config(name, shuffle=False), repeat=True))
    assert batch.truncated.tolist() == [False, False, False, True]
    assert batch.prompts.shape == (4, 16)
    assert batch.prompt_texts[3].count("boat") == 40  # rewards see the whole document
    at_limit = [{"document": "boat " * 3, "summary": "boat"}] * 4
    name = tasks.jsonl(vocabulary, *[write(tmp_path / "b.jsonl", at_limit)] * 2, name="j5b")
    length = len(vocabulary.encode("summarize: " + "boat " * 3)) + 1
    for room, expected in ((length, 0), (length - 1, 4)):
        lengths = {"inputs": room, "targets": 8}
        assert next(Batches(config(name, lengths=lengths), repeat=True)).truncated.sum() == expected


def test_position_is_restored_exactly(tmp_path, vocabulary):
    name = tasks.jsonl(vocabulary, write(tmp_path / "a.jsonl", records(60)), name="j6")
    unbroken = Batches(config(name), repeat=True, seed=1)
    for _ in range(20):  # more than one epoch
        next(unbroken)
    position = unbroken.position()
    expected = [next(unbroken).prompts for _ in range(20)]
    resumed = Batches(config(name), repeat=True, seed=1)
    resumed.restore(position)
    for prompts in expected:
        np.testing.assert_array_equal(next(resumed).prompts, prompts)
    other = Batches(config(name), repeat=True, seed=2)
    assert not all(np.array_equal(next(other).prompts, p) for p in expected)


@pytest.mark.parametrize(("inputs", "targets"), [(48, 24), (30, 9)])
def test_tokens_are_those_of_seqios_own_pipeline(vocabulary, inputs, targets):
    name = tasks.briefs(vocabulary, train_size=300, validation_size=20)
    lengths = {"inputs": inputs, "targets": targets}
    batches = Batches(config(name, lengths=lengths, shuffle=False, batch_size=300), repeat=False)
    (ours,) = list(batches)
    converter = seqio.EncDecFeatureConverter(pack=False)
    dataset = seqio.get_dataset(name, lengths, converter, dataset_split="train", shuffle=False)
    (theirs,) = dataset.batch(300).as_numpy_iterator()
    np.testing.assert_array_equal(ours.prompts, theirs["encoder_input_tokens"])
    np.testing.assert_array_equal(ours.references, theirs["decoder_target_tokens"])
    whole = [len(vocabulary.encode(text)) + 1 for text in ours.prompt_texts]
    assert ours.truncated.tolist() == [length > inputs for length in whole]


def test_a_file_sorted_by_class_gives_mixed_batches(tmp_path, vocabulary):
    classes = ["entailment", "neutral", "contradiction"]
    rows = [{"document": f"a boat {i}", "summary": "boat", "label": c}
            for c in classes for i in range(2000)]  # fmt: skip
    path = write(tmp_path / "sorted.jsonl", rows)
    batches = Batches(config(tasks.jsonl(vocabulary, path, path), batch_size=32), repeat=True)
    for batch, _ in zip(batches, range(50), strict=False):
        counts = [batch.columns["label"].count(c) for c in classes]
        assert min(counts) > 0  # P(a batch lacks a class) < 1e-5


def test_a_task_made_elsewhere(vocabulary):
    name = "made_elsewhere"
    if name not in seqio.TaskRegistry.names():
        seqio.TaskRegistry.add(
            name,
            seqio.FunctionDataSource(
                lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
                    {"inputs": ["the boat"] * 4, "targets": ["boat"] * 4}
                ),
                splits=["train"],
            ),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features={k: seqio.Feature(vocabulary) for k in ("inputs", "targets")},
        )
    batch = next(Batches(config(name), repeat=True))
    assert batch.prompt_texts == ["the boat"] * 4
    assert batch.columns == {"document": ["the boat"] * 4, "summary": ["boat"] * 4}


def test_xsum_through_tfds(tmp_path, vocabulary):
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features.FeaturesDict(
        {"document": tfds.features.Text(), "summary": tfds.features.Text()}
    )
    rows = {"train": records(9), "validation": records(5, "a singer sold a piano")}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="xsum",
        version="1.1.0",
        features=features,
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices(
                {field: [row[field] for row in part] for field in ("document", "summary")}
            )
            for split, part in rows.items()
        },
        data_dir=str(tmp_path),
    )
    name = tasks.xsum(vocabulary, data_dir=str(tmp_path))
    got = {row["document"]: row["summary"] for row in tasks.columns(name, "validation")}
    assert got == {row["document"]: row["summary"] for row in rows["validation"]}
    batch = next(Batches(config(name), repeat=True))
    assert all(text.startswith("summarize: the mayor") for text in batch.prompt_texts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; expected one JSON object with 'document', 'summary' a line"),
        ("\n\n", "is empty"),
        ('{"document": "a", "summary": "b"}\n{"document": "a"', r"a.jsonl:2: not valid JSON"),
        ('{"document": "a", "summary": "b"}\n\n[1]\n', r"a.jsonl:3: expected a JSON object"),
        (
            '{"document": "a", "sumary": "b"}',
            r"a.jsonl:1: unknown field 'summary'; nearest: sumary",
        ),
        ('{"document": 3, "summary": "b"}', r"a.jsonl:1: field 'document' is 3, expected a string"),
        ('{"document": " ", "summary": "b"}', r"a.jsonl:1: field 'document' is blank"),
    ],
)
def test_bad_jsonl(tmp_path, vocabulary, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        tasks.jsonl(vocabulary, str(path))


def test_missing_file(vocabulary):
    with pytest.raises(ValueError, match="/nowhere.jsonl is not a file"):
        tasks.jsonl(vocabulary, "/nowhere.jsonl")


def test_too_small_for_a_held_out_split(tmp_path, vocabulary):
    with pytest.raises(ValueError, match="has no (train|validation) examples"):
        tasks.jsonl(vocabulary, write(tmp_path / "a.jsonl", records(1)))


def test_unknown_task():
    tasks.briefs(tasks.briefs_vocabulary(), 10, 10)
    with pytest.raises(ValueError, match="unknown task 'brief' .*MIXTURE_OR_TASK_NAME.*briefs"):
        Batches(config("brief"), repeat=True)


def test_bytes_that_are_not_text(tmp_path, vocabulary):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"document": "a", "summary": "b"}\n{"document": "\xff", "summary": "b"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl:2: not UTF-8"):
        tasks.jsonl(vocabulary, str(path))


def test_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"document": "a"}\n')
    assert tasks.read_jsonl(str(path), {"document": "document"}) == [{"document": "a"}]


def test_a_field_called_prompt_does_not_become_the_prompt(tmp_path, vocabulary):
    rows = [{**row, "prompt": "elsewhere"} for row in records(4)]
    name = tasks.jsonl(vocabulary, *[write(tmp_path / "a.jsonl", rows)] * 2, name="j8")
    batch = next(Batches(config(name), repeat=True))
    assert all(text.startswith("summarize: the mayor") for text in batch.prompt_texts)


def test_columns_are_those_that_every_example_has(tmp_path, vocabulary):
    rows = [
        {**row, "label": i, **({"title": "t"} if i % 2 else {})} for i, row in enumerate(records(4))
    ]
    name = tasks.jsonl(vocabulary, *[write(tmp_path / "a.jsonl", rows)] * 2, name="j9")
    batch = next(Batches(config(name, shuffle=False), repeat=True))
    assert list(batch.columns) == ["document", "summary", "id", "label"]
    assert batch.columns["label"] == [0, 1, 2, 3]
    assert tasks.column_names(tasks.columns(name, "train")) == tuple(batch.columns)


def test_truncated_references_are_told_apart(tmp_path, vocabulary):
    rows = [{"document": "a boat", "summary": "boat " * n} for n in (1, 7, 8, 20)]
    name = tasks.jsonl(vocabulary, *[write(tmp_path / "a.jsonl", rows)] * 2, name="j10")
    batch = next(Batches(config(name, shuffle=False), repeat=True))
    lengths = [len(vocabulary.encode(row["summary"])) + 1 for row in rows]
    assert batch.truncated_references.tolist() == [length > 8 for length in lengths]
    assert sum(batch.truncated_references) in (2, 3)


def test_jsonl_gin_file(tmp_path):
    data = write(tmp_path / "a.jsonl", records(60))
    model = str(smoke.ROOT / "clp_jax/data/briefs/briefs.model")
    run = smoke.configured(
        tmp_path / "run",
        f"TRAIN_FILE={data!r}",
        f"VOCABULARY_FILE={model!r}",
        "REWARDS=('rouge',)",
        files=["gin/clp_attn.gin", "gin/jsonl.gin"],
    )
    assert next(Batches(run.train_dataset_cfg, repeat=True)).prompts.shape == (32, 512)


@pytest.mark.parametrize("field", ["document", "summary", "note"])
def test_half_a_surrogate_pair_is_named_with_its_line(tmp_path, vocabulary, field):
    rows = [*records(3), {"document": "a boat", "summary": "boat"} | {field: "news \ud83d today"}]
    path = write(tmp_path / "a.jsonl", rows)  # json writes it as an escape
    message = rf"a\.jsonl:4: field '{field}' has the lone surrogate '\\ud83d' at character 5"
    with pytest.raises(ValueError, match=message):
        tasks.jsonl(vocabulary, path, path)
    with pytest.raises(ValueError, match=message):
        tasks.parse_line(json.dumps(rows[-1]), {"document": "document"}, "a.jsonl:4")
    whole = write(tmp_path / "b.jsonl", [*records(3), {"document": "\U0001f600", "summary": "b"}])
    assert tasks.columns(tasks.jsonl(vocabulary, whole, whole), "train")[3]["summary"] == "b"
