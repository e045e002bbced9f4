"""A CLP training run from its configuration to its last checkpoint."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from clp_jax.algorithm.train_step import TrainState
from clp_jax.algorithm.weighting import check_draws
from clp_jax.data import batches as batches_lib
from clp_jax.data import tasks
from clp_jax.evaluation import report, sweep
from clp_jax.machine import hosts
from clp_jax.machine.hosts import Rows
from clp_jax.machine.preemption import Preemption
from clp_jax.models import checkpoints
from clp_jax.models.partitioning import Placement
from clp_jax.policies.rewarded_soup import expert_runs
from clp_jax.reporting import metrics_log
from clp_jax.reporting.metrics_log import Log, say
from clp_jax.rewards.base import RewardStack
from clp_jax.runs import describe, loop, restoring, run_checkpoints, states, supervised, watch
from clp_jax.runs.run_checkpoints import RunCheckpoints
from clp_jax.runs.trainer import Trainer
from clp_jax.settings.config import DatasetConfig, Run

Params = Any


def check(run: Run) -> None:
    """Raises ValueError for whatever would stop the run, before anything is compiled.

    Checked: the devices can share the networks and the batches, the Tasks exist and are large
    enough, the rewards find their columns and return scores, what draws weightings draws such, S
    matches parameters, and the reference policy has somewhere to come from and fits the model.

    Raises:
      RewardError: a reward failed on two references taken as completions.
    """
    place = states.placement(run)
    rows = Rows(place.batch, run.train_dataset_cfg.batch_size)
    batches_lib.check_shares(run.train_dataset_cfg, rows.shares)
    stacks = [*filter(None, (run.model.rewards, run.evaluation.rewards))]
    for rewards in stacks:
        rewards.place(place)
    for config in (run.train_dataset_cfg, run.infer_eval_dataset_cfg):
        tasks.check_task(config.mixture_or_task_name)
        prefix = tasks.prompt_prefix(config.mixture_or_task_name)
        for rewards in stacks:
            _check_records(run, config, rewards)
            rewards.check_policy(prefix, run.max_decode_length)
    model = run.model
    samplers = (model.kl_weight_sampler, model.reward_weights_sampler)
    check_draws(*samplers, model.kl_mix, model.num_objectives)
    states.state_shapes(run)
    path = run.model_dir if restoring.has_reference(run) else run.checkpoint_cfg.restore.path
    if path:
        checkpoints.check_params(path, states.reference_shapes(run), run.model.module.config)
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
    sizes = {"BATCH_SIZE": run.train_dataset_cfg.batch_size}
    if run.sft.steps:
        sizes["SFT_BATCH_SIZE"] = run.sft.batch_size
    setting = max(sizes, key=sizes.__getitem__)
    if config.split == run.train_dataset_cfg.split and len(records) < sizes[setting]:
        raise ValueError(
            f"{source} has {len(records)} examples, fewer than one batch of {sizes[setting]} "
            f"({setting})"
        )
    names = tasks.column_names(records)
    rewards.check_columns(names, f"{source}; columns that every example has")
    # What a reward does wrong on every batch shows on these.
    rows = records[:2]
    columns = {column: [row[column] for row in rows] for column in names}
    rewards.submit([row["prompt"] for row in rows], columns["summary"], columns).result()


def check_checkpoint(run: Run) -> None:
    """Raises ValueError if MODEL_DIR holds a checkpoint that this run cannot go on from.

    That is one of another m, S or model size, or with data in parts that these hosts cannot share.
    """
    place = states.placement(run)
    for each in expert_runs(run) if run.model.rewarded_soup else [run]:
        saved = RunCheckpoints(restoring.checkpoint_folder(each.model_dir))
        if saved.latest_step() is not None:
            saved.check(states.state_shapes(each))
        _check_position(saved, place, run.train_dataset_cfg)
    if run.sft.steps and not restoring.has_reference(run):
        saved = RunCheckpoints(supervised.checkpoint_folder(run))
        _check_position(saved, place, supervised.dataset_config(run))


def _check_position(saved: RunCheckpoints, place: Placement, config: DatasetConfig) -> None:
    """Raises ValueError if the data of the last checkpoint, if any, cannot be shared by hosts."""
    if saved.latest_step() is not None:
        readers = Rows(place.batch, config.batch_size).shares
        batches_lib.check_shares(config, readers, saved.position_names())
    saved.close()


def dry_run(run: Run) -> None:
    """Prints the resolved run and the shapes of its state; writes nothing."""
    shapes = states.state_shapes(run)
    with closing_rewards(run):
        say(describe.resolved_run(run, shapes))
        print(describe.shapes(shapes))


def train(run: Run) -> None:
    """Trains to `run.total_steps`, from MODEL_DIR's last checkpoint if there is one.

    MODEL_DIR then holds its checkpoints, logs, and an evaluation. Rewarded Soups train m policies
    in MODEL_DIR/experts, one after the other.

    Raises:
      Preempted: SIGTERM came; what was done is saved.
      RewardError: a reward failed; the steps before are saved.
    """
    say(describe.resolved_run(run, states.state_shapes(run)))
    place = states.placement(run)
    with Preemption() as preemption, closing_rewards(run):
        reference = load_reference(run, place, preemption)
        if not run.model.rewarded_soup:
            _train(run, reference, place, preemption, evaluate=True)
            return
        for expert_run, name in zip(expert_runs(run), run.model.rewards.names, strict=True):
            say(f"expert of {name}: {expert_run.total_steps} of {run.total_steps} steps")
            _train(expert_run, reference, place, preemption, evaluate=False)
        folder = _evaluation_folder(run, run.total_steps)
        if not hosts.unanimous((folder / report.VALUES).is_file()):
            policy, step = restoring.restore_policy(run)
            name = f"step {step}"
            result = sweep.sweep(policy, run, folder=folder, name=name, stop=preemption)
            if hosts.is_main():
                report.write(result, folder)


@contextlib.contextmanager
def closing_rewards(run: Run) -> Iterator[None]:
    """Ends the processes of a run's rewards, which Python may trip over if they end with it."""
    try:
        yield
    finally:
        for rewards in filter(None, (run.model.rewards, run.evaluation.rewards)):
            rewards.close()


