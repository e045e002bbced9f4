"""A CLP training run from its configuration to its last checkpoint."""

import pathlib
from typing import Any

import jax

from clp_jax import conditioning, describe, loop, supervised
from clp_jax import train_step as clp_step
from clp_jax.config import DatasetConfig, Run
from clp_jax.data import tasks
from clp_jax.data.batches import Batches
from clp_jax.evaluation import report, sweep
from clp_jax.metrics_log import MetricsLog, say
from clp_jax.models import checkpoints
from clp_jax.policy import CLPPolicy
from clp_jax.rewards.base import RewardStack
from clp_jax.run_checkpoints import RunCheckpoints
from clp_jax.train_step import TrainState
from clp_jax.trainer import Trainer, prompter
from clp_jax.watch import KLWatch

Params = Any


def check(run: Run) -> None:
    """Raises ValueError for whatever would stop the run, before anything is compiled.

    Checked: the Tasks exist and are large enough, the rewards find their columns and return scores,
    S matches parameters, and the reference policy has somewhere to come from and fits the model.

    Raises:
      RewardError: a reward failed on two references taken as completions.
    """
    for config in (run.train_dataset_cfg, run.infer_eval_dataset_cfg):
        tasks.check_task(config.mixture_or_task_name)
        _check_records(run, config, run.model.rewards)
        prefix = tasks.prompt_prefix(config.mixture_or_task_name)
        run.model.rewards.check_policy(prefix, run.max_decode_length)
        if run.evaluation.rewards is not None:
            _check_records(run, config, run.evaluation.rewards)
            run.evaluation.rewards.check_policy(prefix, run.max_decode_length)
    state_shapes(run)
    path = run.model_dir if has_reference(run) else run.checkpoint_cfg.restore.path
    if path:
        checkpoints.check_params(path, reference_shapes(run), run.model.module.config)
    elif not (run.sft.steps or run.sft.init_from_scratch):
        raise ValueError(
            "the reference policy has no parameters: set INITIAL_CHECKPOINT_PATH, or SFT_STEPS to "
            "train it here, or INIT_FROM_SCRATCH=True to try things out on a random one"
        )


def _check_records(run: Run, config: DatasetConfig, rewards: RewardStack) -> None:
    name = config.mixture_or_task_name
    source = f"task {name!r}, split {config.split!r}"
    records = tasks.columns(name, config.split)
    if records is None:
        rewards.check_columns(("document", "summary"), source)
        return
    needed = max(run.train_dataset_cfg.batch_size, run.sft.batch_size if run.sft.steps else 0)
    if config.split == run.train_dataset_cfg.split and len(records) < needed:
        raise ValueError(f"{source} has {len(records)} examples, fewer than one batch of {needed}")
    names = tasks.column_names(records)
    rewards.check_columns(names, f"{source}; columns that every example has")
    # What a reward does wrong on every batch shows on these.
    rows = records[:2]
    columns = {column: [row[column] for row in rows] for column in names}
    rewards.submit([row["prompt"] for row in rows], columns["summary"], columns).result()


def check_checkpoint(run: Run) -> None:
    """Raises ValueError if MODEL_DIR holds a checkpoint of another m, S or model size."""
    saved = RunCheckpoints(_folder(run))
    if saved.latest_step() is not None:
        saved.check(state_shapes(run))
    saved.close()


def dry_run(run: Run) -> None:
    """Prints the resolved run and the shapes of its state; writes nothing."""
    say(describe.resolved_run(run, state_shapes(run)))
    print(describe.shapes(state_shapes(run)))


