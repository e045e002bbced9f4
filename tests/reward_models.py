"""Reward models of random parameters on disk, for the tests that score with them."""

import functools

import jax
import jax.numpy as jnp

from clp_jax.data import tasks
from clp_jax.models.t5 import T5Config, Transformer
from clp_jax.rewards import saved
from clp_jax.rewards.heads import NLIHead, PreferenceHead
from clp_jax.rewards.model import InputTemplate, RewardModel

CONFIG = T5Config(256, "float32", 16, 2, 1, 1, 8, 32, ("gelu", "linear"), dropout_rate=0.0)
HEADS = {"nli": NLIHead(("entailment", "other"), (5, 9)), "preference": PreferenceHead(3)}


def random_reward_model(folder, kind):
    """Writes one; returns its MODEL_DIR and its parameters."""
    module, vocabulary = Transformer(CONFIG), tasks.briefs_vocabulary()
    tokens = jnp.ones([1, 4], jnp.int32)
    init = jax.jit(functools.partial(module.init, enable_dropout=False))
    params = init(jax.random.key(0), tokens, tokens, tokens)["params"]
    model = RewardModel(module, InputTemplate((7, 8), (9,), 80, 1), HEADS[kind])
    saved.save(folder / saved.FOLDER, model, params, vocabulary, {"accuracy": 0.5})
    return folder, params
