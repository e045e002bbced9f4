"""A steerable policy over a grid of weightings: its values, and how well it follows its weights."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from clp_jax import losses
from clp_jax import weighting as weighting_lib
from clp_jax.config import Run
from clp_jax.data.batches import Batches
from clp_jax.policy import SteerablePolicy
from clp_jax.rewards.base import RewardScores
from clp_jax.rollout import repetition_rate
from clp_jax.trainer import decode
from clp_jax.weighting import Weighting

_repetition_rate = jax.jit(repetition_rate)


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """Means over the evaluated prompts at each of n weightings.

    Attributes:
      names: of the m objectives.
      kl_weights: α, [n].
      reward_weights: w, [n, m].
      raw: mean raw rewards, [n, m], in each reward's units.
      normalised: mean normalised rewards, [n, m].
      kl: mean sampled KL to the reference, [n], in nats.
      length: mean completion length, [n], in tokens.
      repetition: mean share of a completion's 3-grams that it had said before, [n], in [0, 1).
      other_names: of k rewards that the policy did not learn (EVAL_REWARDS).
      other_raw: their means, [n, k], in their own units.
      other_normalised: likewise, normalised.
      num_prompts: how many prompts each mean is over.
      truncated_prompts: how many of them were longer than the encoder's length.
      samples: one completion of the first prompt at each weighting, n strings.
    """

    names: tuple[str, ...]
    kl_weights: np.ndarray
    reward_weights: np.ndarray
    raw: np.ndarray
    normalised: np.ndarray
    kl: np.ndarray
    length: np.ndarray
    repetition: np.ndarray
    other_names: tuple[str, ...]
    other_raw: np.ndarray
    other_normalised: np.ndarray
    num_prompts: int
    truncated_prompts: int
    samples: tuple[str, ...]

    @property
    def values(self) -> np.ndarray:
        """KL-regularised rewards v_i = (1 − α) R_i − α KL (Sec. 4.1.2), [n, m]."""
        alpha = self.kl_weights[:, None]
        return (1 - alpha) * self.normalised - alpha * self.kl[:, None]

    def fronts(self) -> list["SweepResult"]:
        """One part for each α, in which only w varies; with one reward, everything, as α varies."""
        if len(self.names) == 1:
            return [self]
        distinct = dict.fromkeys(self.kl_weights.tolist())
        return [self._part(np.flatnonzero(self.kl_weights == kl_weight)) for kl_weight in distinct]

    def _part(self, rows: np.ndarray) -> "SweepResult":
        arrays = {key: v[rows] for key, v in vars(self).items() if isinstance(v, np.ndarray)}
        samples = tuple(self.samples[i] for i in rows)
        return SweepResult(**{**vars(self), **arrays, "samples": samples})

    @property
    def ranges(self) -> dict[str, float]:
        """max − min of each objective's value over the weightings; meant for one of `fronts`."""
        spread = np.ptp(self.values, axis=0)
        return dict(zip(self.names, spread.tolist(), strict=True))

    @property
    def controllability(self) -> dict[str, float]:
        """Kendall's τ-b between w_i and v_i over the weightings; 1 is perfectly steerable.

        0 where it is not defined, because w_i or v_i is constant.
        """
        columns = zip(self.names, self.reward_weights.T, self.values.T, strict=True)
        return {
            name: float(stats.kendalltau(weights, values).statistic)
            if np.ptp(weights) and np.ptp(values)
            else 0.0
            for name, weights, values in columns
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a weighting, for a table."""
        columns: dict[str, np.ndarray] = {
            **{f"w {name}": w for name, w in zip(self.names, self.reward_weights.T, strict=True)},
            "α": self.kl_weights,
            **dict(zip(self.names, self.normalised.T, strict=True)),
            **{f"{name} (raw)": r for name, r in zip(self.names, self.raw.T, strict=True)},
            "KL": self.kl,
            **{f"V {name}": v for name, v in zip(self.names, self.values.T, strict=True)},
            "length": self.length,
            "repetition": self.repetition,
            **self._others(),
        }
        return [
            {name: float(column[i]) for name, column in columns.items()}
            for i in range(len(self.kl_weights))
        ]

    def scalars(self) -> dict[str, float]:
        """What a training run logs of an evaluation."""
        return {
            **{f"eval/range/{name}": value for name, value in self.ranges.items()},
            **{f"eval/kendall_tau/{name}": value for name, value in self.controllability.items()},
            "eval/kl": float(self.kl.mean()),
            "eval/length": float(self.length.mean()),
            "eval/repetition": float(self.repetition.mean()),
            **{
                f"eval/other/{name}": float(values.mean())
                for name, values in zip(self.other_names, self.other_normalised.T, strict=True)
            },
        }

    def _others(self) -> dict[str, np.ndarray]:
        """The rewards that were not learned, normalised, and raw: name -> [n]."""
        columns = zip(self.other_names, self.other_normalised.T, self.other_raw.T, strict=True)
        return {
            key: values
            for name, normalised, raw in columns
            for key, values in ((f"other {name}", normalised), (f"other {name} (raw)", raw))
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain lists."""
        fields = {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in vars(self).items()
        }
        return fields | {
            "values": self.values.tolist(),
            "fronts": [
                {
                    "kl_weight": float(front.kl_weights[0]),
                    "range": front.ranges,
                    "kendall_tau": front.controllability,
                }
                for front in self.fronts()
            ],
        }


def grid(run: Run, kl_weights: Sequence[float] | None = None) -> list[tuple[float, np.ndarray]]:
    """The weightings a run is evaluated at: (α, w [m]).

    Args:
      run: says m, and how many points there are on an edge.
      kl_weights: None for the run's fixed α, or α_min where α varies; with one reward, for a grid
        of α.

    Raises:
      ValueError: α outside [α_min, 1].
    """
    model, points = run.model, run.evaluation.grid_points
    weights = weighting_lib.simplex_grid(model.num_objectives, points)
    for kl_weight in kl_weights or ():
        weighting_lib.check_kl_weight(kl_weight, model.kl_mix.kl_weight_min, "--kl_weight")
    return [(float(a), w) for a, w in itertools.product(kl_weights or _kl_weights(run), weights)]


def _kl_weights(run: Run) -> Sequence[float]:
    model = run.model
    match model.kl_weight_sampler:
        case weighting_lib.FixedKLWeight(kl_weight=fixed):
            return [fixed]
        case _ if model.num_objectives == 1:
            return weighting_lib.kl_weight_grid(model.kl_mix, run.evaluation.grid_points).tolist()
        case _:
            return [model.kl_mix.kl_weight_min]


def sweep(
    policy: SteerablePolicy, run: Run, weightings: Sequence[tuple[float, np.ndarray]] | None = None
) -> SweepResult:
    """Generates for every validation prompt at every weighting, and scores it.

    The same random numbers are used at every weighting, so that weightings are compared on equal
    terms.

    Args:
      policy: what is evaluated.
      run: the data, the rewards and the seed.
      weightings: (α, w); None for `grid(run)`.
    """
    weightings = grid(run) if weightings is None else weightings
    limit = run.evaluation.num_examples
    # The last batch is filled up, so that one compiled generator serves all.
    width = run.infer_eval_dataset_cfg.batch_size
    batches, seen, truncated = [], 0, 0
    for batch in Batches(run.infer_eval_dataset_cfg, repeat=False):
        size = len(batch.prompts) if limit is None else min(len(batch.prompts), limit - seen)
        if size <= 0:
            break
        batches.append((batch, size, np.resize(batch.prompts, (width, batch.prompts.shape[1]))))
        seen, truncated = seen + size, truncated + int(batch.truncated[:size].sum())
    totals = [_Totals(run) for _ in weightings]
    for (kl_weight, reward_weights), total in zip(weightings, totals, strict=True):
        weighting = Weighting.of(kl_weight, reward_weights)
        for index, (batch, size, prompts) in enumerate(batches):
            key = jax.random.fold_in(jax.random.key(run.random_seed), index)
            rollout = jax.device_get(policy.generate(weighting, prompts, key))
            total.add(jax.tree.map(lambda x, n=size: x[:n], rollout), batch)
    stacked = {
        key: np.asarray([total.means()[key] for total in totals]) for key in totals[0].means()
    }
    return SweepResult(
        names=run.model.rewards.names,
        other_names=run.evaluation.rewards.names if run.evaluation.rewards else (),
        kl_weights=np.asarray([kl_weight for kl_weight, _ in weightings]),
        reward_weights=np.asarray([weights for _, weights in weightings]),
        num_prompts=seen,
        truncated_prompts=truncated,
        samples=tuple(total.sample for total in totals),
        **stacked,
    )


class _Totals:
    """What has been seen at one weighting."""

    def __init__(self, run: Run):
        self._model, self._others = run.model, run.evaluation.rewards
        self._parts: list[Mapping[str, np.ndarray]] = []
        self.sample = ""

    def add(self, rollout, batch) -> None:
        size = len(rollout.completions)
        completions = decode(self._model, rollout.completions)
        columns = {name: column[:size] for name, column in batch.columns.items()}
        texts = (batch.prompt_texts[:size], completions, columns)
        tokens = (rollout.plain_prompts, rollout.completions, rollout.mask)
        scores = self._model.rewards(*texts, *tokens)
        none = np.zeros((size, 0), np.float32)
        others = self._others(*texts, *tokens) if self._others else RewardScores(none, none)
        kl = losses.sampled_kl(rollout.log_probs, rollout.reference_log_probs, rollout.mask)
        repetition = _repetition_rate(rollout.completions, rollout.mask)
        self.sample = self.sample or completions[0]
        self._parts.append(
            {
                "raw": scores.raw,
                "normalised": scores.normalised,
                "other_raw": others.raw,
                "other_normalised": others.normalised,
                "kl": np.asarray(kl),
                "length": rollout.mask.sum(axis=1),
                "repetition": np.asarray(repetition),
            }
        )

    def means(self) -> dict[str, np.ndarray]:
        return {
            key: np.concatenate([part[key] for part in self._parts]).mean(axis=0, dtype=float)
            for key in self._parts[0]
        }
