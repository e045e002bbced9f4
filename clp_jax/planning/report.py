"""A plan as text: tables, and advice where it does not fit."""

import json
import pathlib
from collections.abc import Sequence

from clp_jax.algorithm.conditioning import count_parameters
from clp_jax.planning import planner
from clp_jax.planning.memory import PARTS
from clp_jax.planning.planner import Candidate, Plan, ProgramPlan, policy_run
from clp_jax.planning.topology import V5E
from clp_jax.reporting.metrics_log import say
from clp_jax.runs import states
from clp_jax.settings.config import Run

_GIB = 2**30


def planned(run: Run, topology: str, search: int | None, json_file: str | None) -> bool:
    """Plans, or searches, and prints; whether something fits.

    Args:
      run: the configuration.
      topology: the slice, e.g. "v5e:4x4".
      search: for how many cuts to compile at most; None to plan the run as it is.
      json_file: where to write the figures, if anywhere.
    """
    if str(run.model.module.config.dtype) == "float32":
        say("activations are float32; on TPUs, --gin.ACTIVATION_DTYPE=\"'bfloat16'\" is usual")
    if search:
        candidates = planner.search(run, topology, search, say)
        print(found(candidates))
        plans = [each.plan for each in candidates if each.plan]
        if not plans:
            print("\nnothing fits: take more chips, or a smaller model")
            return False
        made = plans[0]
        print()
    else:
        made = planner.plan(run, topology, say)
    print(text(made))
    if not made.fits:
        print("\n" + advice(run, made, planner.accounted(run, topology)))
    if json_file:
        pathlib.Path(json_file).write_text(json.dumps(made.figures(), indent=2) + "\n")
    return made.fits


def text(plan: Plan) -> str:
    """The whole plan, but for advice."""
    unit, name = (_GIB, "GiB") if plan.peak_bytes >= _GIB else (2**20, "MiB")
    shape = f"{plan.chips // plan.num_partitions} x {plan.num_partitions}"
    head = (
        f"{plan.topology}: {plan.chips} chips as {shape} (data x model); "
        f"NUM_PARTITIONS={plan.num_partitions}, FULLY_SHARDED={plan.fully_sharded}"
    )
    parts = [head, _memory(plan, unit, name), _verdict(plan)]
    if plan.programs:
        parts += [_times(plan), _projection(plan)]
    return "\n\n".join(parts)


def _memory(plan: Plan, unit: int, name: str) -> str:
    """HBM of each program: what it reads, what it needs beside, and what others leave there."""

    def row(title: str, numbers: Sequence[int]) -> list[str]:
        return [title, *(f"{count / unit:.2f}" if count else "." for count in numbers)]

    rows = [[f"HBM per chip, {name}", *PARTS, "activations", "not read", "in all"]]
    for program in plan.programs:
        read = sum(program.arguments.values())
        left = plan.resident_bytes - read
        in_all = plan.resident_bytes + program.working_bytes
        numbers = [program.arguments.get(part, 0) for part in PARTS]
        numbers += [program.working_bytes, left, in_all]
        rows.append(row(program.name, numbers))
    whole = [*(plan.resident[part] for part in PARTS), plan.working_bytes, 0]
    rows.append(row("step", [*whole, plan.resident_bytes + plan.working_bytes]))
    return _table(rows)


def _verdict(plan: Plan) -> str:
    left = V5E.usable_hbm_bytes - plan.peak_bytes
    verb = "fits" if plan.fits else "does not fit"
    code = f" with {plan.code_bytes / _GIB:.2f} of program code" if plan.programs else ""
    compiled = "" if plan.programs else "; nothing was compiled, as the arrays alone are too much"
    return (
        f"{verb}: {plan.peak_bytes / _GIB:.2f} GiB{code}, of {V5E.usable_hbm_bytes / _GIB:.2f} "
        f"that programs can have of {V5E.hbm_bytes / _GIB:.0f}; {abs(left) / _GIB:.2f} "
        f"{'are left' if plan.fits else 'too many'}{compiled}"
    )


def _times(plan: Plan) -> str:
    def row(name: str, times: Sequence[float], flops: float, loops: str) -> list[str]:
        return [name, *(f"{1e3 * each:.1f}" for each in times), f"{flops / 1e12:.3f}", loops]

    rows = [["ms per step", "compute", "communicate", "in all", "TFLOP per chip", "loops"]]
    for each in plan.programs:
        times = (each.compute_seconds, each.communication_seconds, each.seconds)
        rows.append(row(each.name, times, each.flops, _loops(each)))
    compute = sum(each.compute_seconds for each in plan.programs)
    times = (compute, plan.seconds - compute, plan.seconds)
    return _table([*rows, row("step", times, plan.flops, "")])


