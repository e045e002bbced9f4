"""A steerable policy over a grid of weightings: one completion of every prompt at each of them."""

import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from clp_jax.algorithm import losses
from clp_jax.algorithm.rollout import Rollout, repetition_rate
from clp_jax.algorithm.weighting import Weighting
from clp_jax.data.batches import Batch, Batches, decode
from clp_jax.evaluation.grids import grid
from clp_jax.evaluation.result import SweepResult
from clp_jax.machine import hosts
from clp_jax.machine.hosts import Rows
from clp_jax.models import partitioning
from clp_jax.policies.policy import SteerablePolicy
from clp_jax.reporting.errors import Preempted
from clp_jax.reporting.metrics_log import say
from clp_jax.rewards.base import RewardScores, RewardStack

if TYPE_CHECKING:
    from clp_jax.settings.config import Run


PARTS = "weightings"
Stop = Callable[[], bool]

_SECONDS_BETWEEN_LINES = 10.0

_repetition_rate = jax.jit(repetition_rate)


def sweep(
    policy: SteerablePolicy,
    run: "Run",
    weightings: Sequence[tuple[float, np.ndarray]] | None = None,
    folder: pathlib.Path | None = None,
    name: str = "",
    prompts: "Prompts | None" = None,
    stop: Stop | None = None,
) -> SweepResult:
    """Generates for every validation prompt at every weighting, and scores it.

    The same random numbers are used at every weighting, so that weightings are compared on equal
    terms.

    Args:
      policy: what is evaluated.
      run: the data, the rewards and the seed.
      weightings: (α, w); None for `grid(run)`.
      folder: each weighting is kept there when it is done, and read by the next call that wants the
        same; None to keep nothing.
      name: what the policy is, e.g. its step; a weighting of another name, or of another MODEL_DIR,
        is not read.
      prompts: of the run, for several sweeps of it; None to read them.
      stop: asked between weightings whether to end early.

    Raises:
      Preempted: `stop` said so; the weightings that are done are kept.
      RewardError: a reward failed.
      ValueError: the batches cannot be shared by the policy's devices; names what could.
    """
    weightings = grid(run) if weightings is None else weightings
    config = run.infer_eval_dataset_cfg
    policy.placement.check_batch("EVAL_BATCH_SIZE", config.batch_size)
    for rewards in filter(None, (run.model.rewards, run.evaluation.rewards)):
        rewards.place(policy.placement)
    rows = Rows(policy.placement.batch, config.batch_size)
    prompts = prompts or Prompts(run)
    started, said, parts = time.monotonic(), time.monotonic(), []
    for i, (kl_weight, reward_weights) in enumerate(weightings):
        path = folder and folder / PARTS / f"{i:03d}.npz"
        identity = _identity(run, name, kl_weight, reward_weights, len(prompts.documents))
        part = _kept(path, identity)
        if not hosts.unanimous(part is not None) or part is None:
            part = _at(policy, run, prompts, Weighting.of(kl_weight, reward_weights), rows)
            if path is not None and hosts.is_main():
                _keep(path, identity, part)
        parts.append(part)
        if stop is not None and i + 1 < len(weightings) and stop():
            raise Preempted(f"{i + 1} of {len(weightings)} weightings are evaluated")
        if (now := time.monotonic()) - said > _SECONDS_BETWEEN_LINES:
            said, left = now, (now - started) / (i + 1) * (len(weightings) - i - 1)
            say(f"evaluation {i + 1}/{len(weightings)} weightings  ETA {left:.0f} s")
    return SweepResult(
        names=run.model.rewards.names,
        other_names=run.evaluation.rewards.names if run.evaluation.rewards else (),
        kl_weights=np.asarray([kl_weight for kl_weight, _ in weightings]),
        reward_weights=np.asarray([weights for _, weights in weightings]),
        documents=np.array(prompts.documents, object),
        references=np.array(prompts.references, object),
        truncated_prompts=prompts.truncated,
        **{key: np.stack([part[key] for part in parts]) for key in parts[0]},
    )


class Prompts:
    """A run's validation prompts, in batches of one size.

    Attributes:
      batches: (batch, how many of its examples count, prompts [width, E]).
      documents: of all that count.
      references: likewise, the reference summaries.
      truncated: how many of them were longer than the encoder's length.
    """

    def __init__(self, run: "Run"):
        config, limit = run.infer_eval_dataset_cfg, run.evaluation.num_examples
        self.batches: list[tuple[Batch, int, np.ndarray]] = []
        self.documents: list[str] = []
        self.references: list[str] = []
        self.truncated = 0
        for batch in Batches(config, repeat=False):
            size = len(batch.prompts)
            if limit is not None:
                size = min(size, limit - len(self.documents))
            if size <= 0:
                break
            # The last batch is filled up, so that one compiled generator serves all.
            filled = np.resize(batch.prompts, (config.batch_size, batch.prompts.shape[1]))
            self.batches.append((batch, size, filled))
            self.documents += batch.columns.get("document", batch.prompt_texts)[:size]
            self.references += batch.columns.get("summary", [""] * len(batch.prompts))[:size]
            self.truncated += int(batch.truncated[:size].sum())


