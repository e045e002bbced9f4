"""Whether a run fits on a slice of TPU, and how long its steps take: `plan` and `search`."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from clp_jax.models.partitioning import Placement
from clp_jax.planning import estimate, memory, programs, topology
from clp_jax.policies.rewarded_soup import expert_runs
from clp_jax.reporting.errors import divisors
from clp_jax.runs import states
from clp_jax.settings.config import Run

Say = Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """One program of the step; everything per chip.

    Attributes:
      name: see `programs.Program`.
      arguments: bytes of those of `memory.PARTS` that it reads.
      working_bytes: see `programs.Compiled`; activations, gradients and results.
      code_bytes: likewise.
      flops: of matrix products, a loop's as often as it runs.
      compute_seconds: see `estimate.Work`.
      communication_seconds: likewise.
      loops: loops outside of other loops, as (steps, seconds of each step).
      compile_seconds: how long it took here.
    """

    name: str
    arguments: Mapping[str, int]
    working_bytes: int
    code_bytes: int
    flops: float
    compute_seconds: float
    communication_seconds: float
    loops: tuple[tuple[int, float], ...]
    compile_seconds: float

    @property
    def seconds(self) -> float:
        """Computation, then communication: none of it at the same time."""
        return self.compute_seconds + self.communication_seconds


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs of a slice.

    Attributes:
      topology: the slice, as "v5e:4x4".
      chips: how many it has.
      num_partitions: NUM_PARTITIONS.
      fully_sharded: FULLY_SHARDED.
      resident: {part: bytes per chip} of what stays in memory, see `memory.resident`.
      programs: those of a step, in order; none where `resident` alone is too much.
      total_steps: TRAIN_STEPS.
    """

    topology: str
    chips: int
    num_partitions: int
    fully_sharded: bool
    resident: Mapping[str, int]
    programs: tuple[ProgramPlan, ...]
    total_steps: int

    @property
    def resident_bytes(self) -> int:
        """Per chip, all parts together."""
        return sum(self.resident.values())

    @property
    def working_bytes(self) -> int:
        """Per chip, of the program that needs most."""
        return max((each.working_bytes for each in self.programs), default=0)

    @property
    def code_bytes(self) -> int:
        """Per chip, of all programs: they stay loaded."""
        return sum(each.code_bytes for each in self.programs)

    @property
    def peak_bytes(self) -> int:
        """The most that is needed of a chip's memory at once."""
        return self.resident_bytes + self.working_bytes + self.code_bytes

    @property
    def fits(self) -> bool:
        """Whether that much can be had."""
        return self.peak_bytes <= topology.V5E.usable_hbm_bytes

    @property
    def seconds(self) -> float:
        """Of one step on the devices: the programs one after the other."""
        return sum(each.seconds for each in self.programs)

    @property
    def flops(self) -> float:
        """Of one step, per chip."""
        return sum(each.flops for each in self.programs)

    @property
    def hours(self) -> float:
        """Of all steps."""
        return self.seconds * self.total_steps / 3600

    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        names = ("peak_bytes", "fits", "seconds", "flops", "hours")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to cut a run over a slice.

    Attributes:
      num_partitions: NUM_PARTITIONS.
      fully_sharded: FULLY_SHARDED.
      resident_bytes: per chip, of what stays in memory; None where it cannot be cut so.
      problem: why it was not compiled; empty if it was.
      plan: what compiling gave; None if it was not.
    """

    num_partitions: int
    fully_sharded: bool
    resident_bytes: int | None
    problem: str
    plan: Plan | None = None


def policy_run(run: Run) -> Run:
    """The run of one policy: itself, or that of a soup's first expert with the steps of all."""
    if not run.model.rewarded_soup:
        return run
    return dataclasses.replace(expert_runs(run)[0], total_steps=run.total_steps)


def placement(run: Run, name: str) -> Placement:
    """A run's over a slice.

    Raises:
      ValueError: no such slice, or NUM_PARTITIONS, the networks and the batch do not divide.
    """
    devices = topology.devices(name)
    place = Placement.over(devices, run.num_partitions, run.fully_sharded)
    states.check_placement(run, place)
    return place


