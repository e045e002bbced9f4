"""Batches of a SeqIO Task as numpy arrays, with the text that the rewards read."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import seqio
import tensorflow as tf
from clu.data import dataset_iterator

from clp_jax.config import DatasetConfig
from clp_jax.data import tasks

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Batch:
    """B examples on the host.

    Attributes:
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


class SavedIterator(Iterator[T]):
    """An iterator over a `tf.data` data set whose position can be saved and restored exactly.

    Args:
      dataset: of flat dictionaries of tensors; `_features` gives them as numpy arrays.
    """

    def __init__(self, dataset: tf.data.Dataset):
        self._iterator = dataset_iterator.TfDatasetIterator(dataset.prefetch(2), checkpoint=True)

    def _features(self) -> Mapping[str, np.ndarray]:
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


class Batches(SavedIterator[Batch]):
    """The batches of one split; the position can be saved and restored exactly.

    Args:
      config: which Task, split, lengths and batch size.
      repeat: go over the data again and again; otherwise once, dropping no example (the last batch
        is smaller).
      seed: of the shuffling; unused where `config.shuffle` is False.

    Raises:
      ValueError: unknown task.
    """

    def __init__(self, config: DatasetConfig, *, repeat: bool, seed: int = 0):
        name = config.mixture_or_task_name
        tasks.check_task(name)
        self._records = tasks.columns(name, config.split)
        task = seqio.get_mixture_or_task(name)
        self._vocabulary = task.output_features["inputs"].vocabulary
        records = self._records
        integer = seqio.FeatureConverter.FeatureSpec(dtype=np.int32, rank=1)
        extra = {} if records is None else {"example_id": integer}
        self._columns = () if records is None else tasks.column_names(records)
        dataset = seqio.get_dataset(
            name,
            {**config.task_feature_lengths, **dict.fromkeys(extra, 1)},
            seqio.EncDecFeatureConverter(pack=False, passthrough_features=extra),
            dataset_split=config.split,
            shuffle=config.shuffle,
            num_epochs=None if repeat else 1,
            seed=seed if config.seed is None else config.seed,
        ).batch(config.batch_size, drop_remainder=repeat)
        super().__init__(dataset)

    def __next__(self) -> Batch:
        features = self._features()
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
