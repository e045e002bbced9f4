import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke

from clp_jax.algorithm import train_step
from clp_jax.algorithm.rollout import completion_log_probs
from clp_jax.data import tasks
from clp_jax.data.batches import Batches
from clp_jax.policies import policy as policy_lib
from clp_jax.reporting.errors import RewardError
from clp_jax.runs import states, supervised
from clp_jax.runs.trainer import Trainer


class EosReward:
    """On the device: the share of the completion's room that is used."""

    on_device = True
    range = (0.0, 2.0)

    def score_tokens(self, params, prompt_tokens, completion_tokens, completion_mask):
        return jnp.mean(completion_mask, axis=1)


def words(prompts, completions, summary):
    assert all(prompt.startswith("summarize: ") for prompt in prompts)
    assert all(summary)
    return [len(completion.split()) for completion in completions]


def fails(prompts, completions):
    return [float("nan")] * len(completions)


def initial_state(run, reference):
    model = run.model
    return jax.jit(
        lambda r: train_step.init_train_state(run.clp, r, model.subset, model.num_objectives)
    )(reference)


def setup(tmp_path, *bindings):
    run = smoke.configured(tmp_path, "INIT_FROM_SCRATCH=True", *bindings)
    reference = states.init_params(run)
    state = initial_state(run, reference)
    return run, Trainer(run, reference), state, Batches(run.train_dataset_cfg, repeat=True)


def test_device_and_host_rewards_meet_in_one_step(tmp_path):
    run, trainer, state, batches = setup(
        tmp_path, "REWARDS=('test_trainer.EosReward', 'test_trainer.words')"
    )
    with jax.transfer_guard("disallow"):  # rewards on the host included
        for step in range(3):
            state, metrics = trainer(state, next(batches), step)
        metrics = jax.device_get(metrics)
    assert int(state.step) == 3
    used = float(metrics["rollout/length"]) / run.max_decode_length
    assert metrics["rewards_raw/EosReward"] == pytest.approx(used, rel=1e-5)
    assert metrics["rewards/EosReward"] == pytest.approx(used / 2, rel=1e-5)
    weights = trainer.samples()[0]["reward_weights"]
    expected = sum(weights[name] * metrics[f"rewards/{name}"] for name in weights)
    assert metrics["objective/scalarized"] == pytest.approx(expected, rel=1e-3)  # w is rounded
    lead = max(weights, key=weights.get)
    leading = {k: v for k, v in metrics.items() if k.startswith("when_largest/")}
    assert leading == {
        f"when_largest/{lead}/reward": metrics[f"rewards/{lead}"],
        f"when_largest/{lead}/kl": metrics["objective/kl"],
        f"when_largest/{lead}/length": metrics["rollout/length"],
        f"when_largest/{lead}/repetition": metrics["rollout/repetition"],
    }
    counts = [len(row["completion"].split()) for row in trainer.samples()]
    assert [row["rewards"]["words"] for row in trainer.samples()] == counts
    for compiled in (trainer.generate, trainer.score, trainer.update):
        assert compiled._cache_size() == 1


def test_the_step_number_determines_the_randomness(tmp_path):
    _, trainer, state, batches = setup(tmp_path)
    batch = next(batches)
    copy = jax.tree.map(jnp.copy, state)
    _, first = trainer(state, batch, 5)
    samples = trainer.samples()
    _, again = trainer(copy, batch, 5)
    assert trainer.samples() == samples
    assert first["rewards/rouge"] == again["rewards/rouge"]


def test_a_failing_reward_is_named(tmp_path):
    _, trainer, state, batches = setup(tmp_path, "REWARDS=('rouge', 'test_trainer.fails')")
    with pytest.raises(RewardError, match="'fails'"):
        trainer(state, next(batches), 0)


def test_prompter_writes_each_groups_weights():
    vocabulary = tasks.briefs_vocabulary()
    prompter = policy_lib.Prompter(vocabulary, ("entailment", "rouge"), 2)
    texts = ["The mayor built a boat.", "A goat sings."]
    prompts = np.zeros([2, 20], np.int32)
    for row, text in zip(prompts, texts, strict=True):
        tokens = [*vocabulary.encode(text), 1]
        row[: len(tokens)] = tokens
    out, cut = prompter(prompts, np.array([[0.4, 0.6], [1.0, 0.0]]))
    assert not cut.any()
    assert out.shape == (2, 20 + prompter.length)
    assert vocabulary.decode(out[0].tolist()) == (
        "entailment: 0.4 0.4; rouge: 0.6 0.6. The mayor built a boat."
    )
    assert vocabulary.decode(out[1].tolist()) == "entailment: 1 1; rouge: 0 0. A goat sings."


