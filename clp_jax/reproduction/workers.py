"""Runs, several at a time, each in a process with one core of its own."""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import threading
import time
from collections.abc import Sequence

import jax

from clp_jax import host_memory
from clp_jax.metrics_log import say
from clp_jax.reproduction.runs import RunSpec

SECONDS = "seconds.txt"


class RunFailed(Exception):
    """A run stopped with an error; its log says why."""


def execute(specs: Sequence[RunSpec], output: pathlib.Path, processes: int) -> None:
    """Makes the runs that are not finished yet, with progress and the time left.

    Args:
      specs: in the order in which they begin.
      output: folder of everything.
      processes: how many at a time.

    Raises:
      RunFailed: the first run that failed; those under way are finished before.
    """
    missing = [spec for spec in specs if not spec.finished(output)]
    say(f"{len(specs)} runs, {len(missing)} of them to be made, {processes} at a time")
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for i in range(processes):
        cores.put(sorted(os.sched_getaffinity(0))[i % len(os.sched_getaffinity(0))])
    started, done, total = time.monotonic(), 0.0, sum(map(_cost, missing))
    with concurrent.futures.ProcessPoolExecutor(
        processes, context, initializer=_start, initargs=(cores, str(output / "compiled"))
    ) as pool:
        futures = {pool.submit(functools.partial(_train, spec, output)): spec for spec in missing}
        for count, future in enumerate(concurrent.futures.as_completed(futures), start=1):
            spec = futures[future]
            if error := future.exception():
                pool.shutdown(cancel_futures=True)
                log = spec.model_dir(output) / "log.txt"
                raise RunFailed(f"run {spec.name} failed: {error}\nits log: {log}") from error
            done += _cost(spec)
            passed = time.monotonic() - started
            left = passed * (total - done) / done
            say(f"{count}/{len(missing)} {spec.name}  {passed:.0f} s  ETA {left:.0f} s")


def _cost(spec: RunSpec) -> float:
    """In steps; compilation and evaluation take about as long as this many."""
    return spec.step + 300


def _start(cores, cache: str) -> None:
    """Before JAX looks for its devices: one core, and programs that are compiled once for all."""
    host_memory.keep_freed_memory()  # before any thread, whose pool XLA's would share
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.sched_setaffinity(0, {cores.get()})
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _end_with_parent() -> None:
    """Ends the process when the one that started it was killed.

    Else its run would go on writing to a MODEL_DIR that a resumed reproduction writes to as well.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a process of the pool"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _train(spec: RunSpec, output: pathlib.Path) -> None:
    """One run from its command line, its messages into log.txt."""
    from clp_jax import command_line, training

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
    jax.clear_caches()
    with (folder / SECONDS).open("a") as file:  # a line for each time it was started
        file.write(f"{time.monotonic() - started:.1f}\n")


def seconds(spec: RunSpec, output: pathlib.Path) -> float:
    """What a finished run took, on one core; a start that was stopped is not counted."""
    path = spec.model_dir(output) / SECONDS
    return sum(map(float, path.read_text().split())) if path.is_file() else 0.0
