"""The paper's claims, as checks of the runs on briefs.

Bounds are on values in units of normalised reward, so that 1 is the whole range of a reward; the
reference point of every hypervolume is 0 for each reward. Where the paper says "dominates",
"steerable" or "competitive" without a number, the bound is ours; docs/reproduction.md says how
they were set.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from clp_jax.data.briefs import oracle
from clp_jax.evaluation.result import SweepResult
from clp_jax.reproduction.checks import Check, Claim
from clp_jax.reproduction.results import (
    Results,
    each,
    extent,
    hypervolume,
    least_tau,
    rouge_range,
    scalarized,
)

NAMES = {
    "full": "full-CLP",
    "attn": "attn-CLP",
    "logit": "logit-CLP",
    "prompting": "prompting",
    "soup": "Rewarded Soups",
    "dera": "DeRa",
}


def single_reward(results: Results) -> list[Claim]:
    """Sec. 4.1.1: one reward, the KL weight varied."""
    checks = []
    for method in ("full", "attn", "dera", "logit"):
        swept = results.of("multi_kl", method)
        left = [r.kl[-1] / r.kl[0] for r in swept]
        what = f"{NAMES[method]}: KL at α = 1 as a share of that at α_min"
        if method == "logit":
            checks.append(Check.of(what, left, at_least=0.1))
            continue
        falls = [-stats.kendalltau(r.kl_weights, r.kl).statistic for r in swept]
        checks.append(Check.of(f"{NAMES[method]}: −τ between α and KL", falls, at_least=0.8))
        checks.append(Check.of(what, left, at_most=0.1))
    dera = results.of("multi_kl", "dera")
    competitive = [
        Check.of(
            f"the least over α of V_α({NAMES[method]}) − V_α(DeRa)",
            [
                np.min(ours.values - theirs.values)
                for ours, theirs in zip(results.of("multi_kl", method), dera, strict=True)
            ],
            at_least=-0.02,
        )
        for method in ("full", "attn")
    ]
    return [
        Claim(
            "4.1.1, Fig. 2a",
            "With one reward, every method but logit-CLP passes smoothly from the reference "
            "(α = 1) to the policy of α_min.",
            tuple(checks),
            ("multi_kl",),
            "attn- and logit-CLP cannot return to the reference: the parameters outside S are not "
            "mixed with it. logit-CLP, where more steps would not change that, has the fewer steps "
            "of an ablation.",
        ),
        Claim(
            "4.1.1, Fig. 2a",
            "CLP is competitive with DeRa.",
            tuple(competitive),
            ("multi_kl",),
            "The number of steps and of KL weights in a batch was chosen with seeds 5 and 6.",
        ),
    ]


def two_rewards(results: Results) -> list[Claim]:
    """Sec. 4.1.2: two rewards at a fixed α."""
    swept = {
        method: results.of("two_rewards", method)
        for method in ("full", "attn", "logit", "prompting", "soup")
    }
    volume = {method: each(hypervolume, found) for method, found in swept.items()}
    value = {m: np.stack([scalarized(r) for r in found]) for m, found in swept.items()}
    first = swept["full"][0].reward_weights[:, 0]
    inner = (first > 0.15) & (first < 0.85)
    ahead = value["full"] - value["soup"]
    corners = np.isclose(first, 0) | np.isclose(first, 1)
    dominance = [
        Check.of("hypervolume: full-CLP − Rewarded Soups", volume["full"] - volume["soup"], 0.05),
        Check.of("hypervolume: attn-CLP − Rewarded Soups", volume["attn"] - volume["soup"], 0.04),
        Check.of(
            "hypervolume: prompting − Rewarded Soups", volume["prompting"] - volume["soup"], 0
        ),
        Check.of(
            "of the 7 weightings from .2 to .8, those where full-CLP is above Rewarded Soups",
            (ahead[:, inner] > 0).sum(axis=1),
            6,
        ),
        Check.of("V_w at the centre: full-CLP − Rewarded Soups", ahead[:, len(first) // 2], 0.04),
        Check.of(
            "V_w at the corners: full-CLP − Rewarded Soups, the smaller one",
            ahead[:, corners].min(axis=1),
            -0.06,
        ),
    ]
    ranges = {method: each(rouge_range, found) for method, found in swept.items()}
    extents = {method: each(extent, found) for method, found in swept.items()}
    steerable = [
        Check.of("full-CLP: range of ROUGE", ranges["full"], 0.6),
        Check.of("attn-CLP: range of ROUGE", ranges["attn"], 0.6),
        Check.of("prompting: range of ROUGE", ranges["prompting"], at_most=0.15),
        Check.of("full-CLP: the smaller Kendall's τ", each(least_tau, swept["full"]), 0.65),
        Check.of("attn-CLP: the smaller Kendall's τ", each(least_tau, swept["attn"]), 0.65),
        Check.of("extent: full-CLP − logit-CLP", extents["full"] - extents["logit"], 0),
        Check.of("extent: attn-CLP − logit-CLP", extents["attn"] - extents["logit"], 0),
    ]
    return [
        Claim(
            "4.1.2, Fig. 3",
            "CLP and prompting largely Pareto-dominate Rewarded Soups.",
            tuple(dominance),
            ("two_rewards",),
        ),
        Claim(
            "4.1.2, Fig. 3",
            "full- and attn-CLP are more steerable than logit-CLP and prompting, which collapse.",
            tuple(steerable),
            ("two_rewards",),
        ),
    ]


def three_rewards(results: Results) -> list[Claim]:
    """Sec. 4.1.3: three rewards at 13 weightings."""
    value = {
        method: np.stack([scalarized(r) for r in results.of("three_rewards", method)])
        for method in ("full", "attn", "soup")
    }
    weights = results.of("three_rewards", "full")[0].reward_weights
    corner = weights.max(axis=1) > 0.99
    ahead = value["full"] - value["soup"]
    checks = (
        Check.of(
            "of the 10 weightings between the corners, those with full-CLP above Rewarded Soups",
            (ahead[:, ~corner] > 0).sum(axis=1),
            7,
        ),
        Check.of(
            "V_w at the corners: full-CLP − Rewarded Soups, mean of three",
            ahead[:, corner].mean(axis=1),
            at_most=0,
        ),
        Check.of(
            "V_w between the corners: attn-CLP − full-CLP, mean of ten",
            (value["attn"] - value["full"])[:, ~corner].mean(axis=1),
            -0.02,
        ),
    )
    return [
        Claim(
            "4.1.3, Fig. 4",
            "With three rewards full-CLP is above Rewarded Soups at the intermediate weightings "
            "and below them at the corners; attn-CLP is competitive with full-CLP.",
            checks,
            ("three_rewards",),
        )
    ]


def ablations(results: Results) -> list[Claim]:
    """Sec. 4.2.1 to 4.2.3, App. C.1 and C.7."""
    return [
        _iterations(results),
        _prompt_too(results),
        _model_size(results),
        _kl_mix(results),
        _sampling(results),
    ]


def _iterations(results: Results) -> Claim:
    first = results.scale.eval_period
    checks = []
    for method in ("full", "attn"):
        early = each(rouge_range, results.of("two_rewards", method, first))
        late = each(rouge_range, results.of("two_rewards", method))
        what = f"{NAMES[method]}: range of ROUGE after {first} steps, as a share of the last one"
        checks.append(Check.of(what, early / late, 0.5))
    prompting = {t: results.of("two_rewards", "prompting", t) for t in (first, None)}
    growth = each(rouge_range, prompting[None]) - each(rouge_range, prompting[first])
    checks.append(Check.of("prompting: range of ROUGE, at the end − then", growth, 0.05))
    return Claim(
        "4.2.1, Fig. 5",
        "full- and attn-CLP are steerable early in training; prompting becomes steerable later.",
        tuple(checks),
        ("two_rewards",),
    )


def _prompt_too(results: Results) -> Claim:
    full = results.of("two_rewards", "full", results.scale.short_steps)
    both = results.of("prompt_too", "full")
    volume = each(hypervolume, both) - each(hypervolume, full)
    ranges = each(rouge_range, both) - each(rouge_range, full)
    return Claim(
        "4.2.2, Fig. 6",
        "Weights in the prompt do not hurt full-CLP, and may help a little.",
        (
            Check.of("hypervolume: with − without weights in the prompt", volume, -0.02),
            Check.of("range of ROUGE: with − without", ranges, -0.05),
        ),
        ("prompt_too", "two_rewards"),
    )


def _model_size(results: Results) -> Claim:
    small = {m: results.of("small_model", m) for m in ("full", "prompting", "soup")}
    volume = {method: each(hypervolume, found) for method, found in small.items()}
    return Claim(
        "4.2.3, Fig. 7",
        "The same holds for another size of model; prompting collapses on the smallest.",
        (
            Check.of("hypervolume: full-CLP − Rewarded Soups", volume["full"] - volume["soup"], 0),
            Check.of("full-CLP: range of ROUGE", each(rouge_range, small["full"]), 0.4),
            Check.of(
                "prompting: range of ROUGE", each(rouge_range, small["prompting"]), at_most=0.15
            ),
        ),
        ("small_model",),
    )


def _kl_mix(results: Results) -> Claim:
    def span(result: SweepResult) -> float:
        return float(np.ptp(result.kl))

    softmax = each(span, results.of("multi_kl", "full", results.scale.short_steps))
    linear = each(span, results.of("linear_kl_mix", "full"))
    return Claim(
        "C.1, Fig. 12",
        "f_mix of Eq. 4 is more steerable over α than f_mix(α) = α.",
        (Check.of("span of the KL over α, in nats: Eq. 4 − linear", softmax - linear, 0.1),),
        ("multi_kl", "linear_kl_mix"),
    )


def _sampling(results: Results) -> Claim:
    uniform = results.of("two_rewards", "full", results.scale.short_steps)
    corners = results.of("dirichlet_0.3", "full")
    volume = each(hypervolume, corners) - each(hypervolume, uniform)
    return Claim(
        "4.4, C.7, Fig. 18",
        "CLP does much the same whatever distribution weights are drawn from.",
        (
            Check.of(
                "full-CLP: hypervolume, with Dirichlet(0.3) − with Dirichlet(1)",
                volume,
                -0.05,
                0.05,
            ),
            Check.of(
                "full-CLP with Dirichlet(0.3): the smaller Kendall's τ",
                each(least_tau, corners),
                0.65,
            ),
        ),
        ("two_rewards", "dirichlet_0.3"),
    )


def oracle_gaps(results: Results, experiment: str, methods: Sequence[str]) -> list[dict[str, str]]:
    """How far each method stays below the best summaries there are, without KL, as table rows."""
    rows = []
    corner = results.of(experiment, "full")[0].reward_weights.max(axis=1) > 0.99
    for method in methods:
        gaps = []
        for swept in results.of(experiment, method):
            best = oracle.front(list(swept.documents), swept.reward_weights, swept.names)
            gaps.append(np.sum(swept.reward_weights * (best - swept.normalised), axis=1))
        gap = np.stack(gaps)
        rows.append(
            {
                "method": NAMES[method],
                "mean gap": f"{gap.mean():.3f}",
                "largest gap": f"{gap.max():.3f}",
                "mean gap at the corners": f"{gap[:, corner].mean():.3f}",
            }
        )
    return rows
