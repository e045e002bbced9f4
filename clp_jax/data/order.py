"""In which order the examples of a split are read: by index, each of them once in every epoch."""

import functools
from collections.abc import Iterator, Mapping

import numpy as np

from clp_jax.reporting.metrics_log import say

POSITION = "examples"  # how many were read


class Order(Iterator[np.ndarray]):
    """The indices of the examples of each batch.

    Each epoch is a permutation of all N examples, another one each time, and the position is one
    number. Neither depends on how many readers there are.

    Args:
      count: N.
      batch_size: B, over all readers.
      repeat: epoch after epoch, batches reaching from one into the next; otherwise once in all, the
        last batch being smaller.
      shuffle: whether to permute; otherwise the examples come in their own order.
      seed: of the permutations.
      share: (i, n): this is the i-th of n readers, and gets its rows of each batch, an n-th.
    """

    def __init__(
        self, count: int, batch_size: int, *, repeat: bool, shuffle: bool, seed: int,
        share: tuple[int, int] = (0, 1),
    ):  # fmt: skip
        self._count, self._batch_size, self._repeat = count, batch_size, repeat
        self._shuffle, self._seed, self._share = shuffle, seed, share
        self._read = 0
        # A batch has parts of two epochs at most, but where it is larger than an epoch.
        self._epoch = functools.lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(self._count)
        # The one generator whose numbers are the same in every version of NumPy.
        key = [self._seed % 2**32, self._seed // 2**32, epoch]
        return np.random.RandomState(key).permutation(self._count)

    def __next__(self) -> np.ndarray:
        end = self._read + self._batch_size
        if not self._repeat:
            end = min(end, self._count)
        if end <= self._read:
            raise StopIteration
        epochs, within = np.divmod(np.arange(self._read, end), self._count)
        self._read = end
        indices = np.array([self._epoch(e)[i] for e, i in zip(epochs, within, strict=True)])
        reader, readers = self._share
        return np.split(indices, readers)[reader] if readers > 1 else indices

    def position(self) -> dict[str, np.ndarray]:
        """How many examples were read, as what a checkpoint can hold."""
        return {POSITION: np.array([self._read])}

    def restore(self, position: Mapping[str, np.ndarray]) -> None:
        """Goes to where `position` was taken; the data and the settings must be the same."""
        if POSITION not in position:
            say("the checkpoint is of version 0.1.0, which read in another order: data begin anew")
            return
        self._read = int(position[POSITION][0])
