"""Batches that t5x reads ahead of the step: the position saved is that of the steps."""

import dataclasses

import numpy as np
import pytest

from clp_jax.under_t5x.data import PROMPTS, HostBatches


@dataclasses.dataclass
class Numbered:
    prompts: np.ndarray


class Numbers:
    """Batches 0, 1, 2, ... whose position can be saved."""

    def __init__(self):
        self.next = 0

    def __next__(self):
        self.next += 1
        return Numbered(np.full([2, 3], self.next - 1, np.int32))

    def position(self):
        return {"next": np.array(self.next)}

    def restore(self, position):
        self.next = int(position["next"])


@pytest.fixture
def batches():
    return HostBatches(Numbers(), batch_size=2, max_prompt_length=3)


def number(batch):
    return int(batch.prompts[0, 0])


def test_text_and_prompts_stay_together(batches):
    drawn = [int(next(batches)[PROMPTS][0, 0]) for _ in range(3)]
    assert drawn == [number(batches.take()) for _ in range(3)] == [0, 1, 2]
    spec = batches.element_spec[PROMPTS]
    assert (spec.shape, spec.dtype) == ((2, 3), np.int32)


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_the_position_is_that_of_the_steps(batches, taken, ahead):
    for _ in range(taken + ahead):
        next(batches)
    for _ in range(taken):
        batches.take()
    position = batches.position()
    assert position["next"] == taken
    # What was read ahead is still there, and drawn once.
    waiting = [number(batches.take()) for _ in range(ahead)]
    assert [*waiting, int(next(batches)[PROMPTS][0, 0])] == list(range(taken, taken + ahead + 1))
    other = HostBatches(Numbers(), 2, 3)
    other.restore(position)
    next(other)
    assert number(other.take()) == taken
    assert other.position()["next"] == taken + 1


def test_a_step_that_failed_counts_as_not_taken(batches):
    for _ in range(3):
        next(batches)
        batches.take()
    assert batches.position()["next"] == 3
    for _ in range(2):
        next(batches)
        batches.take()
    batches.untake()
    assert batches.position()["next"] == 4
