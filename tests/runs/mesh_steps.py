"""Training steps over meshes of eight virtual devices; `python mesh_steps.py OUTPUT` saves them.

In a process of its own: the number of devices cannot change after JAX has seen them.
"""

import functools
import os
import pickle
import sys
import tempfile

os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import jax.numpy as jnp
import numpy as np
import smoke

from clp_jax.algorithm import losses
from clp_jax.algorithm import train_step as clp_step
from clp_jax.algorithm.conditioning import condition
from clp_jax.data import tasks
from clp_jax.data.batches import shared
from clp_jax.evaluation import sweep
from clp_jax.models import partitioning
from clp_jax.models.partitioning import Placement
from clp_jax.models.sampling import sample
from clp_jax.models.t5 import T5Config, Transformer
from clp_jax.rewards.heads import PreferenceHead
from clp_jax.rewards.learned import LearnedReward
from clp_jax.rewards.model import InputTemplate, RewardModel
from clp_jax.runs import restoring, states
from clp_jax.runs.trainer import Trainer


class Judge(LearnedReward):
    """A reward model on the devices, of random parameters."""

    def __init__(self):
        vocabulary = tasks.briefs_vocabulary()
        config = T5Config(
            vocab_size=256, emb_dim=16, num_heads=4, num_encoder_layers=1, num_decoder_layers=1,
            head_dim=8, mlp_dim=32,
        )  # fmt: skip
        template = InputTemplate((), (), 128, vocabulary.eos_id)
        model = RewardModel(Transformer(config), template, PreferenceHead(5))
        made = model.module.init(jax.random.key(3), *[jnp.ones([1, 4], jnp.int32)] * 3)["params"]
        super().__init__(model, jax.device_get(made), vocabulary, (-1, 1), vocabulary)


SETTINGS = (
    "REWARDS=('rouge', 'mesh_steps.Judge')",
    "INIT_FROM_SCRATCH=True",
    "t5.T5Config.num_heads=4",
    "BATCH_SIZE=16",
    "POLICY_LEARNING_RATE=0.03",
    "VALUE_LEARNING_RATE=0.03",
    "EVAL_GRID_POINTS=2",
)
MESHES = {
    "1x1": (1, 1, False),
    "8x1": (8, 1, False),
    "4x2": (8, 2, False),
    "2x4": (8, 4, False),
    "4x2 fully sharded": (8, 2, True),
}
EVALUATED = ("1x1", "4x2 fully sharded")
STEPS = 3
COMPILED = []  # an item for each program


def steps(run, place, evaluates):
    """Metrics of some steps, the state after them, the last samples, and maybe an evaluation."""
    reference = states.init_params(run, place)
    state = states.init_state(run, reference, place)
    trainer, batches = Trainer(run, reference, place), shared(run.train_dataset_cfg, 0, place)
    rows, compiled = [], []
    for step in range(STEPS):
        before = len(COMPILED)
        state, metrics = trainer(state, next(batches), step)
        rows.append(jax.device_get(metrics))
        compiled.append(len(COMPILED) - before)
    policy = restoring.policy_of(run, state.params, reference, place=place)
    return {
        "metrics": rows,
        "samples": list(trainer.samples()),
        "values": sweep.sweep(policy, run).to_json() if evaluates else None,
        "largest_share": largest_share(state.params),
        "largest_share_of_a_reward": largest_share(run.model.rewards.rewards[1].reward.params),
        "state": jax.device_get(state),
        "compiled": compiled,
    }


def largest_share(tree):
    """The largest part of the tree that one device holds."""
    sizes = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            sizes[shard.device] = sizes.get(shard.device, 0) + shard.data.size
    return max(sizes.values()) / sum(leaf.size for leaf in jax.tree.leaves(tree))


def over_devices(advantages, epsilon=1e-5):
    """`losses.normalize` where each device has a part of the batch."""
    mean = jax.lax.pmean(jnp.mean(advantages), "data")
    variance = jax.lax.pmean(jnp.mean(jnp.square(advantages - mean)), "data")
    scale = jnp.sqrt(variance) + epsilon
    return (advantages - mean) / scale, scale


def pmapped(run):
    """Samples and gradients of the step by `jit` over 8 x 1, and of one function by `pmap`."""
    place, clp = Placement.over(), run.clp
    reference = states.init_params(run, place)
    state = states.init_state(run, reference, place)
    # Replicas that differ, as they do after some training.
    state = state.replace(
        params=state.params.replace(
            conditioned=jax.tree.map(
                lambda x: x * jnp.linspace(0.8, 1.2, len(x)).reshape(-1, *[1] * (x.ndim - 1)),
                state.params.conditioned,
            )
        )
    )
    trainer = Trainer(run, reference, place)
    batch = next(shared(run.train_dataset_cfg, 0, place))
    prompts = partitioning.put(batch.prompts, place.batch)
    key, weighting = trainer._draw(*trainer._put((np.int32(0), np.int32(0))))
    rollout = trainer.score(
        reference, trainer.generate(state.params, reference, prompts, weighting, key)
    )
    rewards = np.random.default_rng(0).random((len(batch.prompts), 2)).astype(np.float32)
    gradients = functools.partial(clp_step.gradients, clp)
    arguments = (state, reference, rollout, partitioning.put(rewards, place.batch), weighting, key)
    expected = jax.jit(place.traced(gradients))(*arguments)

    count = jax.device_count()
    host_state, host_reference, host_weighting = jax.device_get((state, reference, weighting))

    def one_device(prompts, keys, rewards):
        """What each device does with its part of the batch."""
        policy = condition(host_state.params, host_reference, host_weighting[0], clp.kl_mix)
        samples = sample(clp.module, policy, prompts, keys, clp.decoding)
        part = clp_step.score(
            clp,
            host_reference,
            clp_step.Rollout(prompts, samples.tokens, samples.mask, samples.log_probs, prompts),
        )
        grads = gradients(host_state, host_reference, part, rewards, host_weighting, keys[0])
        return samples.tokens, jax.lax.pmean(grads, "data")

    def parts(x):
        return x.reshape(count, -1, *x.shape[1:])

    keys = jax.random.split(jax.random.wrap_key_data(jax.device_get(jax.random.key_data(key))), 16)
    with_one_device = losses.normalize
    losses.normalize = over_devices
    tokens, found = jax.pmap(one_device, axis_name="data")(
        parts(batch.prompts), parts(keys), parts(rewards)
    )
    losses.normalize = with_one_device
    return {
        "tokens": (jax.device_get(rollout.completions), np.concatenate(tokens)),
        "gradients": (jax.device_get(expected), jax.tree.map(lambda x: np.asarray(x[0]), found)),
    }


def note(event, seconds, **attributes):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(seconds)


def main(output):
    jax.monitoring.register_event_duration_secs_listener(note)
    run = smoke.configured(tempfile.mkdtemp(), *SETTINGS)
    found = {
        name: steps(
            run, Placement.over(jax.devices()[:count], cut, fully_sharded), name in EVALUATED
        )
        for name, (count, cut, fully_sharded) in MESHES.items()
    }
    with open(output, "wb") as file:
        pickle.dump({"meshes": found, "pmap": pmapped(run)}, file)


if __name__ == "__main__":
    main(sys.argv[1])