def train(run: Run) -> TrainState:
    """Trains to `run.total_steps`, from MODEL_DIR's last checkpoint if there is one.

    Returns:
      The last state; MODEL_DIR holds its checkpoint, logs, and an evaluation.
    """
    say(describe.resolved_run(run, state_shapes(run)))
    folder = pathlib.Path(run.model_dir)
    reference = load_reference(run)
    batches = Batches(run.train_dataset_cfg, repeat=True, seed=run.random_seed)
    saved = RunCheckpoints(_folder(run), run.checkpoint_cfg.save)
    state = clp_step.init_train_state(
        run.clp, reference, run.model.subset, run.model.num_objectives
    )
    first_step = saved.latest_step() or 0
    if first_step:
        say(f"resuming from step {first_step} of {run.model_dir}")
        state = saved.restore(state, first_step, batches)
    log = MetricsLog(folder, first_step)

    policy = CLPPolicy(run.clp, state.params, reference, prompter(run.model))

    def evaluate(state: TrainState, step: int) -> None:
        policy.params = state.params
        result = sweep.sweep(policy, run)
        policy.release()
        report.write(result, folder / "evaluation" / str(step))
        log.scalars(step, result.scalars())

    try:
        values = folder / "evaluation" / str(first_step) / report.VALUES
        if first_step and _evaluates(run, first_step) and not values.is_file():
            evaluate(state, first_step)  # a reward failed in it
        return loop.train(
            Trainer(run, reference),
            state,
            batches,
            what="clp",
            first_step=first_step,
            total_steps=run.total_steps,
            stats_period=run.stats_period,
            save_period=run.checkpoint_cfg.save.period,
            log=log,
            checkpoints=saved,
            evaluate=evaluate,
            eval_period=run.eval_period,
            watch=None if run.model.kl_warning is None else KLWatch(run.model.kl_warning),
        )
    finally:
        saved.close()
        log.close()


def _evaluates(run: Run, step: int) -> bool:
    """Whether there is an evaluation after this many steps."""
    return step == run.total_steps or (run.eval_period > 0 and step % run.eval_period == 0)


def restore(run: Run, step: int | None = None) -> tuple[TrainState, Params]:
    """A trained run's state and reference.

    Args:
      run: as it was trained.
      step: which checkpoint; None for the latest.
    """
    saved = RunCheckpoints(_folder(run))
    state = saved.restore(state_shapes(run), step)
    saved.close()
    return state, checkpoints.load_params(run.model_dir, reference_shapes(run))


def restore_policy(run: Run, step: int | None = None) -> tuple[CLPPolicy, int]:
    """A trained run's policy, and the step its checkpoint was made at."""
    state, reference = restore(run, step)
    policy = CLPPolicy(run.clp, state.params, reference, prompter(run.model))
    return policy, int(state.step)


def has_reference(run: Run) -> bool:
    """Whether MODEL_DIR holds its reference policy already."""
    return pathlib.Path(run.model_dir, checkpoints.REFERENCE).is_dir()


def load_reference(run: Run) -> Params:
    """θ_ref: from MODEL_DIR, else a checkpoint, else supervised finetuning, else random.

    The run's own copy is written to MODEL_DIR/reference the first time, and only read from then on.
    """
    if has_reference(run):
        return checkpoints.load_params(run.model_dir, reference_shapes(run))
    if run.checkpoint_cfg.restore.path:
        reference = checkpoints.load_params(
            run.checkpoint_cfg.restore.path, reference_shapes(run), run.model.module.config
        )
    elif run.sft.steps:
        return supervised.finetune(run)
    else:
        say("the reference policy is a random one (INIT_FROM_SCRATCH)")
        reference = supervised.init_params(run)
    checkpoints.save_params(pathlib.Path(run.model_dir, checkpoints.REFERENCE), reference)
    return reference


def reference_shapes(run: Run) -> Params:
    """Shapes of θ_ref."""
    return jax.eval_shape(lambda: supervised.init_params(run))


def state_shapes(run: Run) -> TrainState:
    """Shapes of the training state; nothing is compiled or allocated."""
    return jax.eval_shape(
        lambda reference: clp_step.init_train_state(
            run.clp, reference, run.model.subset, run.model.num_objectives
        ),
        reference_shapes(run),
    )


def parameter_count(run: Run) -> conditioning.ParameterCount:
    """What S costs in this run."""
    return conditioning.count_parameters(state_shapes(run).params, run.model.num_objectives)


def _folder(run: Run) -> pathlib.Path:
    return pathlib.Path(run.model_dir, "checkpoints")
