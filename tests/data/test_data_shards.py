"""Data read in parts, side by side: any number of readers gets the same batches."""

import numpy as np
import pytest
from test_tasks import config, records, write

from clp_jax.data import batches as batches_lib
from clp_jax.data import tasks
from clp_jax.data.batches import Batches


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    return tasks.jsonl(tasks.briefs_vocabulary(), write(path, records(70)), name="shards")


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
    seen = [{d for row in documents([reader], 40) for d in row} for reader in (first, second)]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == {row["document"] for row in tasks.columns(name, "train")}


@pytest.mark.parametrize("after", [1, 4])
def test_a_position_is_gone_on_from_by_another_number_of_readers(name, after):
    before = readers(name, 2, 4)
    documents(before, 15)
    position = {}
    for reader in before:
        position |= reader.position()
    assert batches_lib.shard_count(position) == 4
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
