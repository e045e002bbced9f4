"""Batches of a SeqIO Task as numpy arrays, with the text that the rewards read."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seqio

from clp_jax.data import streams, tasks
from clp_jax.data.order import Order
from clp_jax.data.streams import Stream
from clp_jax.machine.hosts import Rows
from clp_jax.models.partitioning import Placement

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


def check_shares(config: "DatasetConfig", readers: int, position: Iterable[str] = ()) -> None:
    """Raises ValueError unless that many hosts can share the data.

    Args:
      config: of the data.
      readers: how many hosts there are.
      position: the names in a position of `Batches` that they are to go on from.
    """
    if tasks.columns(config.mixture_or_task_name, config.split) is None:
        names = list(position)
        count = streams.shard_count(names) if names else config.num_shards
        streams.check_shards(count, readers)


class Batches(Iterator[Batch]):
    """The batches of one split; the position can be saved and restored exactly.

    Tasks of `clp_jax.data.tasks` are read by index (`order.Order`), others as SeqIO reads them
    (`streams.Stream`).

    Args:
      config: which Task, split, lengths and batch size.
      repeat: go over the data again and again; otherwise once, dropping no example (the last batch
        is smaller).
      seed: of the shuffling; unused where `config.shuffle` is False.
      share: (i, n): this is the i-th of n readers, and gets its rows of each batch, an n-th.

    Raises:
      ValueError: unknown task; parts of it that the readers cannot share equally.
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
        seed = seed if config.seed is None else config.seed
        features = seqio.get_mixture_or_task(name).output_features
        self._vocabulary = features["inputs"].vocabulary
        self._lengths = config.task_feature_lengths
        records = tasks.columns(name, config.split)
        self._source: Order | Stream
        if records is None:
            self._source = Stream(config, repeat=repeat, seed=seed, share=share)
            return
        self._records, self._columns = records, tasks.column_names(records)
        self._source = Order(
            len(records), config.batch_size, repeat=repeat, shuffle=config.shuffle, seed=seed,
            share=share,
        )  # fmt: skip

    def position(self) -> Mapping[str, Any]:
        """Where this reader stands, as arrays that a checkpoint can hold."""
        return self._source.position()

    def restore(self, position: Mapping[str, Any]) -> None:
        """Goes to where `position` was taken, by all readers; see `Order` and `Stream`."""
        self._source.restore(position)

    def __next__(self) -> Batch:
        if isinstance(self._source, Stream):
            return self._of_tokens(next(self._source))
        rows = [self._records[i] for i in next(self._source)]
        columns = {name: [row[name] for row in rows] for name in self._columns}
        texts = [row["prompt"] for row in rows]
        prompts, cut = tasks.tokens(self._vocabulary, texts, self._lengths["inputs"])
        summaries = [row["summary"] for row in rows]
        references, cut_too = tasks.tokens(self._vocabulary, summaries, self._lengths["targets"])
        return Batch(prompts, references, texts, columns, cut, cut_too)

    def _of_tokens(self, features: Mapping[str, np.ndarray]) -> Batch:
        """A batch of a Task of the user's own: its text is what its tokens say."""
        prompts, references = features["encoder_input_tokens"], features["decoder_target_tokens"]
        texts, summaries = (decode(self._vocabulary, tokens) for tokens in (prompts, references))
        columns = {"document": texts, "summary": summaries}
        return Batch(prompts, references, texts, columns, self._cut(prompts), self._cut(references))

    def _cut(self, tokens: np.ndarray) -> np.ndarray:
        """Which rows lost their end: EOS stands at the end of all others, or padding behind it."""
        return (tokens[:, -1] != 0) & (tokens[:, -1] != self._vocabulary.eos_id)
