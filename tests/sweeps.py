"""Made-up sweeps, for the tests of what reads them."""

import numpy as np

from clp_jax.evaluation import result

NAMES = ("nli", "rouge", "tldr")
WEIGHTS = np.array([[1, 0], [0.5, 0.5], [0, 1]])
RANGES = np.array([[-7.0, 0.0], [19.0, 29.0], [-1.6, 2.0]])


def sweep(
    rewards, weights=WEIGHTS, alphas=None, kl=None, prompts=4, noise=0.0, seed=0, **changes
) -> result.SweepResult:
    """A sweep whose mean normalised rewards are `rewards` [n, m].

    Args:
      alphas: [n]; 0 by default.
      kl: mean KL, [n]; 0 by default.
      noise: standard deviation over the prompts, which are centred.
      changes: fields that are not as made here.
    """
    rewards, weights = np.asarray(rewards, float), np.asarray(weights, float)
    n, m = rewards.shape
    spread = np.random.default_rng(seed).normal(size=(n, prompts, m)) * noise
    normalised = (rewards[:, None] + spread - spread.mean(1, keepdims=True)).astype(np.float32)
    low, high = RANGES[:m].T
    words = [[f"completion {i} of prompt {p}" for p in range(prompts)] for i in range(n)]
    fields = {
        "names": NAMES[:m],
        "kl_weights": np.zeros(n) if alphas is None else np.asarray(alphas, float),
        "reward_weights": weights,
        "prompt_raw": (low + normalised * (high - low)).astype(np.float32),
        "prompt_normalised": normalised,
        "prompt_kl": np.repeat(np.zeros(n) if kl is None else kl, prompts).reshape(n, prompts),
        "prompt_length": np.repeat(np.arange(n) + 10.0, prompts).reshape(n, prompts),
        "prompt_repetition": np.zeros((n, prompts)),
        "other_names": (),
        "prompt_other_raw": np.zeros((n, prompts, 0)),
        "prompt_other_normalised": np.zeros((n, prompts, 0)),
        "documents": np.array([f"document {p}" for p in range(prompts)], object),
        "references": np.array([f"reference {p}" for p in range(prompts)], object),
        "completions": np.array(words, object),
        "truncated_prompts": 0,
    }
    return result.SweepResult(**{**fields, **changes})


def save(swept, model_dir, step=None):
    """Saves to the folder of an evaluation: `model_dir`'s of a step, or `model_dir` itself."""
    folder = model_dir if step is None else model_dir / "evaluation" / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    swept.save(folder / result.PROMPTS)
    return folder
