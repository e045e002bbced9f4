"""How reward models learn: losses of labels and of preferences, and one step of an optimizer.

Functions of tokens and parameters; `fitting` has files, data and the loop around them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clp_jax.rewards.model import RewardModel

Params = Any
State = dict[str, Any]
Metrics = dict[str, jax.Array]
# (params, documents, summaries, labels, dropout_key) -> (loss, metrics)
Loss = Callable[..., tuple[jax.Array, Metrics]]


def nli_loss(
    model: RewardModel,
    params: Params,
    documents: jax.Array,
    summaries: jax.Array,
    labels: jax.Array,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The cross-entropy of the labels' tokens at the first decoder position.

    The probabilities are over the whole vocabulary, or over the labels' tokens alone where the head
    says so (`NLIHead.over_labels`).

    Args:
      model: with an `NLIHead`.
      params: of its network.
      documents: premises, [B, E] int; 0 is padding.
      summaries: hypotheses, [B, 1, L] int, likewise.
      labels: index into the head's labels, [B] int.
      dropout_key: None for no dropout.

    Returns:
      (mean loss in nats, {"loss/cross_entropy", "accuracy" among the labels, [0, 1],
      "data/truncated_documents", a count}).
    """
    logits, cut = model.logits(params, documents, summaries[:, 0], dropout_key)
    log_probs = model.head.label_log_probs(logits)
    loss = -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], axis=1))
    accuracy = jnp.mean(jnp.argmax(log_probs, axis=1) == labels)
    return loss, {
        "loss/cross_entropy": loss,
        "accuracy": accuracy,
        "data/truncated_documents": jnp.sum(cut),
    }


def bradley_terry_loss(better: jax.Array, worse: jax.Array, centring: float) -> jax.Array:
    """-log sigmoid(better - worse) + centring · (better + worse)².

    The first term is the negative log-likelihood of the preferences under the model of Bradley and
    Terry (1952). They fix scores up to one constant for each document only; the second term, the
    regulariser of Eisenstein et al. (2023), chooses the one that centres scores around 0.

    Args:
      better: scores of the preferred summaries, [B].
      worse: scores of the others, [B].
      centring: η, range [0, inf).

    Returns:
      [B].
    """
    return jax.nn.softplus(worse - better) + centring * (better + worse) ** 2


def preference_loss(
    model: RewardModel,
    params: Params,
    documents: jax.Array,
    summaries: jax.Array,
    centring: float,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The mean of `bradley_terry_loss`; one forward pass over the 2B summaries.

    Args:
      model: with a head that gives scores.
      params: of its network.
      documents: posts, [B, E] int; 0 is padding.
      summaries: the better and the worse, [B, 2, L] int, likewise.
      centring: see `bradley_terry_loss`.
      dropout_key: None for no dropout.

    Returns:
      (mean loss, {"loss/bradley_terry", "accuracy" of the pairs, [0, 1], "score_difference", mean,
      "data/truncated_documents", a count over the 2B inputs}). The loss in the metrics is without
      centring.
    """
    (better, worse), cut = pair_scores(model, params, documents, summaries, dropout_key)
    loss = jnp.mean(bradley_terry_loss(better, worse, centring))
    return loss, {
        "loss/bradley_terry": jnp.mean(bradley_terry_loss(better, worse, 0.0)),
        "accuracy": jnp.mean((better > worse) + 0.5 * (better == worse)),
        "score_difference": jnp.mean(better - worse),
        "data/truncated_documents": jnp.sum(cut),
    }


def pair_scores(
    model: RewardModel,
    params: Params,
    documents: jax.Array,
    summaries: jax.Array,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(scores [2, B], whether the document was cut [2, B]) of `summaries` [B, 2, L]."""
    both = jnp.concatenate([summaries[:, 0], summaries[:, 1]])
    logits, cut = model.logits(params, jnp.concatenate([documents] * 2), both, dropout_key)
    scores, _ = model.head.score(logits)
    return scores.reshape(2, -1), cut.reshape(2, -1)


def fit_step(
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    state: State,
    documents: jax.Array,
    summaries: jax.Array,
    labels: jax.Array,
    seed: jax.Array,
    step: jax.Array,
) -> tuple[State, Metrics]:
    """One step of the optimizer on one batch.

    Args:
      loss_fn: (params, documents, summaries, labels, dropout key) -> (loss, metrics).
      optimizer: of the network's parameters.
      state: {"params", "optimizer"}.
      documents: [B, E] int32.
      summaries: [B, S, L] int32.
      labels: [B] int32.
      seed: of dropout, [] int32.
      step: [] int32.

    Returns:
      (state, the metrics of the loss and "gradient_norm", all before the step).
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state["params"], documents, summaries, labels, key
    )
    updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    metrics = {**metrics, "gradient_norm": optax.tree.norm(grads)}
    return {"params": params, "optimizer": optimizer_state}, metrics
