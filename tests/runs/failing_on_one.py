"""A reward that fails on the second process in the second step."""

import jax

_calls = 0


def score(prompts, completions):
    global _calls
    _calls += 1
    if jax.process_index() == 1 and _calls == 4:  # two of them check the settings
        raise ValueError("no score here")
    return [0.0] * len(completions)
