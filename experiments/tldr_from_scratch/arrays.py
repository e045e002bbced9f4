"""What prepare.py left, on a machine that has no tokeniser; and the files that results go to."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

EOS_ID = 1


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The data of prepare.py.

    Attributes:
      arrays: as in arrays.npz, on the device.
      meta: as in meta.json.
      pieces: text of each token.
      documents: text of the validation posts.
      references: their summaries.
    """

    arrays: Mapping[str, jax.Array]
    meta: Mapping[str, Any]
    pieces: Sequence[str]
    documents: Sequence[str]
    references: Sequence[str]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, up to EOS."""
        pieces = []
        for token in tokens:
            if token in (0, EOS_ID):
                break
            # The network has a few more rows than the vocabulary has pieces.
            pieces.append(self.pieces[token] if token < len(self.pieces) else "")
        return "".join(pieces).replace("▁", " ").strip()


def read(folder: str) -> Prepared:
    """Reads what prepare.py wrote.

    Raises:
      FileNotFoundError: it has not.
    """
    path = pathlib.Path(folder)
    if not (path / "meta.json").is_file():
        raise FileNotFoundError(f"--arrays={folder} has no meta.json: run prepare first")
    with np.load(path / "arrays.npz") as file:
        arrays = {key: jax.device_put(file[key]) for key in file.files}
    prompts = json.loads((path / "prompts.json").read_text())
    pieces = (path / "pieces.txt").read_text(encoding="utf-8").split("\n")[:-1]
    meta = json.loads((path / "meta.json").read_text())
    return Prepared(arrays, meta, pieces, **prompts)


def rows_of(
    arrays: Mapping[str, jax.Array], name: str, rows: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Some examples of "TASK_SPLIT": documents [B, E], summaries [B, S, L], labels [B]; int32."""
    documents = arrays["documents"][arrays[f"{name}_index"][rows]]
    summaries = arrays[f"{name}_summaries"][rows]
    return documents.astype(jnp.int32), summaries.astype(jnp.int32), arrays[f"{name}_labels"][rows]


def with_eos(tokens: jax.Array) -> jax.Array:
    """Tokens [B, L], padded with 0 on the right -> [B, L + 1] with EOS behind them."""
    padded = jnp.pad(tokens, ((0, 0), (0, 1)))
    length = jnp.sum(tokens != 0, axis=1, keepdims=True)
    return jnp.where(jnp.arange(padded.shape[1]) == length, EOS_ID, padded)


def with_weights(
    prompts: jax.Array, reward_weights: jax.Array, weight_prefixes: jax.Array
) -> jax.Array:
    """Puts the weights, rounded to .01, in front of every prompt (App. A.2).

    Args:
      prompts: [B, E] int32, padded with 0.
      reward_weights: w, [m].
      weight_prefixes: [m, 101, W], see prepare.py.

    Returns:
      [B, m · W + E] int32, padded with 0 on the right.
    """
    steps = jnp.round(reward_weights * 100).astype(jnp.int32)
    prefix = weight_prefixes[jnp.arange(len(steps)), steps].reshape(1, -1).astype(jnp.int32)
    prefix = jnp.broadcast_to(prefix, (len(prompts), prefix.shape[1]))
    tokens = jnp.concatenate([prefix, prompts], axis=1)
    order = jnp.argsort(tokens == 0, axis=1, stable=True)  # the tokens first, in order
    return jnp.take_along_axis(tokens, order, axis=1)


def shuffled(count: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of batches without end, [B] int32; each row once in an epoch, but for its last few."""
    rng = np.random.default_rng(seed)
    batch_size = min(batch_size, count)
    while True:
        order = rng.permutation(count).astype(np.int32)
        for start in range(0, count - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def in_order(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(rows [B], how many of them count) once over `count` rows; the last batch is filled up."""
    for start in range(0, count, batch_size):
        rows = np.arange(start, min(start + batch_size, count), dtype=np.int32)
        yield np.resize(rows, batch_size), len(rows)