def _at(
    policy: SteerablePolicy, run: "Run", prompts: Prompts, weighting: Weighting, rows: Rows
) -> dict[str, np.ndarray]:
    """The fields of `SweepResult` at one weighting, [P, ...] each."""
    parts = []
    for index, (batch, size, filled) in enumerate(prompts.batches):
        key = jax.random.fold_in(jax.random.key(run.random_seed), index)
        rollout = policy.generate(weighting, filled, key)
        fields = _scored(run, rollout, batch, size, rows)
        parts.append({name: values[:size] for name, values in fields.items()})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _scored(
    run: "Run", rollout: Rollout, batch: Batch, size: int, rows: Rows
) -> dict[str, np.ndarray]:
    """The fields of `SweepResult` for one batch at one weighting; rows from `size` on are void."""
    scores = _reward_scores(run.model.rewards, run, rollout, batch, size, rows)
    other_scores = _reward_scores(run.evaluation.rewards, run, rollout, batch, size, rows)
    whole = hosts.everywhere(rollout)
    kl = losses.sampled_kl(whole.log_probs, whole.reference_log_probs, whole.mask)
    return {
        "prompt_raw": rows.gather(scores.raw),
        "prompt_normalised": rows.gather(scores.normalised),
        "prompt_other_raw": rows.gather(other_scores.raw),
        "prompt_other_normalised": rows.gather(other_scores.normalised),
        "prompt_kl": np.asarray(kl),
        "prompt_length": whole.mask.sum(axis=1),
        "prompt_repetition": np.asarray(_repetition_rate(whole.completions, whole.mask)),
        "completions": np.array(decode(run.model.vocabulary, whole.completions), object),
    }


def _reward_scores(
    rewards: RewardStack | None, run: "Run", rollout: Rollout, batch: Batch, size: int, rows: Rows
) -> RewardScores:
    """The scores of this process's rows, fillers left out of what the host scores."""
    counts = rows.indices < size
    raw = np.zeros((len(counts), rewards.num_objectives if rewards else 0), np.float32)
    scores = RewardScores(raw, raw.copy())
    if rewards is None:
        return scores
    mine = rows.indices[counts]
    on_device = rewards.dispatch(rollout.plain_prompts, rollout.completions, rollout.mask)
    completions = decode(run.model.vocabulary, partitioning.local_rows(rollout.completions)[counts])
    columns = {name: [values[i] for i in mine] for name, values in batch.columns.items()}
    texts = ([batch.prompt_texts[i] for i in mine], completions, columns)

    def combined() -> RewardScores | None:
        device_scores = {name: s[counts] for name, s in on_device.result().items()}
        if not counts.any():
            return None
        return rewards.combine(device_scores, rewards.submit(*texts).result())

    found = hosts.all_or_none(combined)
    if found is not None:
        scores.raw[counts], scores.normalised[counts] = found
    return scores


def _kept(path: pathlib.Path | None, identity: str) -> dict[str, np.ndarray] | None:
    """A weighting that a sweep which was stopped had done; None for nothing, or something else."""
    if path is None or not path.is_file():
        return None
    with np.load(path) as file:
        part = dict(file)
    if str(part.pop("identity")) != identity:
        return None
    part["completions"] = np.array(json.loads(str(part["completions"])), object)
    return part


def _keep(path: pathlib.Path, identity: str, part: Mapping[str, Any]) -> None:
    """Keeps a weighting that is done, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    completions = json.dumps(part["completions"].tolist())
    with partial.open("wb") as file:
        np.savez(file, **{**part, "completions": completions, "identity": identity})
    partial.rename(path)


def _identity(
    run: "Run", name: str, kl_weight: float, reward_weights: np.ndarray, num_prompts: int
) -> str:
    """What has to be the same for a kept weighting to be the one that is wanted."""
    others = run.evaluation.rewards
    return json.dumps(
        {
            "model_dir": run.model_dir,
            "name": name,
            "mixing": run.evaluation.mixing,
            "kl_weight": kl_weight,
            "reward_weights": reward_weights.tolist(),
            "rewards": run.model.rewards.describe(),
            "other_rewards": others.describe() if others else "",
            "num_prompts": num_prompts,
            "batch_size": run.infer_eval_dataset_cfg.batch_size,
            "seed": run.random_seed,
        }
    )
