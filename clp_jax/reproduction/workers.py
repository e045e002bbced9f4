"""Runs, several at a time, each in a process with one core of its own."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection

import jax

from clp_jax.machine import host_memory
from clp_jax.reporting.errors import RunFailed
from clp_jax.reporting.metrics_log import say
from clp_jax.reproduction.runs import RunSpec

SECONDS = "seconds.txt"
# Imported once for the processes of all runs.
_IMPORTED = (
    "clp_jax.evaluation.pareto",
    "clp_jax.rewards.rouge",
    "clp_jax.rewards.saved",
    "clp_jax.settings.t5x_driver",
    "clp_jax.runs.training",
)


def execute(specs: Sequence[RunSpec], output: pathlib.Path, processes: int) -> None:
    """Makes the runs that are not finished yet, with progress and the time left.

    Args:
      specs: in the order in which they begin, but that those whose reference is not there yet let
        others go first.
      output: folder of everything.
      processes: how many at a time.

    Raises:
      RunFailed: the first run that failed; those under way are finished before.
    """
    missing = [spec for spec in specs if not spec.finished(output)]
    say(f"{len(specs)} runs, {len(missing)} of them to be made, {processes} at a time")
    here = sorted(os.sched_getaffinity(0))
    cores = [here[i % len(here)] for i in range(processes)]
    started, done, total = time.monotonic(), 0.0, sum(map(_cost, missing))
    waiting, running = list(missing), dict[Connection, tuple[RunSpec, int]]()
    count, failed = 0, ""
    while waiting or running:
        while cores and (ready := _ready(waiting, [spec for spec, _ in running.values()])):
            waiting.remove(ready[0])
            core = cores.pop()
            running[_start(ready[0], output, core)] = ready[0], core
        for reply in multiprocessing.connection.wait(list(running)):
            assert isinstance(reply, Connection)
            spec, core = running.pop(reply)
            cores.append(core)
            if error := _error(reply):
                waiting.clear()
                log = spec.model_dir(output) / "log.txt"
                failed = failed or f"run {spec.name} failed: {error}\nits log: {log}"
                continue
            count, done = count + 1, done + _cost(spec)
            passed = time.monotonic() - started
            left = passed * (total - done) / done
            say(f"{count}/{len(missing)} {spec.name}  {passed:.0f} s  ETA {left:.0f} s")
    if failed:
        raise RunFailed(failed)


def _ready(waiting: Sequence[RunSpec], running: Sequence[RunSpec]) -> list[RunSpec]:
    """Those that need not wait for their reference."""
    unfinished = {spec.name for spec in (*waiting, *running)}
    return [spec for spec in waiting if spec.reference not in unfinished]


def _cost(spec: RunSpec) -> float:
    """In steps; compilation and evaluation take about as long as this many."""
    return spec.step + 200


def _start(spec: RunSpec, output: pathlib.Path, core: int) -> Connection:
    """Starts a run in a process of its own, and returns what its end is heard from.

    The process is a copy of one that has imported everything. It makes one run only: malloc takes
    long among the pieces of memory that others leave (benchmarks/NOTES.md).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    reply, end = context.Pipe(duplex=False)
    context.Process(target=_run, args=(spec, output, core, end)).start()
    end.close()  # so that the process has the only one, and its death is heard
    return reply


def _error(reply: Connection) -> str:
    """What a run that ended has to say: nothing, if all is well."""
    with reply:
        try:
            return reply.recv()
        except EOFError:
            return "its process was killed"


def _run(spec: RunSpec, output: pathlib.Path, core: int, reply: Connection) -> None:
    """The process of a run, which sends its error, or ""."""
    with reply:
        _prepare(core, str(output / "compiled"))
        try:
            _train(spec, output)
        except Exception as error:  # whatever it is, the command tells it
            with (spec.model_dir(output) / "log.txt").open("a") as log:
                traceback.print_exc(file=log)
            reply.send(str(error) or type(error).__name__)
        else:
            reply.send("")


def _prepare(core: int, cache: str) -> None:
    """Before JAX looks for its devices: one core, and programs that are compiled once for all."""
    host_memory.keep_freed_memory()  # before any thread, whose pool XLA's would share
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.sched_setaffinity(0, {core})
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _end_with_parent() -> None:
    """Ends the process when the one that started it was killed.

    Else its run would go on writing to a MODEL_DIR that a resumed reproduction writes to as well.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in the process of a run"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _train(spec: RunSpec, output: pathlib.Path) -> None:
    """One run from its command line, its messages into log.txt."""
    from clp_jax.runs import training
    from clp_jax.settings import command_line

    started, folder = time.monotonic(), spec.model_dir(output)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log, contextlib.redirect_stderr(log):
        run, _ = command_line.configured_run("clp_jax.train", None, spec.flags(output))
        training.check(run)
        command_line.claim_model_dir(run.model_dir)
        if spec.step:
            training.train(run)
        else:
            training.load_reference(run)
    with (folder / SECONDS).open("a") as file:  # a line for each time it was started
        file.write(f"{time.monotonic() - started:.1f}\n")


def seconds(spec: RunSpec, output: pathlib.Path) -> float:
    """What a finished run took, on one core; a start that was stopped is not counted."""
    path = spec.model_dir(output) / SECONDS
    return sum(map(float, path.read_text().split())) if path.is_file() else 0.0
