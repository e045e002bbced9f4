"""Time and memory of one CLP step, against the same step of a single policy."""

import functools
import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import common
import processes

_DESCRIPTION = f"""{__doc__}

A step is Algorithm 1, lines 4-7: rollout, the reference's log-probabilities and rewards, and the
update of policy and value network; compiled and donated as `clp_jax.runs.trainer.Trainer` does. The
single policy has one objective and mixes nothing; it has a reference and a value network too. The
rewards are functions of the completions' lengths, on the device.

    python benchmarks/step.py --batch_size=8 --output=step.json

Columns of the first table:
  median ms, min ms       of a step
  ratio                   median / median of the single policy
  median of round ratios  the same, but the quotient is taken in each round
  bar                     what `ratio` shall not exceed
  generate, score, update ms   medians of the step's three programs

Columns of the second table, in MiB:
  peak           state, reference, and by how much the process grew during a step at most
  xla peak       what the compiler plans: state and reference, and the largest of the three
                 programs' temporary and output buffers
  parameters, optimizer   of the training state: φ, and statistics of φ's optimizer
  extra          `peak` above that of the single policy
  explained      what the additional parameters, one gradient for each, and the additional
                 statistics of the optimizer take
  extra/explained, xla extra/explained    shall be at most 1.1
"""
# Name -> (name of S in algorithm.subset, number of objectives, what the ratio shall not exceed).
_VARIANTS = {"single": ("none", 1, None), "attn": ("attention", 2, 1.05), "full": ("full", 2, 1.15)}
_PROGRAMS = ("generate", "score", "update")
_MEMORY_BAR = 1.1
_MEBIBYTE = 2**20


class Stepper:
    """Makes steps of one variant in its process."""

    def __init__(self, settings: Mapping[str, Any]):
        import jax
        import jax.numpy as jnp

        from clp_jax.algorithm import subset, train_step
        from clp_jax.algorithm.weighting import Weighting
        from clp_jax.models.decoding import Decoding

        subset_name, self._num_objectives, _ = _VARIANTS[settings["variant"]]
        self._clp = train_step.CLP(
            common.make_module(settings),
            Decoding(settings["completion_length"], eos_id=common.NO_EOS),
        )
        self._reference = common.make_params(self._clp.module)
        self._prompts = jax.device_put(common.make_prompts(settings))
        m = self._num_objectives
        self._weighting = Weighting(jnp.full((1,), 0.1), jnp.full((1, m), 1 / m))
        self._state = train_step.init_train_state(
            self._clp, self._reference, getattr(subset, subset_name)(), m
        )
        if settings["variant"] == "single":
            check_unmixed(self._clp, self._state.params, self._reference, self._weighting[0])
        self._steps = 0

    def compile(self) -> dict[str, dict[str, int]]:
        """Compiles the three programs; returns the bytes that each plans with."""
        import jax

        from clp_jax.algorithm import train_step

        clp, key = self._clp, jax.random.key(0)
        generate = jax.jit(functools.partial(train_step.generate, clp))
        score = jax.jit(functools.partial(_score, clp, self._num_objectives))
        update = jax.jit(functools.partial(train_step.update, clp), donate_argnums=0)
        inputs = (self._state.params, self._reference, self._prompts, self._weighting, key)
        self._generate = generate.lower(*inputs).compile()
        rollout = jax.eval_shape(generate, *inputs)
        self._score = score.lower(self._reference, rollout).compile()
        rollout, rewards = jax.eval_shape(score, self._reference, rollout)
        self._update = update.lower(
            self._state, self._reference, rollout, rewards, self._weighting, key
        ).compile()
        programs = dict(zip(_PROGRAMS, (self._generate, self._score, self._update), strict=True))
        return {name: _planned(program) for name, program in programs.items()}

    def step(self) -> dict[str, float]:
        """One step: its time, those of its programs, and memory at its peak."""
        import jax

        common.reset_peak()
        before_mib = common.resident_mib()
        self._steps += 1
        key = jax.random.key(self._steps)
        times = [time.perf_counter()]
        rollout = self._generate(
            self._state.params, self._reference, self._prompts, self._weighting, key
        )
        jax.block_until_ready(rollout)
        times.append(time.perf_counter())
        rollout, rewards = self._score(self._reference, rollout)
        jax.block_until_ready(rewards)
        times.append(time.perf_counter())
        self._state, metrics = self._update(
            self._state, self._reference, rollout, rewards, self._weighting, key
        )
        jax.block_until_ready((self._state, metrics))
        times.append(time.perf_counter())
        parts = [1e3 * (end - start) for start, end in itertools.pairwise(times)]
        return {
            "step": 1e3 * (times[-1] - times[0]),
            **dict(zip(_PROGRAMS, parts, strict=True)),
            # Growth and not the whole: compiling left each process another amount behind.
            "growth_bytes": (common.peak_mib() - before_mib) * _MEBIBYTE,
        }

    def sizes(self) -> dict[str, int]:
        """Bytes of what the process keeps from step to step."""
        return {
            "parameters": _bytes(self._state.params),
            "optimizer": _bytes(self._state.policy_optimizer_state),
            "state": _bytes(self._state),
            "reference": _bytes(self._reference),
        }


def check_unmixed(clp: Any, params: Any, reference: Any, weighting: Any) -> None:
    """Raises RuntimeError unless the policy has φ's own arrays for its parameters."""
    import jax

    from clp_jax.algorithm.conditioning import condition

    policy = condition(params, reference, weighting, clp.kl_mix)
    leaves = zip(jax.tree.leaves(policy), jax.tree.leaves(params), strict=True)
    if not all(mixed is leaf for mixed, leaf in leaves):
        raise RuntimeError("the single policy's parameters are not used as they are")


