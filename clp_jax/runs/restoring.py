"""What a MODEL_DIR holds: the state, the reference and the policy of a run that has begun."""

import contextlib
import dataclasses
import pathlib
from typing import Any

from clp_jax.algorithm.conditioning import CLPParams, expert
from clp_jax.algorithm.train_step import TrainState
from clp_jax.models import checkpoints
from clp_jax.models.partitioning import Placement
from clp_jax.policies.logit_mixing import LogitMixingPolicy
from clp_jax.policies.policy import CLPPolicy
from clp_jax.policies.rewarded_soup import expert_runs, soup
from clp_jax.runs import states
from clp_jax.runs.run_checkpoints import RunCheckpoints
from clp_jax.runs.trainer import prompter
from clp_jax.settings.config import Run

Params = Any


def restore(run: Run, step: int | None = None) -> tuple[TrainState, Params]:
    """A trained run's state and reference.

    Args:
      run: as it was trained; no soup, which has a state for each expert.
      step: which checkpoint; None for the latest.
    """
    return _restore_state(run, step), restore_reference(run)


def restore_params(
    run: Run, step: int | None = None, place: Placement | None = None
) -> tuple[CLPParams, Params, int]:
    """A trained run's φ, its reference, and the step of the checkpoint.

    Args:
      run: as it was trained; φ of a soup has the experts' parameters.
      step: which checkpoint; None for the latest, and for a soup that of its experts.
      place: over which devices; None for the first one.

    Raises:
      ValueError: no such checkpoint, or a step of a soup other than its last one.
    """
    if not run.model.rewarded_soup:
        state = _restore_state(run, step, place)
        return state.params, restore_reference(run, place), int(state.step)
    experts = [_restore_state(expert_run, place=place) for expert_run in expert_runs(run)]
    done = sum(int(state.step) for state in experts)
    if step not in (None, done):
        raise ValueError(f"step {step}: a soup is taken of its experts' last steps, {done} in all")
    params = soup([expert(state.params, 0) for state in experts])
    return params, restore_reference(run, place), done


def restore_value_params(run: Run, step: int | None = None) -> Params:
    """Parameters of a trained run's value network.

    Raises:
      ValueError: no such checkpoint, or a soup, which has a value network for each expert.
    """
    if run.model.rewarded_soup:
        raise ValueError("a soup has no value network, but one for each of its experts")
    return _restore_state(run, step).value_params


def policy_of(
    run: Run,
    params: CLPParams,
    reference: Params,
    mixing: str | None = None,
    temperature: float | None = None,
    place: Placement | None = None,
) -> CLPPolicy | LogitMixingPolicy:
    """A run's steerable policy.

    Args:
      run: as it was trained.
      params: φ.
      reference: θ_ref.
      mixing: "parameters" or "logits"; None for what the run's evaluation says.
      temperature: of sampling, 0 for greedy; None for that of training.
      place: over which devices; None for the first one.

    Raises:
      ValueError: logits cannot be mixed in this run.
    """
    clp, mixing = run.clp, mixing or run.evaluation.mixing
    if temperature is not None:
        decoding = dataclasses.replace(clp.decoding, temperature=temperature)
        clp = dataclasses.replace(clp, decoding=decoding)
    if mixing == "parameters":
        return CLPPolicy(clp, params, reference, prompter(run.model), place)
    if run.model.condition_prompt:
        raise ValueError(
            "mixing logits: the reference has not learned to read the weights that "
            "CONDITION_PROMPT=True writes into the prompt"
        )
    return LogitMixingPolicy(clp, params, reference, run.model.rewarded_soup, place)


def restore_policy(
    run: Run,
    step: int | None = None,
    mixing: str | None = None,
    temperature: float | None = None,
) -> tuple[CLPPolicy | LogitMixingPolicy, int]:
    """A trained run's policy (`policy_of`) over all devices, and the step of its checkpoint."""
    place = states.placement(run, training=False)
    params, reference, step = restore_params(run, step, place)
    return policy_of(run, params, reference, mixing, temperature, place), step


def _restore_state(run: Run, step: int | None = None, place: Placement | None = None) -> TrainState:
    with contextlib.closing(RunCheckpoints(checkpoint_folder(run.model_dir))) as saved:
        state = saved.restore(states.state_shapes(run, place), step)
    checkpoints.check_finite(state.params, f"{checkpoint_folder(run.model_dir)}/{int(state.step)}")
    return state


def restore_reference(run: Run, place: Placement | None = None) -> Params:
    """θ_ref of a run that has begun; on the first device where no other is given."""
    folder = pathlib.Path(run.model_dir, checkpoints.REFERENCE)
    return checkpoints.load_params(folder, states.reference_shapes(run, place))


def load_initial_params(run: Run, place: Placement | None = None) -> Params | None:
    """The plain LM parameters of INITIAL_CHECKPOINT_PATH; None if it is not set."""
    path = run.checkpoint_cfg.restore.path
    if not path:
        return None
    shapes = states.reference_shapes(run, place)
    return checkpoints.load_params(path, shapes, run.model.module.config)


def has_reference(run: Run) -> bool:
    """Whether MODEL_DIR holds its reference policy already."""
    return pathlib.Path(run.model_dir, checkpoints.REFERENCE).is_dir()


def checkpoint_folder(model_dir: str) -> pathlib.Path:
    """Where a run's checkpoints are."""
    return pathlib.Path(model_dir, "checkpoints")