def _train(
    run: Run, reference: Params, place: Placement, preemption: Preemption, *, evaluate: bool
) -> None:
    """Trains one policy, with or without evaluations."""
    batches = batches_lib.shared(run.train_dataset_cfg, run.random_seed, place)
    saved = RunCheckpoints(restoring.checkpoint_folder(run.model_dir), run.checkpoint_cfg.save)
    state = start(run, reference, saved, batches, place)
    first_step = int(state.step)
    log = metrics_log.opened(pathlib.Path(run.model_dir), first_step)
    evaluation = Evaluation(run, reference, log, place, preemption) if evaluate else None
    with contextlib.closing(log), contextlib.closing(saved):
        if evaluation is not None and first_step and evaluation.is_missing(first_step):
            evaluation(state, first_step)  # a reward failed in it
        loop.train(
            Trainer(run, reference, place),
            state,
            batches,
            what="clp",
            first_step=first_step,
            total_steps=run.total_steps,
            stats_period=run.stats_period,
            save_period=run.checkpoint_cfg.save.period,
            log=log,
            checkpoints=saved,
            evaluate=evaluation,
            eval_period=run.eval_period,
            watch=watch.of(run.model.kl_warning),
            stop=preemption,
        )


def start(
    run: Run,
    reference: Params,
    saved: RunCheckpoints,
    batches: run_checkpoints.Position,
    place: Placement,
) -> TrainState:
    """The state that training goes on from: the last checkpoint, or the first one of all.

    Args:
      run: the configuration.
      reference: θ_ref.
      saved: the run's checkpoints.
      batches: moved to where the state stood in them.
      place: over which devices it is.
    """
    first_step = saved.latest_step()
    if not first_step:
        return states.init_state(run, reference, place)
    say(f"resuming from step {first_step} of {run.model_dir}")
    return saved.restore(states.state_shapes(run, place), first_step, batches)


class Evaluation:
    """The evaluations of a run under way; generator and prompts are kept from one to the next.

    Args:
      run: the configuration.
      reference: θ_ref.
      log: gets the scalars.
      place: over which devices.
      stop: asked between weightings whether to stop.
    """

    def __init__(self, run: Run, reference: Params, log: Log, place: Placement, stop: sweep.Stop):
        self._run, self._log, self._reference = run, log, reference
        self._place, self._stop = place, stop
        self._policy: Any = None
        self._prompts: sweep.Prompts | None = None

    def __call__(self, state: TrainState, step: int) -> None:
        """Evaluates `state`, of `step` steps, into MODEL_DIR/evaluation/STEP.

        Raises:
          Preempted: it was stopped; the weightings that are done are kept.
          RewardError: a reward failed.
        """
        if self._policy is None:
            self._policy = restoring.policy_of(
                self._run, state.params, self._reference, place=self._place
            )
        self._policy.params = state.params
        self._prompts = self._prompts or sweep.Prompts(self._run)
        folder, name = _evaluation_folder(self._run, step), f"step {step}"
        result = sweep.sweep(
            self._policy,
            self._run,
            folder=folder,
            name=name,
            prompts=self._prompts,
            stop=self._stop,
        )
        self._policy.release()
        if hosts.is_main():
            report.write(result, folder)
        self._log.scalars(step, result.scalars())

    def is_missing(self, step: int) -> bool:
        """Whether there should be an evaluation after this many steps, and is none."""
        period, last = self._run.eval_period, self._run.total_steps
        due = step == last or (period > 0 and step % period == 0)
        done = due and (_evaluation_folder(self._run, step) / report.VALUES).is_file()
        return due and not hosts.unanimous(done)


def load_reference(
    run: Run, place: Placement | None = None, stop: loop.Stop | None = None
) -> Params:
    """θ_ref: from MODEL_DIR, else a checkpoint, else supervised finetuning, else random.

    The run's own copy is written to MODEL_DIR/reference the first time, and only read from then on.

    Args:
      run: the configuration.
      place: over which devices it is; None for those of the run.
      stop: see `loop.train`.
    """
    place = place or states.placement(run)
    if hosts.unanimous(restoring.has_reference(run)):
        return restoring.restore_reference(run, place)
    reference = restoring.load_initial_params(run, place)
    if reference is not None:
        if run.sft.steps:
            say(
                f"INITIAL_CHECKPOINT_PATH is the reference policy as it is: SFT_STEPS="
                f"{run.sft.steps} are not trained (clp_jax.sft trains them)"
            )
    elif run.sft.steps:
        return supervised.finetune(run, place, stop)
    else:
        say("the reference policy is a random one (INIT_FROM_SCRATCH)")
        reference = states.init_params(run, place)
    checkpoints.save_params(pathlib.Path(run.model_dir, checkpoints.REFERENCE), reference)
    return reference


def _evaluation_folder(run: Run, step: int) -> pathlib.Path:
    return pathlib.Path(run.model_dir, "evaluation", str(step))
