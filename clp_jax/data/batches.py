"""Batches of a SeqIO Task as numpy arrays, with the text that the rewards read."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seqio
import tensorflow as tf
from clu.data import dataset_iterator

from clp_jax.data import tasks
from clp_jax.machine.hosts import Rows
from clp_jax.models.partitioning import Placement
from clp_jax.reporting.errors import divisors, listed

if TYPE_CHECKING:
    from clp_jax.settings.config import DatasetConfig


@dataclasses.dataclass(frozen=True)
class Batch:
    """B examples on the host.

    Attributes (B being the rows that this process reads):
      prompts: encoder tokens, [B, E] int32, padded with 0.
      references: tokens of the reference summaries, [B, L] int32, padded with 0.
      prompt_texts: B strings, untruncated.
      columns: column name -> B values, e.g. "document" and "summary".
      truncated: which prompts were longer than E, [B] bool.
      truncated_references: which references were longer than L, [B] bool.
    """

    prompts: np.ndarray
    references: np.ndarray
    prompt_texts: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    truncated: np.ndarray
    truncated_references: np.ndarray


class SavedIterator(Iterator[Any]):
    """An iterator over a `tf.data` data set whose position can be saved and restored exactly.

    Args:
      dataset: of flat dictionaries of tensors, which become numpy arrays.
    """

    def __init__(self, dataset: tf.data.Dataset):
        options = tf.data.Options()
        # Its thread may miss that it is cancelled, and sleep on for up to a minute, for which the
        # end of a run then waits.
        options.autotune.enabled = False
        dataset = dataset.prefetch(2).with_options(options)
        self._iterator = dataset_iterator.TfDatasetIterator(dataset, checkpoint=True)

    def __next__(self) -> Any:
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


def shared(config: "DatasetConfig", seed: int, place: Placement) -> "Batches":
    """This process's share of the batches to train on, for the devices that it has.

    Raises:
      ValueError: see `Batches` and `hosts.Rows`.
    """
    rows = Rows(place.batch, config.batch_size)
    return Batches(config, repeat=True, seed=seed, share=(rows.share, rows.shares))


def decode(vocabulary: seqio.Vocabulary, completions: np.ndarray) -> list[str]:
    """Tokens [B, L] -> B texts, each up to its EOS."""
    return [vocabulary.decode(row) for row in completions.tolist()]


def check_shards(count: int | None, readers: int) -> None:
    """Raises ValueError unless that many parts of the data can be shared by that many hosts."""
    if count is not None and count % readers:
        raise ValueError(
            f"the data are read in DATA_SHARDS={count} parts, which {readers} hosts cannot share "
            f"equally; {count} parts can be shared by {listed(divisors(count))} hosts, and "
            f"{readers} hosts can share {readers}, {2 * readers}, {3 * readers}, ... parts"
        )


def shard_count(position: Iterable[str]) -> int:
    """In how many parts the data were read at a position of `Batches`, or of the names in it."""
    return int(next(iter(position)).rpartition("_of_")[2])


class Batches(Iterator[Batch]):
    """The batches of one split; the position can be saved and restored exactly.

    The split is read in `config.num_shards` parts, SeqIO's shards, side by side; the same number of
    parts gives the same batches to any number of readers.

    Args:
      config: which Task, split, lengths, batch size, and how many parts.
      repeat: go over the data again and again; otherwise once, dropping no example (the last batch
        is smaller).
      seed: of the shuffling; unused where `config.shuffle` is False.
      share: (i, n): this is the i-th of n readers, and gets its rows of each batch, a n-th.

    Raises:
      ValueError: unknown task; parts that the readers cannot share equally.
    """

    def __init__(
        self,
        config: "DatasetConfig",
        *,
        repeat: bool,
        seed: int = 0,
        share: tuple[int, int] = (0, 1),
    ):
        name = config.mixture_or_task_name
        tasks.check_task(name)
        self._config, self._repeat, self._share = config, repeat, share
        self._seed = seed if config.seed is None else config.seed
        self._records = tasks.columns(name, config.split)
        task = seqio.get_mixture_or_task(name)
        self._vocabulary = task.output_features["inputs"].vocabulary
        self._columns = () if self._records is None else tasks.column_names(self._records)
        self._shards = self._opened(config.num_shards or share[1])

    def _opened(self, count: int) -> dict[str, SavedIterator]:
        """The parts of `count` that this reader has, by their names."""
        index, readers = self._share
        check_shards(count, readers)
        each = count // readers
        mine = range(index * each, (index + 1) * each)
        return {f"{shard}_of_{count}": self._shard(shard, count) for shard in mine}

    def _shard(self, shard: int, count: int) -> SavedIterator:
        config = self._config
        integer = seqio.FeatureConverter.FeatureSpec(dtype=np.int32, rank=1)
        extra = {} if self._records is None else {"example_id": integer}
        dataset = seqio.get_dataset(
            config.mixture_or_task_name,
            {**config.task_feature_lengths, **dict.fromkeys(extra, 1)},
            seqio.EncDecFeatureConverter(pack=False, passthrough_features=extra),
            dataset_split=config.split,
            shuffle=config.shuffle,
            num_epochs=None if self._repeat else 1,
            seed=self._seed,
            shard_info=seqio.ShardInfo(shard, count),
        )
        return SavedIterator(dataset.batch(config.batch_size // count, drop_remainder=self._repeat))

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

    def __next__(self) -> Batch:
        parts = [next(shard) for shard in self._shards.values()]
        features = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        prompts = features["encoder_input_tokens"]
        references = features["decoder_target_tokens"]
        if self._records is None:  # a Task of the user's own: its text is what its tokens say
            prompt_texts = [self._vocabulary.decode(row.tolist()) for row in prompts]
            summaries = [self._vocabulary.decode(row.tolist()) for row in references]
            columns = {"document": prompt_texts, "summary": summaries}
        else:
            rows = [self._records[i] for i in features["example_id"][:, 0]]
            prompt_texts = [row["prompt"] for row in rows]
            columns = {name: [row[name] for row in rows] for name in self._columns}
        return Batch(
            prompts,
            references,
            prompt_texts,
            columns,
            self._cut(prompts),
            self._cut(references),
        )

    def _cut(self, tokens: np.ndarray) -> np.ndarray:
        """Which rows lost their end: EOS stands at the end of all others, or padding behind it."""
        return (tokens[:, -1] != 0) & (tokens[:, -1] != self._vocabulary.eos_id)
