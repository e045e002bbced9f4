"""How long a compiled program takes, read from its optimised HLO; nothing is run.

The compiler writes the cycles that it expects into most operations. These are added up, a loop's
body as often as it runs. What it says nothing about, copies from memory beside the computation and
communication between chips, is added from their bytes.
"""

import collections
import dataclasses
import math
import operator
import re
from collections.abc import Mapping, Sequence

from clp_jax.planning.topology import Chip

# An axis of v5e closes to a ring if it is this long (jax-ml.github.io/scaling-book/tpus).
_RING = 16

# Of a message to the next chip (the same), in seconds.
_HOP_SECONDS = 1e-6

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_WHILE = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BRANCHES = re.compile(r"(?:true_computation|false_computation)=%?([\w.\-]+)")
_BRANCH_LIST = re.compile(r"branch_computations=\{([^}]*)\}")
_NUMBER = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_GROUPS = re.compile(r"replica_groups=(\{\{[\d,]*\}|\[\d+,\d+\]|mesh\[[^\]]*\][^{]*\{[^}]*\})")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Work:
    """What one chip does.

    Attributes:
      cycles: of computation, as the compiler expects.
      copied: bytes that are copied beside the computation.
      sent: bytes that go to the next chip, half of them to either side.
      hops: messages to the next chip that wait for each other.
    """

    cycles: int = 0
    copied: float = 0
    sent: float = 0
    hops: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))

    def times(self, number: int) -> "Work":
        """This work, done that often."""
        return Work(*(number * value for value in dataclasses.astuple(self)))

    def compute_seconds(self, chip: Chip, flops: float = 0) -> float:
        """Without communication: what takes longest of cycles, copies and matrix products."""
        return max(self.cycles / chip.clock, self.copied / chip.hbm_bandwidth, flops / chip.flops)

    def communication_seconds(self, chip: Chip) -> float:
        """As if nothing were computed meanwhile, over rings that use each link both ways."""
        return self.sent / (2 * chip.link_bandwidth) + self.hops * _HOP_SECONDS


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of the program: how often its body runs at most, and what it does each time."""

    steps: int
    body: Work


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The work of a whole program, its loops included, and those loops."""

    work: Work
    loops: tuple[Loop, ...]


def read(text: str, chips: int) -> Estimate:
    """What a program does.

    Args:
      text: of the optimised HLO.
      chips: how many devices it runs on.

    Raises:
      ValueError: it is no HLO.
    """
    computations, entry = _computations(text)
    if entry is None:
        raise ValueError("the text is no HLO module: it has no ENTRY")
    reader = _Reader(computations, chips)
    return Estimate(reader.work(entry), tuple(reader.loops(entry)))


def _computations(text: str) -> tuple[dict[str, list[str]], str | None]:
    """The lines of each computation by its name, and the name of the first to run."""
    found: dict[str, list[str]] = {}
    lines, entry = [], None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            lines = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return found, entry