def plan(run: Run, name: str, say: Say = lambda text: None) -> Plan:
    """Compiles a run's step for a slice; takes minutes for a T5-base.

    Args:
      run: the configuration.
      name: of the slice, as "v5e:4x4".
      say: is told what is being done.

    Raises:
      ValueError: see `placement`.
    """
    run = policy_run(run)
    place = placement(run, name)
    resident = memory.resident(run, place)
    chips = place.mesh.size
    made: list[ProgramPlan] = []
    if sum(resident.values()) <= topology.V5E.usable_hbm_bytes:
        for program in programs.of_step(run, place):
            say(f"compiling {program.name} ...")
            compiled = programs.compiled(program, chips)
            say(f"compiled {program.name} in {compiled.seconds:.0f} s")
            made.append(_planned(program, compiled, resident, chips))
    return Plan(
        topology=name,
        chips=chips,
        num_partitions=run.num_partitions,
        fully_sharded=run.fully_sharded,
        resident=resident,
        programs=tuple(made),
        total_steps=run.total_steps,
    )


def _planned(
    program: programs.Program,
    compiled: programs.Compiled,
    resident: Mapping[str, int],
    chips: int,
) -> ProgramPlan:
    chip, found = topology.V5E, estimate.read(compiled.text, chips)
    arguments = {part: resident[part] for part in program.reads}
    if program.name.startswith("reward "):
        arguments = {"rewards": memory.chip_bytes(program.arguments[0])}
    return ProgramPlan(
        name=program.name,
        arguments=arguments,
        working_bytes=compiled.working_bytes,
        code_bytes=compiled.code_bytes,
        flops=compiled.flops,
        compute_seconds=found.work.compute_seconds(chip, compiled.flops),
        communication_seconds=found.work.communication_seconds(chip),
        loops=tuple(
            (loop.steps, loop.body.compute_seconds(chip) + loop.body.communication_seconds(chip))
            for loop in found.loops
        ),
        compile_seconds=compiled.seconds,
    )


def cuts(run: Run, chips: int) -> Iterator[Run]:
    """The run with every NUM_PARTITIONS that divides the chips, and both of FULLY_SHARDED.

    The cut that communicates least comes first: FULLY_SHARDED gathers the decoder for each token.
    """
    for fully_sharded in (False, True):
        for number in divisors(chips):
            if number < chips or not fully_sharded:
                yield dataclasses.replace(run, num_partitions=number, fully_sharded=fully_sharded)


def accounted(run: Run, name: str) -> list[Candidate]:
    """Each way to cut a run over a slice, with its arrays counted and nothing compiled.

    Raises:
      ValueError: no such slice.
    """
    run, found = policy_run(run), []
    for cut in cuts(run, len(topology.devices(name))):
        arrays: int | None = None
        try:
            arrays = sum(memory.resident(cut, placement(cut, name)).values())
            too_much = arrays > topology.V5E.usable_hbm_bytes
            problem = "its arrays alone do not fit" if too_much else ""
        except ValueError as error:
            problem = str(error)
        found.append(Candidate(cut.num_partitions, cut.fully_sharded, arrays, problem))
    return found


def search(run: Run, name: str, most: int, say: Say = lambda text: None) -> list[Candidate]:
    """Compiles for the ways to cut a run over a slice, those that communicate least first.

    Args:
      run: the configuration; its own NUM_PARTITIONS and FULLY_SHARDED do not count.
      name: of the slice.
      most: how many to compile for.
      say: is told what is being done.

    Returns:
      All of them: those that fit, the fastest first; those that do not; those not compiled.

    Raises:
      ValueError: no such slice.
    """
    candidates, left = [], most
    for candidate in accounted(run, name):
        found: dict[str, Any] = {}
        if not candidate.problem and not left:
            found["problem"] = "not compiled"
        elif not candidate.problem:
            left -= 1
            number, fully_sharded = candidate.num_partitions, candidate.fully_sharded
            say(f"NUM_PARTITIONS={number}, FULLY_SHARDED={fully_sharded}")
            cut = dataclasses.replace(run, num_partitions=number, fully_sharded=fully_sharded)
            try:
                found["plan"] = plan(cut, name, say)
            except ValueError as error:  # what shows only when the programs are made
                found["problem"] = str(error)
        candidates.append(dataclasses.replace(candidate, **found))
    return sorted(candidates, key=_rank)


def _rank(candidate: Candidate) -> tuple[int, float]:
    if candidate.plan is None:
        return 2 if candidate.resident_bytes is not None else 3, 0.0
    return (0 if candidate.plan.fits else 1), candidate.plan.seconds
