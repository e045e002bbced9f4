"""What a steered policy costs at inference, against a plain language model.

The parameters are mixed for one weighting; then rollouts of the mixed parameters and of the
reference's go through one and the same compiled function, in turns. `policy` is the whole
`CLPPolicy.generate`, which mixes at the first call with a weighting and scores the completions
under the reference; `plain policy` is the same with one objective and nothing to mix. `logits`
mixes the logits of the steered parameters and the reference's at every token (DeRa, Liu et al.
2024), in place of parameters.

    python benchmarks/steering.py --batch_size=8 --batch_size=32 --output=steering.json

Columns of the table:
  median ms, min ms       of a rollout; of `mix`, of one mixing of all parameters
  tokens/s                sampled
  base                    what the ratios compare with
  ratio                   median / median of the base
  median of round ratios  the same, but the quotient is taken in each round
  bar                     what `ratio` shall not exceed
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import common
import numpy as np
import processes

# What is timed -> (what it is compared with, what the ratio shall not exceed).
_BASES = {
    "plain": ("plain", None),
    "steered": ("plain", 1.02),
    "logits": ("steered", None),
    "plain policy": ("plain policy", None),
    "policy": ("plain policy", 1.02),
    "mix": ("plain", None),
}


def make_turns(settings: Mapping[str, Any]) -> dict[str, Callable[[], float]]:
    """What is timed: each makes one rollout, or one mixing, and returns its milliseconds."""
    import jax

    from clp_jax.algorithm import conditioning, subset, train_step
    from clp_jax.algorithm.weighting import Weighting
    from clp_jax.models.decoding import Decoding
    from clp_jax.models.sampling import sample, sample_mixture
    from clp_jax.policies.policy import CLPPolicy

    module = common.make_module(settings)
    reference = common.make_params(module)
    params = conditioning.init_clp_params(reference, subset.full(), settings["num_objectives"])
    params = jax.jit(_spread, donate_argnums=0)(params)
    clp = train_step.CLP(module, Decoding(settings["completion_length"], eos_id=common.NO_EOS))
    m = settings["num_objectives"]
    weighting, no_weighting = Weighting.of(0.05, [1 / m] * m), Weighting.of(0.05, [1.0])
    prompts = jax.device_put(common.make_prompts(settings))

    condition = jax.jit(functools.partial(conditioning.condition, kl_mix=clp.kl_mix))
    mixed = jax.block_until_ready(condition(params, reference, weighting))

    @jax.jit
    def rollout(params: Any, key: jax.Array) -> Any:
        keys = jax.random.split(key, prompts.shape[0])
        return sample(module, params, prompts, keys, clp.decoding)

    @jax.jit
    def mixed_logits(models: list[Any], coefficients: jax.Array, key: jax.Array) -> Any:
        keys = jax.random.split(key, prompts.shape[0])
        return sample_mixture(module, models, coefficients, prompts, keys, clp.decoding)

    coefficients = jax.device_put(np.array([0.7, 0.3], np.float32))
    policy = CLPPolicy(clp, params, reference)
    single = conditioning.init_clp_params(reference, subset.none(), 1)
    plain_policy = CLPPolicy(clp, single, reference)
    key = jax.random.key(0)
    calls: dict[str, Callable[[], Any]] = {
        "plain": lambda: rollout(reference, key),
        "steered": lambda: rollout(mixed, key),
        "logits": lambda: mixed_logits([mixed, reference], coefficients, key),
        "plain policy": lambda: plain_policy.generate(no_weighting, prompts, key),
        "policy": lambda: policy.generate(weighting, prompts, key),
        "mix": lambda: condition(params, reference, weighting),
    }

    def timed(call: Callable[[], Any]) -> float:
        return common.milliseconds(lambda: jax.block_until_ready(call()))

    return {name: functools.partial(timed, call) for name, call in calls.items()}


def _spread(params: Any) -> Any:
    """φ with its replicas moved apart, each by a factor of its own."""
    import jax
    import jax.numpy as jnp

    def scale(x: jax.Array) -> jax.Array:
        factors = 1 + 0.01 * jnp.arange(x.shape[0], dtype=x.dtype)
        return x * factors.reshape(-1, *(1,) * (x.ndim - 1))

    return dataclasses.replace(params, conditioned=jax.tree.map(scale, params.conditioned))


def measure(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of one batch size."""
    turns = make_turns(settings)
    for turn in turns.values():
        turn()
        turn()
    times = processes.interleave(turns, settings["rounds"])
    tokens = settings["batch_size"] * settings["completion_length"]
    rows = []
    for name, (base, bar) in _BASES.items():
        row = {"what": name, "batch_size": settings["batch_size"], "base": base, "bar": bar}
        row |= common.compare(times[name], times[base])
        row["tokens/s"] = None if name == "mix" else 1e3 * tokens / row["median_ms"]
        rows.append(row)
    return rows


_COLUMNS = {
    "what": "s",
    "median_ms": ".1f",
    "min_ms": ".1f",
    "tokens/s": ".0f",
    "base": "s",
    "ratio": ".3f",
    "median_of_round_ratios": ".3f",
    "bar": ".2f",
}


def main() -> None:
    """The command."""
    parser = common.parser(__doc__, batch_size=8)
    parser.add_argument(
        "--num_objectives", type=int, default=2, help="replicas that are mixed (default: 2)"
    )
    arguments = parser.parse_args()

    def measure_and_show(settings: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
        rows = measure(settings | {"num_objectives": arguments.num_objectives})
        return rows, common.table(rows, _COLUMNS)

    common.report("steering", arguments, measure_and_show, num_objectives=arguments.num_objectives)


if __name__ == "__main__":
    main()
