"""The report of a reproduction, as Markdown with figures beside it."""

import pathlib
import platform
from collections.abc import Sequence

import jax

from clp_jax.evaluation import alignment, comparison, comparison_plots
from clp_jax.reporting.metrics_log import markdown_table
from clp_jax.reproduction import claims
from clp_jax.reproduction.checks import Claim
from clp_jax.reproduction.claims import NAMES
from clp_jax.reproduction.results import Results
from clp_jax.reproduction.runs import QUICK, RunSpec, Scale
from clp_jax.reproduction.workers import seconds

_INTRODUCTION = """# What of the paper holds on briefs

Written by `{command}`; {count} runs, {minutes:.0f} minutes of one core ({device}, jax {jax}).

Briefs is a small self-made corpus with rewards in closed form (entailment for the paper's NLI,
ROUGE, and quality for its TLDR reward), the model a T5 1.1 of 0.3 M parameters that was
finetuned on the reference summaries. This is far from T5-base on XSum: what holds here need not
hold there, nor the other way round. One reference policy serves all runs; the {seeds} seeds
change what is sampled and the order of the data. Values are KL-regularised rewards at α = 0.01
(Sec. 4.1.2) over {prompts} held-out prompts, in units in which each reward's range is 1; every
hypervolume has the reference point 0. Runs of the main comparison, of two rewards, have {steps}
steps of batch 32, those of one reward {kl_steps} with four KL weights in a batch (DeRa's with
α_min alone), the others, and logit-CLP with one reward, {short_steps}.

A claim is turned into figures with bounds, and each figure has to keep its bound in every seed.
A claim **holds** if all of its figures do, **partly** if some do. "±" is half of the 95 %
confidence interval of the mean over the seeds (Student's t). The paper gives no numbers for
"dominates", "steerable" or "competitive": the bounds are ours. Most come from a pilot study on
another small corpus, less a margin; all were set before these runs were made, and none was
changed after. Those of 0 ask for the sign alone.
"""

_ACCELERATOR = """## With an accelerator

The same comparison with a T5 of T5-small's size, trained from scratch on posts of Reddit with
learned rewards, is ready in `experiments/tldr_from_scratch/`: two commands of nine minutes. No
accelerator has run it yet.
"""

# What is drawn: experiment, methods, figure.
_FIGURES = (
    ("two_rewards", ("full", "attn", "logit", "prompting", "soup"), "fronts",
     "Two rewards (Fig. 3), seed {seed}: points joined in order of w; a square is w = (1, 0)."),
    ("multi_kl", ("full", "attn", "logit", "dera"), "reward_kl",
     "One reward, α varied (Fig. 2a), seed {seed}; logit-CLP after fewer steps."),
    ("three_rewards", ("full", "attn", "soup"), "bars",
     "Three rewards (Fig. 4), seed {seed}: 1 − V / V of Rewarded Soups; lower is better."),
    ("two_rewards", ("full", "attn", "prompting"), "progress",
     "Fronts by training step (Fig. 5), seed {seed}."),
    ("small_model", ("full", "prompting", "soup"), "fronts",
     "Two rewards with a model of half the width (Fig. 7), seed {seed}."),
)  # fmt: skip


def write(
    document: pathlib.Path,
    scale: Scale,
    output: pathlib.Path,
    results: Results,
    runs: Sequence[RunSpec],
    found: Sequence[Claim],
) -> None:
    """Writes the report.

    Args:
      document: Markdown file; figures go to a folder of the same name beside it.
      scale: of the runs.
      output: folder of the runs.
      results: their evaluations.
      runs: all of them, references included.
      found: the claims.
    """
    document.parent.mkdir(parents=True, exist_ok=True)
    spent = {run.name: seconds(run, output) for run in runs}
    introduction = _INTRODUCTION.format(
        command=f"python -m clp_jax.reproduce --scale=briefs{' --quick' if scale is QUICK else ''}",
        count=len(runs),
        minutes=sum(spent.values()) / 60,
        device=platform.processor() or platform.machine(),
        jax=jax.__version__,
        seeds=len(scale.seeds),
        steps=scale.steps,
        kl_steps=scale.kl_steps,
        short_steps=scale.short_steps,
        prompts=results.of("two_rewards", "full")[0].num_prompts,
    )
    parts = [
        introduction,
        "## Summary\n\n" + markdown_table([_summary(claim) for claim in found]),
        *[_claim(claim, spent) for claim in found],
        _oracle(results),
        *_figures(document, results),
        _ACCELERATOR,
        _commands(runs, output, spent),
    ]
    partial = document.with_name(f".{document.name}.partial")
    partial.write_text("\n\n".join(part.strip() for part in parts) + "\n")
    partial.rename(document)


def _summary(claim: Claim) -> dict[str, str]:
    held = sum(check.holds for check in claim.checks)
    return {
        "paper": claim.section,
        "claim": claim.claim,
        "here": claim.verdict,
        "figures that keep their bound": f"{held} of {len(claim.checks)}",
    }


def _claim(claim: Claim, spent: dict[str, float]) -> str:
    cost = sum(s for name, s in spent.items() if name.split("/")[0] in claim.runs)
    runs = ", ".join(f"`{name}`" for name in claim.runs)
    parts = (
        f"## {claim.section}: {claim.verdict}",
        claim.claim,
        markdown_table([check.row() for check in claim.checks]),
        claim.remark,
        f"Runs: {runs}, {cost / 60:.1f} minutes of one core." if runs else "",
    )
    return "\n\n".join(filter(None, parts))


def _oracle(results: Results) -> str:
    """How far from the best there is."""
    parts = ["## How far from the best summaries there are"]
    parts.append(
        "w · R of the best summary of each document at w, without KL "
        "(`clp_jax.data.briefs.oracle`), less that of the policy, over weightings and seeds."
    )
    for experiment, title, methods in (
        ("two_rewards", "Two rewards", ("full", "attn", "logit", "prompting", "soup")),
        ("three_rewards", "Three rewards", ("full", "attn", "soup")),
    ):
        rows = claims.oracle_gaps(results, experiment, methods)
        parts.append(f"{title}:\n\n" + markdown_table(rows))
    return "\n\n".join(parts)


def _figures(document: pathlib.Path, results: Results) -> list[str]:
    folder = document.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    parts, seed = ["## Figures"], results.seeds[0]
    for experiment, methods, kind, caption in _FIGURES:
        folders = {NAMES[m]: results.folder(experiment, m, seed) for m in methods}
        runs = [alignment.read(f"{name}={path}") for name, path in folders.items()]
        baseline = next((NAMES[m] for m in ("soup", "dera") if m in methods), None)
        compared = comparison.compare(runs, baseline, resamples=200)
        name = f"{experiment}_{kind}.png"
        getattr(comparison_plots, kind)(compared, folder / name)
        parts.append(f"{caption.format(seed=seed)}\n\n![{experiment}]({folder.name}/{name})")
    return parts


def _commands(runs: Sequence[RunSpec], output: pathlib.Path, spent: dict[str, float]) -> str:
    """The command of one run of each kind."""
    rows: dict[str, list[RunSpec]] = {}
    for run in runs:
        rows.setdefault(run.name.rpartition("/")[0] or run.name, []).append(run)
    lines = [
        "## Commands",
        "Each run is a command, here the first seed's; minutes are of one core, for all seeds.",
    ]
    for name, group in rows.items():
        minutes = sum(spent[run.name] for run in group) / 60
        lines.append(f"{name}, {minutes:.1f} minutes:\n\n    {group[0].command(output)}")
    return "\n\n".join(lines)
