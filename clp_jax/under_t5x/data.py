"""The batches of a run as t5x draws them."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from clu.data import dataset_iterator

from clp_jax.data.batches import Batch, Batches

PROMPTS = "encoder_input_tokens"


class HostBatches(dataset_iterator.DatasetIterator):
    """The batches of `python -m clp_jax.train`, in two halves.

    t5x draws the prompts, places them on the devices, and reads ahead; the text, which rewards
    read, waits here until `take`.

    Args:
      batches: as of the run's first step.
      batch_size: B.
      max_prompt_length: E.
    """

    def __init__(self, batches: Batches, batch_size: int, max_prompt_length: int):
        self._batches = batches
        self._shape = (batch_size, max_prompt_length)
        self._waiting: deque[Batch] = deque()
        self._drawn = self._taken = 0
        self._known = (0, batches.position())

    @property
    def element_spec(self) -> dict[str, Any]:
        """Shape and dtype of what is drawn."""
        return {PROMPTS: dataset_iterator.ArraySpec(dtype=np.int32, shape=self._shape)}

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._batches)
        self._waiting.append(batch)
        self._drawn += 1
        return {PROMPTS: batch.prompts}

    def take(self) -> Batch:
        """The batch whose prompts were drawn longest ago."""
        self._taken += 1
        return self._waiting.popleft()

    def untake(self) -> None:
        """Counts the last batch as not taken: its step failed. Nothing can be drawn afterwards."""
        self._taken -= 1

    def position(self) -> Mapping[str, Any]:
        """Where the first batch stands that was not taken, whatever t5x has read ahead."""
        taken, position = self._known
        if taken != self._taken:
            if self._drawn != self._taken:
                self._batches.restore(position)
                for _ in range(self._taken - taken):
                    next(self._batches)
            self._known = self._taken, self._batches.position()
            for _ in self._waiting:
                next(self._batches)
        return self._known[1]

    def restore(self, position: Any) -> None:
        """Goes to where `position` was taken; before anything is drawn."""
        self._batches.restore(position)
        self._known = (0, position)
