"""A Task made elsewhere, read in parts: any number of readers gets the same batches."""

import numpy as np
import pytest
import seqio
import tensorflow as tf
from clu.data import dataset_iterator
from test_tasks import config

from clp_jax.data import streams, tasks
from clp_jax.data.batches import Batches

TEXTS = [f"the mayor sold {i} boats" for i in range(70)]


@pytest.fixture(scope="module")
def name():
    def dataset(split, shuffle_files=False, seed=None):
        return tf.data.Dataset.from_tensor_slices({"inputs": TEXTS, "targets": TEXTS})

    seqio.TaskRegistry.add(
        "shards",
        seqio.FunctionDataSource(dataset, splits=["train"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=dict.fromkeys(
            ("inputs", "targets"), seqio.Feature(tasks.briefs_vocabulary())
        ),
    )
    yield "shards"
    seqio.TaskRegistry.remove("shards")


def readers(name, count, shards):
    split = config(name, batch_size=8, num_shards=shards)
    return [Batches(split, repeat=True, seed=1, share=(i, count)) for i in range(count)]


def documents(each, steps=12):
    """Of `steps` batches, the readers' rows side by side."""
    drawn = [[next(reader) for reader in each] for _ in range(steps)]
    return [[d for part in parts for d in part.columns["document"]] for parts in drawn]


@pytest.mark.parametrize("count", [2, 4])
def test_the_number_of_readers_changes_nothing(name, count):
    assert documents(readers(name, count, 4)) == documents(readers(name, 1, 4))


def test_without_a_number_there_is_a_part_for_each_reader(name):
    assert documents(readers(name, 2, None)) == documents(readers(name, 2, 2))


def test_readers_have_nothing_in_common_and_miss_nothing(name):
    first, second = readers(name, 2, None)
    seen = [{d for row in documents([reader], 120) for d in row} for reader in (first, second)]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(TEXTS)


@pytest.mark.parametrize("after", [1, 4])
def test_a_position_is_gone_on_from_by_another_number_of_readers(name, after):
    before = readers(name, 2, 4)
    documents(before, 15)
    position = {}
    for reader in before:
        position |= reader.position()
    assert streams.shard_count(position) == 4
    # The number of parts is the position's, whatever the settings say.
    resumed = readers(name, after, None)
    for reader in resumed:
        reader.restore(position)
    assert documents(resumed) == documents(before)


def test_parts_that_cannot_be_shared(name):
    with pytest.raises(ValueError, match=r"DATA_SHARDS=4 parts, which 3 hosts.*by 1, 2, 4 hosts"):
        readers(name, 3, 4)
    (alone,) = readers(name, 1, None)
    third = Batches(config(name, batch_size=6), repeat=True, share=(2, 3))
    with pytest.raises(ValueError, match=r"DATA_SHARDS=1 .* 3 hosts can share 3, 6, 9, \.\.\."):
        third.restore(alone.position())


def test_parts_make_equal_shares_of_a_batch(name):
    with pytest.raises(ValueError, match="DATA_SHARDS=3 must divide the batch of 8; .* 1, 2, 4, 8"):
        config(name, batch_size=8, num_shards=3)
    parts = readers(name, 2, 2)
    assert [np.shape(next(part).prompts) for part in parts] == [(4, 16), (4, 16)]


def test_no_thread_tunes_a_data_set(name, monkeypatch):
    opened = []
    monkeypatch.setattr(
        dataset_iterator, "TfDatasetIterator", lambda dataset, **_: opened.append(dataset)
    )
    Batches(config(name), repeat=True)
    assert [dataset.options().autotune.enabled for dataset in opened] == [False]
