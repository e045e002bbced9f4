"""The whole reproduction: references, runs, claims, report."""

import pathlib
import time

import numpy as np

from clp_jax.reporting.metrics_log import say
from clp_jax.reproduction import claims, report, workers
from clp_jax.reproduction.checks import Check, Claim
from clp_jax.reproduction.results import Results
from clp_jax.reproduction.runs import Scale, reference_spec, specs

MODELS = ("tiny", "mini")


def reproduce(scale: Scale, output: pathlib.Path, document: pathlib.Path, processes: int) -> None:
    """Makes what is missing of the runs, and writes the report.

    Args:
      scale: how much is spent.
      output: folder of the runs, which a later call goes on from.
      document: the report; its figures go to a folder of the same name beside it.
      processes: runs at a time.

    Raises:
      RunFailed: a run stopped with an error.
    """
    started = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    references = [reference_spec(scale, model) for model in MODELS]
    runs = specs(scale, output)
    workers.execute([*references, *runs], output, processes)
    results = Results(output, scale)
    found = [
        *claims.single_reward(results),
        _decoding(scale, output),
        *claims.two_rewards(results),
        *claims.three_rewards(results),
        *claims.ablations(results),
        _counterexample(),
    ]
    report.write(document, scale, output, results, [*references, *runs], found)
    say(f"{time.monotonic() - started:.0f} s; written to {document}")
    for claim in found:
        say(f"{claim.verdict:15} {claim.section:16} {claim.claim}")


def _decoding(scale: Scale, output: pathlib.Path) -> Claim:
    """Sec. 4.1.1: what DeRa costs at inference."""
    from clp_jax.data.batches import Batches
    from clp_jax.reproduction.decoding import logit_mixing_cost
    from clp_jax.runs import restoring
    from clp_jax.settings import command_line

    spec = next(s for s in specs(scale, output) if s.name == f"multi_kl/full/{scale.seeds[0]}")
    run = command_line.saved_run(str(spec.model_dir(output)))
    params, reference, _ = restoring.restore_params(run)
    prompts = next(Batches(run.infer_eval_dataset_cfg, repeat=False)).prompts
    ratio = np.median(logit_mixing_cost(run.clp, params, reference, prompts))
    return Claim(
        "4.1.1, Fig. 2b",
        "DeRa's decoding costs about twice CLP's.",
        (
            Check.of(
                f"seconds of DeRa's decoding / CLP's, {len(prompts)} prompts, median of 15",
                [ratio],
                1.8,
                2.2,
            ),
        ),
        ("multi_kl",),
    )


def _counterexample() -> Claim:
    """Sec. 6.2."""
    from clp_jax.theory import counterexample

    found = counterexample.run(range(10))
    clp, soup = found.clp, found.rewarded_soups
    return Claim(
        "6.2, Fig. 19",
        "Where the best compromise is something that no expert does, CLP finds it and Rewarded "
        "Soups cannot.",
        (
            Check.of("CLP: largest gap to V* over 21 weightings", clp.largest_gaps, at_most=0.005),
            Check.of("Rewarded Soups: the same", soup.largest_gaps, 0.15),
            Check.of("CLP: probability of y3 at w = (.5, .5)", clp.compromise, 0.98),
            Check.of("Rewarded Soups: the same", soup.compromise, at_most=0.15),
        ),
        (),
        "Ten seeds; `python -m clp_jax.counterexample`, seconds.",
    )