def test_a_prompt_has_room_for_the_weights_with_the_longest_names():
    vocabulary = tasks.briefs_vocabulary()
    prompter = policy_lib.Prompter(vocabulary, ("entailment", "rouge"), 5)
    lengths = [len(prompter.prefix(np.array([x, 1 - x]))) for x in np.linspace(0, 1, 101)]
    assert min(lengths) < max(lengths) <= prompter.length


def test_supervised_step_minimises_the_mean_cross_entropy(tmp_path):
    import optax

    run = smoke.configured(tmp_path)
    module, optimizer = run.model.module, optax.sgd(0.1)
    params = states.init_params(run)
    rng = np.random.default_rng(0)
    prompts = rng.integers(2, 200, (2, 5)).astype(np.int32)
    references = np.array([[7, 8, 1, 0], [9, 1, 0, 0]], np.int32)

    def loss(params):
        # The definition: mean of −log p over the five real tokens.
        inputs = np.array([[0, 7, 8, 1], [0, 9, 1, 0]], np.int32)
        logits = module.apply({"params": params}, prompts, inputs, references, enable_dropout=False)
        log_probs = jax.nn.log_softmax(logits)
        places = [(0, 0, 7), (0, 1, 8), (0, 2, 1), (1, 0, 9), (1, 1, 1)]
        return -sum(log_probs[place] for place in places) / len(places)

    state = {"params": params, "optimizer": optimizer.init(params)}
    step = jax.jit(functools.partial(supervised.supervised_step, module, optimizer))
    after, metrics = step(state, prompts, references, 0, 0)
    value, grads = jax.device_get(jax.jit(jax.value_and_grad(loss))(params))
    assert metrics["loss/cross_entropy"] == pytest.approx(float(value), rel=1e-5)
    expected = jax.tree.map(lambda p, g: p - np.float32(0.1) * g, jax.device_get(params), grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after["params"], expected
    )


def test_dropout_is_on_in_supervised_finetuning(tmp_path):
    import optax

    run = smoke.configured(tmp_path, "DROPOUT_RATE=0.5")
    params = states.init_params(run)
    optimizer = optax.sgd(0.0)
    state = {"params": params, "optimizer": optimizer.init(params)}
    tokens = np.full((2, 5), 7, np.int32)
    step = jax.jit(functools.partial(supervised.supervised_step, run.model.module, optimizer))
    losses = [
        float(step(state, tokens, tokens, 0, number)[1]["loss/cross_entropy"]) for number in (0, 1)
    ]
    assert losses[0] != losses[1]


def test_weights_stand_in_the_policys_prompt_and_nowhere_else(tmp_path):
    files = ["gin/prompting.gin", *smoke.FILES[1:]]
    bindings = ["WEIGHTINGS_PER_BATCH=2", "REWARDS=('entailment', 'test_trainer.PromptReward')"]
    run = smoke.configured(tmp_path, *bindings, files=files)
    reference = states.init_params(run)
    state = initial_state(run, reference)
    trainer, batches = Trainer(run, reference), Batches(run.train_dataset_cfg, repeat=True)
    seen = {}
    for name in ("generate", "score", "update"):
        compiled = getattr(trainer, name)
        setattr(trainer, name, lambda *a, n=name, f=compiled: seen.update({n: a}) or f(*a))
    batch = next(batches)
    with jax.transfer_guard("disallow"):
        _, metrics = trainer(state, batch, 0)
    policy_prompts, weighting = np.asarray(seen["generate"][2]), seen["generate"][3]
    decode = run.model.vocabulary.decode
    for group, rows in enumerate(np.split(policy_prompts, 2)):
        first, second = np.asarray(weighting.reward_weights[group])
        for row in rows:
            text = decode(row.tolist())
            assert text.startswith(f"entailment: {round(first, 2):g} ".replace("1.0 ", "1 "))
            assert f"PromptReward: {round(second, 2):g} " in text or "⁇" in text
            assert "summarize: " in text
    rollout = seen["score"][1]
    np.testing.assert_array_equal(rollout.plain_prompts, batch.prompts)
    # The device reward and π_ref read the prompt as the data have it.
    assert metrics["rewards_raw/PromptReward"] == pytest.approx((batch.prompts > 0).sum(1).mean())
    scored = seen["update"][2].reference_log_probs
    expected = jax.jit(completion_log_probs, static_argnums=0)(
        run.model.module, reference, jnp.asarray(batch.prompts), rollout.completions, rollout.mask
    )
    np.testing.assert_allclose(scored, expected, atol=1e-5)


class PromptReward:
    """On the device: the length of the prompt."""

    on_device = True

    def score_tokens(self, params, prompt_tokens, completion_tokens, completion_mask):
        return jnp.sum(prompt_tokens > 0, axis=1)