class _Reader:
    """Adds up the work of computations, each read once."""

    def __init__(self, computations: Mapping[str, Sequence[str]], chips: int):
        self._computations, self._chips = computations, chips
        self._known: dict[tuple[str, frozenset[str]], Work] = {}

    def work(self, name: str, under_way: frozenset[str] = frozenset()) -> Work:
        """Of a computation, with all that it calls, but for collectives that are under way.

        A collective that goes on beside a loop is in the text of the loop's body too.
        """
        if (name, under_way) not in self._known:
            own = self._collectives(name)
            inside = under_way.union(own)
            done = [self._of_line(line, inside) for line in self._computations.get(name, ())]
            done += [work for key, work in own.items() if key not in under_way]
            self._known[name, under_way] = sum(done, Work())
        return self._known[name, under_way]

    def loops(self, name: str) -> list[Loop]:
        """Those of a computation, in order; not the loops inside of them."""
        found = [_WHILE.search(line) for line in self._computations[name] if " while(" in line]
        around = frozenset(self._collectives(name))
        return [
            Loop(self._steps(line.string, line[1]), self.work(line[2], around))
            for line in found
            if line
        ]

    def _of_line(self, line: str, inside: frozenset[str]) -> Work:
        """Of an instruction, but for collectives."""
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            return Work()
        shape, operation = instruction[1], instruction[2]
        if operation == "while" and (loop := _WHILE.search(line)):
            once = self.work(loop[2], inside) + self.work(loop[1], inside)
            return once.times(self._steps(line, loop[1]))
        if operation == "conditional":
            branches = [self.work(name, inside) for name in _branches(line)]
            return max(branches, key=lambda work: work.cycles, default=Work())
        cycles = _CYCLES.search(line)
        own = Work(int(cycles[1])) if cycles else Work()
        if operation in ("copy-start", "slice-start"):
            return own + Work(copied=_moved_bytes(shape))
        if operation == "call" and (called := _CALLED.search(line)):
            return own + self.work(called[1], inside)
        return own

    def _collectives(self, name: str) -> dict[str, Work]:
        """Those of a computation and its fusions, by channel.

        One collective may be spread over many fusions, so that it goes on beside what these
        compute. Each of them then has all of it in its text. Outside of fusions, several may have
        one channel.
        """
        found: dict[str, Work] = {}
        of_channel: collections.Counter[str] = collections.Counter()
        for line in self._computations.get(name, ()):
            instruction = _INSTRUCTION.match(line)
            if instruction is None:
                continue
            shape, operation = instruction[1], instruction[2]
            kind = operation.removesuffix("-start")
            if kind in _COLLECTIVES:
                channel = _CHANNEL.search(line)
                key = channel[1] if channel else line
                of_channel[key] += 1
                work = self._collective(kind, shape, line, kind != operation)
                found[f"{key} {of_channel[key]}"] = work
            elif operation in ("fusion", "async-start") and (called := _CALLED.search(line)):
                found |= self._collectives(called[1])
        return found

    def _collective(self, kind: str, shape: str, line: str, started: bool) -> Work:
        """What goes over the links of one chip; `shape` is that of the result."""
        size = sum(_array_bytes(shape))
        if kind == "collective-permute":
            return Work(sent=size / 2 if started else size, hops=1)
        number = _group_size(line, self._chips)
        if number == 1:
            return Work()
        if kind == "all-gather" and started:  # the result has the operand in front
            size = size * number / (number + 1)
        if kind == "reduce-scatter":
            size = size * number
        rounds = 2 if kind == "all-reduce" else 1
        # A group is as far across as a square of so many chips.
        across = min(number - 1, 2 * (math.ceil(math.sqrt(number)) - 1))
        # All chips lie on a ring, and so do those of a long axis. Others are a line, and what its
        # ends get comes over one link.
        ring = number >= _RING or (number == self._chips and number > 2)
        sent = rounds * size * (number - 1) / number
        return Work(sent=sent if ring else 2 * sent, hops=rounds * across)

    def _steps(self, line: str, condition: str) -> int:
        """How often a loop runs at most."""
        if known := _TRIPS.search(line):
            return int(known[1])
        return max([1, *self._numbers(condition)])

    def _numbers(self, name: str) -> list[int]:
        """The whole numbers in a computation and what it calls."""
        numbers: list[int] = []
        for line in self._computations.get(name, ()):
            numbers.extend(map(int, _NUMBER.findall(line)))
            if called := _CALLED.search(line):
                numbers.extend(self._numbers(called[1]))
        return numbers


def _branches(line: str) -> list[str]:
    if listed := _BRANCH_LIST.search(line):
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    return _BRANCHES.findall(line)


def _array_bytes(shape: str) -> list[float]:
    """Bytes of each array of an HLO shape."""
    sizes = []
    for _, bits, lengths in _ARRAY.findall(shape):
        elements = math.prod(int(n) for n in lengths.split(",")) if lengths else 1
        sizes.append(elements * (int(bits) / 8 if bits else 1))
    return sizes


def _moved_bytes(shape: str) -> float:
    """Of (source, result, semaphore), in any order: the lesser array, the semaphore apart."""
    arrays = [size for size in _array_bytes(shape) if size > 4]
    return min(arrays, default=0)


def _group_size(line: str, chips: int) -> int:
    """How many chips take part in a collective."""
    groups = _GROUPS.search(line)
    if groups is None:
        return chips
    text = groups[1]
    if text.startswith("{{"):
        return text.count(",") + 1
    if text.startswith("["):
        return int(text.strip("[]").split(",")[1])
    lengths = {name: int(length) for name, length in re.findall(r"'(\w+)'=(\d+)", text)}
    named = re.findall(r"'(\w+)'", text[text.rindex("{") :])
    return math.prod(lengths[name] for name in named)
