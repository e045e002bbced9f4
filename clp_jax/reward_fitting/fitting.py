"""Fitting a reward model, from its configuration to the files that a CLP run reads."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clp_jax.data import pair_batches, pairs
from clp_jax.models import checkpoints
from clp_jax.reporting.metrics_log import MetricsLog, say
from clp_jax.reward_fitting import fit as fit_lib
from clp_jax.reward_fitting import held_out
from clp_jax.reward_fitting.fit_config import FitRun, Params, State
from clp_jax.rewards import saved
from clp_jax.rewards.learned import same_vocabulary
from clp_jax.runs import loop
from clp_jax.runs.run_checkpoints import RunCheckpoints
from clp_jax.settings.config import SaveCheckpointConfig

REPORT = "held_out.json"
PLOT = "held_out.png"
_SHOWN_EXAMPLES = 4
_NOT_SCALARS = ("confusion", "range", "histogram", "step")


def check(run: FitRun) -> None:
    """Raises ValueError for whatever would stop the fit, before anything is compiled.

    Checked: Task, labels, vocabulary and network go together, every summary fits, there are enough
    examples, and the initial checkpoint fits the network.
    """
    model = run.model
    room = model.template.room(0) - 1
    if run.summary_length > room:
        raise ValueError(
            f"FIT_SUMMARY_LENGTH={run.summary_length} leaves no room for the document: of "
            f"FIT_MAX_LENGTH={run.max_length} tokens, a summary can have {max(room, 0)} at most"
        )
    theirs = pair_batches.vocabulary(run.task)
    if not same_vocabulary(run.vocabulary, theirs):
        raise ValueError(f"the Task {run.task!r} has another vocabulary than FIT_VOCABULARY")
    examples = len(pairs.records(run.task, "train"))
    if examples < run.batch_size:
        raise ValueError(
            f"task {run.task!r} has {examples} train examples, fewer than one batch of "
            f"FIT_BATCH_SIZE={run.batch_size}"
        )
    for split in ("train", "validation"):
        run.batches(split)
    path = run.initial_checkpoint_path
    if path is not None:
        config = run.module.config
        checkpoints.check_params(path, jax.eval_shape(run.init_params), config)


def describe(run: FitRun) -> str:
    """One aligned line for each thing that was decided."""
    config = run.module.config
    shapes = jax.eval_shape(run.init_params)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    sizes = {split: len(pairs.records(run.task, split)) for split in ("train", "validation")}
    before, between = (
        run.vocabulary.decode(list(tokens))
        for tokens in (run.model.template.before, run.model.template.between)
    )
    lines = {
        "reward model": f"{type(run.module).__name__}, {count:,} parameters "
        f"({config.num_encoder_layers} + {config.num_decoder_layers} layers, width "
        f"{config.emb_dim}, {config.vocab_size} tokens, dropout {config.dropout_rate:g})",
        "objective": str(run.objective),
        "score": str(run.model.head),
        "input": f"{before!r} document {between!r} summary, <= {run.max_length} tokens; summaries "
        f"<= {run.summary_length}",
        "data": f"{run.task}: {sizes['train']:,} examples, {sizes['validation']:,} held out; "
        f"batch {run.batch_size}",
        "from": run.initial_checkpoint_path or "random parameters",
        "steps": f"{run.total_steps:,}, checkpoint every {run.save_period:,}, seed "
        f"{run.random_seed}",
        "device": f"{jax.devices()[0].device_kind} (one of {jax.device_count()})",
        "MODEL_DIR": run.model_dir,
    }
    return "\n".join(f"{name:<14}{text}" for name, text in lines.items())


def fit(run: FitRun) -> dict[str, Any]:
    """Trains to `run.total_steps`, from MODEL_DIR's last checkpoint if there is one.

    Returns:
      The held-out report. MODEL_DIR holds the reward model (`saved.FOLDER`), the report with a plot
      of the scores, checkpoints and logs.
    """
    say(describe(run))
    folder = pathlib.Path(run.model_dir)
    batches: Any = run.batches("train")
    checkpoint_cfg = SaveCheckpointConfig(run.save_period, run.keep)
    run_checkpoints = RunCheckpoints(folder / "checkpoints", checkpoint_cfg)
    first_step = run_checkpoints.latest_step() or 0
    if first_step:
        say(f"resuming from step {first_step} of {run.model_dir}")
        shapes = jax.eval_shape(dataclasses.replace(run, initial_checkpoint_path=None).init_state)
        state = run_checkpoints.restore(shapes, first_step, batches)
    else:
        state = run.init_state()
    log = MetricsLog(folder, first_step)
    evaluation = _Evaluation(run, log)
    step: Any = FitStep(run)
    with contextlib.closing(log), contextlib.closing(run_checkpoints):
        state = loop.train(
            step,
            state,
            batches,
            what=run.objective.kind,
            first_step=first_step,
            total_steps=run.total_steps,
            stats_period=run.stats_period,
            save_period=run.save_period,
            log=log,
            checkpoints=run_checkpoints,
            evaluate=evaluation,
            eval_period=run.eval_period,
        )
        if first_step >= run.total_steps:  # it may have been killed before it wrote its model
            evaluation(state, first_step)
    report = evaluation.report
    saved.save(folder / saved.FOLDER, run.model, state["params"], run.vocabulary, report)
    say(summary(run, report))
    return report


class FitStep:
    """One step of the objective; see `clp_jax.runs.loop.Step`."""

    def __init__(self, run: FitRun):
        loss = functools.partial(run.objective.loss, run.model)
        step = functools.partial(fit_lib.fit_step, loss, run.optimizer)
        self._step = jax.jit(step, donate_argnums=0)
        self._seed = run.random_seed

    def __call__(
        self, state: State, batch: pairs.PairBatch, step: int
    ) -> tuple[State, dict[str, Any]]:
        """Dispatches the update."""
        arguments = (batch.documents, batch.summaries, batch.labels)
        numbers = (np.int32(self._seed), np.int32(step))
        return self._step(state, *jax.device_put((*arguments, *numbers)))

    def samples(self) -> Sequence[dict[str, Any]]:
        """None: nothing is sampled. `held_out.json` has examples with their scores."""
        return ()


class _Evaluation:
    """Evaluates on the held-out split, writes what was found and logs it.

    Attributes:
      report: the last one.
    """

    report: dict[str, Any]

    def __init__(self, run: FitRun, log: MetricsLog):
        self._run, self._log = run, log
        self._outputs = jax.jit(functools.partial(run.objective.outputs, run.model))

    def __call__(self, state: State, step: int) -> None:
        run, folder = self._run, pathlib.Path(self._run.model_dir)
        outputs, rows = self._all_outputs(state["params"])
        report = {"step": step, **run.objective.report(run.model.head, outputs)}
        examples = [
            {**row, "score": np.asarray(score).tolist()}
            for row, score in zip(rows[:_SHOWN_EXAMPLES], outputs["scores"], strict=False)
        ]
        partial = folder / f".{REPORT}.partial"
        partial.write_text(json.dumps({**report, "samples": examples}, indent=1) + "\n")
        partial.rename(folder / REPORT)
        title = f"{run.task}, {report['examples']} held-out examples, step {step}"
        held_out.plot(report, folder / PLOT, title)
        scalars = _scalars(report)
        self._log.scalars(step, {f"eval/{name}": value for name, value in scalars.items()})
        say("  held out: " + ", ".join(f"{name} {v:.3g}" for name, v in scalars.items()))
        for example in examples:
            say("  " + _example_line(example))
        self.report = report

    def _all_outputs(self, params: Params) -> tuple[dict[str, np.ndarray], list[Mapping[str, Any]]]:
        """(the objective's outputs with "labels", name -> [N, ...]; N records)."""
        run = self._run
        parts: list[dict[str, np.ndarray]] = []
        rows: list[Mapping[str, Any]] = []
        for batch in run.batches("validation"):
            missing = run.eval_batch_size - len(batch.rows)  # one shape, compiled once
            arguments = (
                np.pad(array, ((0, missing),) + ((0, 0),) * (array.ndim - 1))
                for array in (batch.documents, batch.summaries)
            )
            outputs = jax.device_get(self._outputs(params, *arguments))
            parts.append(
                {name: array[: len(batch.rows)] for name, array in outputs.items()}
                | {"labels": batch.labels}
            )
            rows.extend(batch.rows)
            if run.eval_examples is not None and len(rows) >= run.eval_examples:
                break
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        count = run.eval_examples
        return {name: array[:count] for name, array in outputs.items()}, rows[:count]


def _scalars(report: Mapping[str, Any]) -> dict[str, float]:
    values = {k: v for k, v in report.items() if k not in _NOT_SCALARS and v is not None}
    low, high = report["range"]
    return {**values, "range_low": low, "range_high": high}


def _example_line(example: Mapping[str, Any]) -> str:
    if "label" in example:
        return f"{example['score']:.2f} {example['label']} | {example['hypothesis'][:100]!r}"
    better, worse = example["score"]
    return f"{better:.2f} {example['better'][:60]!r} over {worse:.2f} {example['worse'][:60]!r}"


def summary(run: FitRun, report: Mapping[str, Any]) -> str:
    """What a person wants to know at the end: the metrics, and how to use the reward."""
    baseline = ""
    if "length_baseline" in report:
        baseline = f" (length alone: {report['length_baseline']:.3f})"
    area = "undefined" if report["auc"] is None else f"{report['auc']:.3f}"
    low, high = report["range"]
    ranges = f"{{'{run.objective.reward_name}': ({low:g}, {high:g})}}"
    return (
        f"{report['examples']} held-out examples: accuracy {report['accuracy']:.3f}{baseline}, "
        f"AUC {area}, calibration error {report['expected_calibration_error']:.3f}\n"
        f"written to {run.model_dir}: {saved.FOLDER}/, {REPORT}, {PLOT}\n"
        f'the range of its scores, for a CLP run: --gin.REWARD_RANGES="{ranges}"'
    )
