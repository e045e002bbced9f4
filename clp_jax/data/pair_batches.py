"""Tasks of pairs and their batches: a document with a hypothesis, or with a preference.

`clp_jax.data.pairs` makes such Tasks. They are read by index, and SeqIO does not know them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import seqio

from clp_jax.data import tasks
from clp_jax.data.order import Order
from clp_jax.data.tasks import SPLITS, Record
from clp_jax.reporting.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Pair:
    """One example.

    Attributes:
      document: the premise or the post.
      summaries: the hypothesis; or the better and the worse summary.
      label: index into the Task's labels; 0 for preferences.
      record: all that is known of the example, under the names of its fields.
      where: the place of the example in its file or data set, for errors.
    """

    document: str
    summaries: tuple[str, ...]
    label: int
    record: Record
    where: str


@dataclasses.dataclass(frozen=True)
class PairTask:
    """Split -> examples, of which vocabulary, and the labels of NLI by class."""

    pairs: Callable[[str], Sequence[Pair]]
    vocabulary: seqio.Vocabulary
    labels: tuple[str, ...]


_TASKS: dict[str, PairTask] = {}


def class_names(task_name: str) -> tuple[str, ...]:
    """The labels of an NLI Task, by class; () for preferences.

    Raises:
      ValueError: not a Task of pairs.
    """
    return _task(task_name).labels


def vocabulary(task_name: str) -> seqio.Vocabulary:
    """Of documents and summaries. Raises ValueError for what is no Task of pairs."""
    return _task(task_name).vocabulary


def records(task_name: str, split: str) -> Sequence[Record]:
    """The text of every example of a split.

    Returns:
      Records with "premise", "hypothesis" and "label" (a string), or with "post", "better" and
      "worse"; and whatever else the data has.

    Raises:
      ValueError: not a Task of pairs, or an unknown split.
    """
    return [pair.record for pair in _pairs(task_name, split)]


def _task(task_name: str) -> PairTask:
    if task_name not in _TASKS:
        raise ValueError(unknown_name("task of pairs", task_name, _TASKS))
    return _TASKS[task_name]


def _pairs(task_name: str, split: str) -> Sequence[Pair]:
    task = _task(task_name)
    if split not in SPLITS:
        raise ValueError(unknown_name("split", split, SPLITS, f"task {task_name!r}"))
    return task.pairs(split)


def register(
    name: str,
    pairs: Callable[[str], Sequence[Pair]],
    vocabulary: seqio.Vocabulary,
    labels: Sequence[str] = (),
) -> str:
    """Registers a Task of pairs, replacing one of the same name.

    Args:
      name: of the Task.
      pairs: split -> its examples.
      vocabulary: of documents and summaries.
      labels: of NLI, by class; none for preferences, which have two summaries.

    Returns:
      `name`.
    """
    _TASKS[name] = PairTask(pairs, vocabulary, tuple(labels))
    return name


@dataclasses.dataclass(frozen=True)
class PairBatch:
    """B examples on the host.

    Attributes:
      documents: premises or posts without EOS, [B, E] int32, padded with 0.
      summaries: [B, S, L] int32, no EOS, padded with 0; S = 1 (hypothesis) or 2 (better, worse).
      labels: index into the Task's `class_names`, [B] int32; 0 for preferences.
      rows: B records, with the text.
    """

    documents: np.ndarray
    summaries: np.ndarray
    labels: np.ndarray
    rows: Sequence[Record]


class PairBatches(Iterator[PairBatch]):
    """The batches of one split, read by index; the position can be saved and restored exactly.

    Args:
      task_name: a Task of this module.
      split: "train" or "validation".
      document_length: E; longer documents lose their end.
      summary_length: L; no summary may be longer, because its end is what may be wrong with it.
      batch_size: B.
      repeat: go over the data again and again; otherwise once, dropping no example (the last batch
        is smaller).
      shuffle: another order in each epoch.
      seed: of the shuffling.

    Raises:
      ValueError: unknown task or split, no examples, or a summary longer than L.
    """

    def __init__(
        self,
        task_name: str,
        split: str,
        *,
        document_length: int,
        summary_length: int,
        batch_size: int,
        repeat: bool,
        shuffle: bool = True,
        seed: int = 0,
    ):
        self._pairs = _pairs(task_name, split)
        if not self._pairs:
            raise ValueError(f"task {task_name!r} has no {split} examples")
        self._vocabulary = _task(task_name).vocabulary
        _check_lengths(self._pairs, self._vocabulary, summary_length)
        self._lengths = document_length, summary_length
        self._order = Order(len(self._pairs), batch_size, repeat=repeat, shuffle=shuffle, seed=seed)

    def position(self) -> Mapping[str, np.ndarray]:
        """See `Order.position`."""
        return self._order.position()

    def restore(self, position: Mapping[str, np.ndarray]) -> None:
        """See `Order.restore`."""
        self._order.restore(position)

    def __next__(self) -> PairBatch:
        pairs = [self._pairs[i] for i in next(self._order)]
        length, summary_length = self._lengths
        texts = [pair.document for pair in pairs]
        documents, _ = tasks.tokens(self._vocabulary, texts, length, ended=False)
        summaries = [
            tasks.tokens(self._vocabulary, each, summary_length, ended=False)[0]
            for each in zip(*(pair.summaries for pair in pairs), strict=True)
        ]
        labels = np.array([pair.label for pair in pairs], np.int32)
        records = [pair.record for pair in pairs]
        return PairBatch(documents, np.stack(summaries, axis=1), labels, records)


def _check_lengths(
    pairs: Sequence[Pair], vocabulary: seqio.Vocabulary, summary_length: int
) -> None:
    summaries = [summary for pair in pairs for summary in pair.summaries]
    tokens = tasks.encoded(vocabulary, summaries)
    places = ((pair, i) for pair in pairs for i in range(len(pair.summaries)))
    for (pair, i), ids in zip(places, tokens, strict=True):
        if len(ids) > summary_length:
            names = ("hypothesis",) if len(pair.summaries) == 1 else ("better", "worse")
            raise ValueError(
                f"{pair.where}: {names[i]!r} has {len(ids)} tokens, which is more than "
                f"summary_length={summary_length}: {pair.summaries[i][:60]!r}"
            )
