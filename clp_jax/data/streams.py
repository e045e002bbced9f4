"""SeqIO's reading of a Task that cannot be read by index: from its start, through a buffer."""

import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import seqio
import tensorflow as tf
from clu.data import dataset_iterator

from clp_jax.reporting.errors import divisors, listed

if TYPE_CHECKING:
    from clp_jax.settings.config import DatasetConfig

Features = Mapping[str, np.ndarray]


class Shard(Iterator[Features]):
    """A `tf.data` data set as numpy arrays, whose position can be saved and restored exactly.

    Args:
      dataset: of flat dictionaries of tensors.
    """

    def __init__(self, dataset: tf.data.Dataset):
        options = tf.data.Options()
        # Its thread may miss that it is cancelled, and sleep on for up to a minute, for which the
        # end of a run then waits.
        options.autotune.enabled = False
        dataset = dataset.prefetch(2).with_options(options)
        self._iterator = dataset_iterator.TfDatasetIterator(dataset, checkpoint=True)

    def __next__(self) -> Features:
        return next(self._iterator)

    def position(self) -> dict[str, np.ndarray]:
        """Where the iterator stands, as arrays that a checkpoint can hold."""
        with tempfile.TemporaryDirectory() as folder:
            self._iterator.save(pathlib.Path(folder, "position"))
            return {
                path.name: np.frombuffer(path.read_bytes(), np.uint8)
                for path in sorted(pathlib.Path(folder).iterdir())
            }

    def restore(self, position: Mapping[str, np.ndarray]) -> None:
        """Goes to where `position` was taken; the Task and its settings must be the same."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in position.items():
                pathlib.Path(folder, name).write_bytes(np.asarray(content, np.uint8).tobytes())
            self._iterator.restore(pathlib.Path(folder, "position"))


def check_shards(count: int | None, readers: int) -> None:
    """Raises ValueError unless that many parts of the data can be shared by that many hosts."""
    if count is not None and count % readers:
        raise ValueError(
            f"the data are read in DATA_SHARDS={count} parts, which {readers} hosts cannot share "
            f"equally; {count} parts can be shared by {listed(divisors(count))} hosts, and "
            f"{readers} hosts can share {readers}, {2 * readers}, {3 * readers}, ... parts"
        )


def shard_count(position: Iterable[str]) -> int:
    """In how many parts the data were read at a position of a `Stream`, or of the names in it."""
    return int(next(iter(position)).rpartition("_of_")[2])


class Stream(Iterator[Features]):
    """The batches of a Task in `config.num_shards` parts, SeqIO's shards, side by side.

    A part is read from its start to its end, again and again, and shuffled by SeqIO in a buffer of
    1,000 examples: what lies near each other in a file stays so. The same number of parts gives the
    same batches to any number of readers.

    Args:
      config: which Task, split, lengths, batch size, and how many parts.
      repeat: go over the data again and again; otherwise once, dropping no example (the last batch
        is smaller).
      seed: of the shuffling; unused where `config.shuffle` is False.
      share: (i, n): this is the i-th of n readers, and gets its rows of each batch, an n-th.

    Raises:
      ValueError: parts that the readers cannot share equally.
    """

    def __init__(self, config: "DatasetConfig", *, repeat: bool, seed: int, share: tuple[int, int]):
        self._config, self._repeat, self._seed, self._share = config, repeat, seed, share
        self._shards = self._opened(config.num_shards or share[1])

    def _opened(self, count: int) -> dict[str, Shard]:
        """The parts of `count` that this reader has, by their names."""
        index, readers = self._share
        check_shards(count, readers)
        each = count // readers
        mine = range(index * each, (index + 1) * each)
        return {f"{shard}_of_{count}": self._shard(shard, count) for shard in mine}

    def _shard(self, shard: int, count: int) -> Shard:
        config = self._config
        dataset = seqio.get_dataset(
            config.mixture_or_task_name,
            config.task_feature_lengths,
            seqio.EncDecFeatureConverter(pack=False),
            dataset_split=config.split,
            shuffle=config.shuffle,
            num_epochs=None if self._repeat else 1,
            seed=self._seed,
            shard_info=seqio.ShardInfo(shard, count),
        )
        return Shard(dataset.batch(config.batch_size // count, drop_remainder=self._repeat))

    def __next__(self) -> Features:
        parts = [next(shard) for shard in self._shards.values()]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def position(self) -> dict[str, dict[str, np.ndarray]]:
        """Where each of this reader's parts stands, as arrays that a checkpoint can hold."""
        return {name: shard.position() for name, shard in self._shards.items()}

    def restore(self, position: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Goes to where `position` was taken; the Task and its settings must be the same.

        Args:
          position: of all parts; their number counts, whatever the settings say.

        Raises:
          ValueError: parts that the readers cannot share equally.
        """
        count = shard_count(position)
        if not self._shards.keys() <= position.keys():
            self._shards = self._opened(count)
        for name, shard in self._shards.items():
            shard.restore(position[name])