def _score(clp: Any, num_objectives: int, reference: Any, rollout: Any) -> tuple[Any, Any]:
    """The reference's log-probabilities, and rewards [B, m] that depend on lengths."""
    import jax.numpy as jnp

    from clp_jax.algorithm import train_step

    length = jnp.mean(rollout.mask, axis=1, keepdims=True)
    rewards = jnp.concatenate([length, 1 - length], axis=1)[:, :num_objectives]
    return train_step.score(clp, reference, rollout), rewards


def _planned(program: Any) -> dict[str, int]:
    """What XLA says of a program's buffers, in bytes."""
    analysis = program.memory_analysis()
    fields = ("argument", "output", "temp", "alias")
    return {field: int(getattr(analysis, f"{field}_size_in_bytes")) for field in fields}


def _bytes(tree: Any) -> int:
    import jax

    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def measure(settings: Mapping[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """One dict per variant; the first of `names` is the single policy."""
    workers = {}
    try:
        for name in names:
            workers[name] = processes.Worker(__file__, {**settings, "variant": name})
        programs = {name: worker.ask("compile") for name, worker in workers.items()}
        for worker in workers.values():
            worker.ask("step")
            worker.ask("step")
        turns = processes.interleave(
            {name: functools.partial(worker.ask, "step") for name, worker in workers.items()},
            settings["rounds"],
        )
        sizes = {name: worker.ask("sizes") for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    return [
        _row(settings, name, turns[name], turns["single"], sizes, programs[name])
        | _memory(name, turns, sizes, programs)
        for name in names
    ]


def _row(
    settings: Mapping[str, Any],
    name: str,
    turns: Sequence[Mapping[str, float]],
    single_turns: Sequence[Mapping[str, float]],
    sizes: Mapping[str, Mapping[str, int]],
    programs: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    return {
        "variant": name,
        "batch_size": settings["batch_size"],
        **common.compare([turn["step"] for turn in turns], [turn["step"] for turn in single_turns]),
        "bar": _VARIANTS[name][2],
        **{f"{part}_ms": statistics.median(turn[part] for turn in turns) for part in _PROGRAMS},
        "bytes": sizes[name],
        "xla_bytes": programs,
    }


def _memory(
    name: str,
    turns: Mapping[str, Sequence[Mapping[str, float]]],
    sizes: Mapping[str, Mapping[str, int]],
    programs: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> dict[str, Any]:
    """The memory of a variant in bytes, and what is more than the single policy's."""
    measured = {v: _kept(sizes[v]) + max(turn["growth_bytes"] for turn in turns[v]) for v in turns}
    planned = {v: _planned_peak(sizes[v], programs[v]) for v in turns}
    more = {k: sizes[name][k] - sizes["single"][k] for k in ("parameters", "optimizer")}
    # A gradient takes what its parameter takes: both are float32.
    explained = 2 * more["parameters"] + more["optimizer"]
    extra = measured[name] - measured["single"]
    planned_extra = planned[name] - planned["single"]
    return {
        "peak_bytes": measured[name],
        "xla_peak_bytes": planned[name],
        "extra_bytes": extra,
        "xla_extra_bytes": planned_extra,
        "explained_bytes": explained,
        "extra/explained": extra / explained if explained else None,
        "xla_extra/explained": planned_extra / explained if explained else None,
        "memory_bar": _MEMORY_BAR if explained else None,
    }


def _kept(sizes: Mapping[str, int]) -> int:
    # State and reference live throughout, whether a program reads them or not.
    return sizes["state"] + sizes["reference"]


def _planned_peak(sizes: Mapping[str, int], programs: Mapping[str, Mapping[str, int]]) -> int:
    return _kept(sizes) + max(p["temp"] + p["output"] - p["alias"] for p in programs.values())


_TIME_COLUMNS = {
    "variant": "s",
    "median_ms": ".1f",
    "min_ms": ".1f",
    "ratio": ".3f",
    "median_of_round_ratios": ".3f",
    "bar": ".2f",
    **{f"{part}_ms": ".1f" for part in _PROGRAMS},
}
_MEMORY_COLUMNS = {
    "variant": "s",
    "peak": ".1f",
    "xla_peak": ".1f",
    "parameters": ".1f",
    "optimizer": ".1f",
    "extra": ".1f",
    "xla_extra": ".1f",
    "explained": ".1f",
    "extra/explained": ".3f",
    "xla_extra/explained": ".3f",
    "bar": ".2f",
}


def _in_mebibytes(row: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("peak", "xla_peak", "extra", "xla_extra", "explained")
    return {
        **row,
        **{key: row[f"{key}_bytes"] / _MEBIBYTE for key in keys},
        **{key: row["bytes"][key] / _MEBIBYTE for key in ("parameters", "optimizer")},
        "bar": row["memory_bar"],
    }


def main() -> None:
    """The command."""
    arguments = common.parser(_DESCRIPTION, batch_size=8).parse_args()
    if arguments.worker:
        settings = json.loads(arguments.worker)
        common.limit_threads(settings["threads"])
        processes.serve(lambda: Stepper(settings))
        return

    def measure_and_show(settings: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
        rows = measure(settings, list(_VARIANTS))
        memory = common.table([_in_mebibytes(row) for row in rows], _MEMORY_COLUMNS)
        return rows, f"{common.table(rows, _TIME_COLUMNS)}\nmemory, MiB\n{memory}"

    common.report("step", arguments, measure_and_show)


if __name__ == "__main__":
    main()
