"""The types that parameters and activations may have."""

from typing import Any

import jax.numpy as jnp
import numpy as np

DTYPES = ("bfloat16", "float16", "float32")


def converted(name: str, array: Any, dtype: str) -> np.ndarray:
    """A parameter as it is stored for others.

    Args:
      name: of the parameter, for messages.
      array: its values, of any shape.
      dtype: one of `DTYPES`.

    Raises:
      ValueError: a value is NaN or infinite, or too large for `dtype`.
    """
    array = np.asarray(array)
    if not np.isfinite(array).all():
        raise ValueError(f"the parameter {name} has values that are NaN or infinite")
    with np.errstate(over="ignore"):
        made = array.astype(jnp.dtype(dtype), copy=False)
    overflow = ~np.isfinite(made)
    if overflow.any():
        raise ValueError(
            f"the parameter {name} has a value of {array[overflow][0]}, too large for {dtype}; "
            "valid is a type of larger range: bfloat16 or float32"
        )
    return made