def _loops(program: ProgramPlan) -> str:
    """Those that take a good part of the program's time."""
    return ", ".join(
        f"{steps} x {1e3 * each:.2f} ms"
        for steps, each in program.loops
        if steps * each > program.seconds / 10
    )


def _projection(plan: Plan) -> str:
    share = plan.flops / plan.seconds / V5E.flops
    return (
        f"{plan.seconds:.3f} s per step, {100 * share:.0f} % of the chips' FLOP/s; "
        f"{plan.total_steps:,} steps take {plan.hours:.1f} hours\n"
        "The compiler counts a loop's body once; here it counts as often as it runs at most: the\n"
        "decode step of `generate` once for each token of the longest completion.\n"
        "Not counted: rewards on the host that take longer than the device's, evaluations,\n"
        "checkpoints, supervised finetuning, start-up. Estimated by the compiler; nothing was run."
    )


def found(candidates: Sequence[Candidate]) -> str:
    """A search's candidates, and the flags of the best."""
    rows = [["NUM_PARTITIONS", "FULLY_SHARDED", "arrays, GiB", "in all, GiB", "s per step", ""]]
    for each in candidates:
        made = each.plan
        arrays = "" if each.resident_bytes is None else f"{each.resident_bytes / _GIB:.2f}"
        row = [str(each.num_partitions), str(each.fully_sharded), arrays, "", "", each.problem]
        if made is not None:
            seconds = f"{made.seconds:.3f}" if made.programs else ""
            verdict = "fits" if made.fits else "does not fit"
            row[3:] = [f"{made.peak_bytes / _GIB:.2f}", seconds, verdict]
        rows.append(row)
    best = next((each for each in candidates if each.plan and each.plan.fits), None)
    if best is None:
        return _table(rows)
    return f"{_table(rows)}\n\nbest: {_flags(best)}"


def _flags(cut: Candidate) -> str:
    sharded = f" --gin.FULLY_SHARDED={cut.fully_sharded}" if cut.fully_sharded else ""
    return f"--gin.NUM_PARTITIONS={cut.num_partitions}{sharded}"


def advice(run: Run, plan: Plan, candidates: Sequence[Candidate]) -> str:
    """What to change in a run that does not fit, what helps least to change results first.

    Args:
      run: the run.
      plan: what did not fit.
      candidates: the ways to cut it (`planner.accounted`).
    """
    lines = ["what would help:"]
    beside = plan.working_bytes + plan.code_bytes
    room = V5E.usable_hbm_bytes - beside
    fitting = [c for c in candidates if c.resident_bytes is not None and c.resident_bytes <= room]
    shown = [c for c in fitting if c.resident_bytes < plan.resident_bytes]  # type: ignore[operator]
    for each in shown[:3]:
        arrays = (each.resident_bytes or 0) / _GIB
        lines.append(
            f"  {_flags(each)}: arrays of {arrays:.2f} GiB per chip in place of "
            f"{plan.resident_bytes / _GIB:.2f}, which leaves room for "
            + (f"the {beside / _GIB:.2f} of activations and code" if beside else "the programs")
        )
    if not shown:
        lines.append("  more chips: no NUM_PARTITIONS or FULLY_SHARDED of these makes room enough")
    config = run.model.module.config
    if plan.programs and getattr(config, "remat_policy", "full") != "full":
        most = max(plan.programs, key=lambda each: each.working_bytes)
        lines.append(
            f"  --gin.t5.T5Config.remat_policy=\"'full'\" (or 'minimal'): less than the "
            f"{most.working_bytes / _GIB:.2f} GiB of activations of {most.name}, for more time"
        )
    shares = plan.chips // plan.num_partitions
    if plan.programs and (less := (run.train_dataset_cfg.batch_size - 1) // shares * shares):
        lines.append(f"  --gin.BATCH_SIZE={less} or less: activations grow with it")
    lines += _smaller_subset(run, plan)
    return "\n".join(lines)


def _smaller_subset(run: Run, plan: Plan) -> list[str]:
    run = policy_run(run)
    objectives = run.model.num_objectives
    count = count_parameters(states.state_shapes(run).params, objectives)
    if objectives < 2 or not count.conditioned:
        return []
    share = (objectives - 1) * count.conditioned / count.total
    return [
        f"  a smaller S, such as --gin.subset.attention.first_layers=..., at most "
        f"{share * plan.resident['parameters'] / _GIB:.2f} GiB: S is {100 * count.fraction:.1f} % "
        f"of the model, held {objectives} times"
    ]


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, all others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = ["  ".join([name.ljust(first), *map(str.rjust, row, others)]) for name, *row in rows]
    return "\n".join(line.rstrip() for line in lines)
