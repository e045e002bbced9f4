"""What both commands share: the network, the clock, the checkpoint between them, and the log."""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from clp_jax.models.t5 import T5Config, Transformer
from experiments.tldr_from_scratch import arrays, rewards

Params = Any

SIZES: dict[str, dict[str, Any]] = {
    # T5 1.1 small, but for the vocabulary.
    "small": {
        "emb_dim": 512, "num_heads": 6, "head_dim": 64, "mlp_dim": 1024,
        "num_encoder_layers": 8, "num_decoder_layers": 8,
    },
    "tiny": {
        "emb_dim": 64, "num_heads": 4, "head_dim": 16, "mlp_dim": 192,
        "num_encoder_layers": 2, "num_decoder_layers": 2,
    },
}  # fmt: skip

_SECONDS_BETWEEN_LINES = 10.0


@dataclasses.dataclass(frozen=True)
class Setting:
    """A command's flags with what they stand for.

    Attributes:
      flags: of the command line.
      started: when the command began, by `time.monotonic`.
      prepared: the data.
      module: the network of the policy, the reference and the reward models.
      rewards: of a rollout.
    """

    flags: argparse.Namespace
    started: float
    prepared: arrays.Prepared
    module: Transformer
    rewards: rewards.Rewards

    @functools.cached_property
    def output(self) -> pathlib.Path:
        """Where everything is written, absolute."""
        return pathlib.Path(self.flags.output).resolve()

    @property
    def results(self) -> pathlib.Path:
        """Where the small files are, which are worth keeping."""
        return self.output / "results"

    def deadline(self, share: float) -> float | None:
        """When this share of the wall-clock budget is used up; None where steps are counted."""
        if self.flags.steps is not None:
            return None
        return self.started + 60 * self.flags.minutes * share

    def init_params(self) -> Params:
        """Random parameters of the network."""
        tokens = jnp.ones([1, 4], jnp.int32)
        init = functools.partial(self.module.init, enable_dropout=False)
        return jax.jit(init)(jax.random.key(self.flags.seed), tokens, tokens, tokens)["params"]

    def save(self, name: str, tree: Params) -> None:
        """Writes a checkpoint into the output folder."""
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(self.output / name, tree, force=True)

    def restore(self, name: str, shapes: Params) -> Params:
        """Reads it.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it is of another size.
        """
        if not (self.output / name).is_dir():
            raise FileNotFoundError(
                f"--output={self.flags.output} has no {name}/: "
                "run reward_models_and_reference first"
            )
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        template = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
        )
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(self.output / name, template)

    def report(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes results/NAME.json, with what it ran on."""
        self.results.mkdir(parents=True, exist_ok=True)
        common = {
            "device": jax.devices()[0].device_kind,
            "dtype": jnp.dtype(self.module.config.dtype).name,
            "flags": vars(self.flags),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        (self.results / f"{name}.json").write_text(
            json.dumps(common | dict(values), indent=1) + "\n"
        )

    def show(self, completions: jax.Array, scores: jax.Array, title: str, count: int = 3) -> None:
        """Prints some completions [B, L] with their scores [B, m]."""
        names = self.prepared.meta["names"]
        for tokens, row in zip(completions[:count].tolist(), scores[:count].tolist(), strict=True):
            said = " ".join(f"{name} {score:.2f}" for name, score in zip(names, row, strict=True))
            say(f"  {title}  [{said}]  {self.prepared.decode(tokens)!r}")


def make(flags: argparse.Namespace, started: float) -> Setting:
    """The setting of a command line; activations are bfloat16 but on a CPU."""
    prepared = arrays.read(flags.arrays)
    config = T5Config(
        vocab_size=-(-prepared.meta["vocab_size"] // 128) * 128,
        dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
        mlp_activations=("gelu", "linear"),
        dropout_rate=0.1,
        **SIZES[flags.size],
    )
    module = Transformer(config)
    return Setting(flags, started, prepared, module, rewards.make(module, prepared.meta))


class Part:
    """The steps of one part of a command, with a line on how it goes every ten seconds.

    Args:
      what: named in front of each line.
      until: when it ends, by `time.monotonic`; None for never.
      steps: how many steps at most; None for any number.

    Attributes:
      done: steps made.
    """

    def __init__(self, what: str, until: float | None, steps: int | None):
        self.what, self._until, self._steps, self.done = what, until, steps, 0
        self._began = self._said = time.monotonic()
        self._origin: float | None = None  # the end of the first step, most of which is compilation
        self._last: Any = None

    def __iter__(self) -> Iterator[int]:
        while not self._over():
            yield self.done
            self.done += 1
            if self.done == 1:
                jax.block_until_ready(self._last)
                self._origin = time.monotonic()
                self._line()

    @property
    def seconds_per_step(self) -> float:
        """Without the first step."""
        if self._origin is None or self.done < 2:
            return 0.0
        return (time.monotonic() - self._origin) / (self.done - 1)

    def step(self, metrics: Any) -> None:
        """Takes the metrics of a step; waits for those of the step before it."""
        jax.block_until_ready(self._last)
        self._last = metrics
        if self.done and time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._line()

    def end(self) -> dict[str, Any]:
        """The last line; returns what is to be reported: steps, seconds, metrics of the last."""
        jax.block_until_ready(self._last)
        self._line()
        metrics = {key: float(value) for key, value in (self._last or {}).items()}
        return {
            "steps": self.done,
            "seconds_per_step": round(self.seconds_per_step, 4),
            "seconds": round(time.monotonic() - self._began, 1),
            "last_step": metrics,
        }

    def _over(self) -> bool:
        if self._until is not None and time.monotonic() + self.seconds_per_step > self._until:
            return True
        return self._steps is not None and self.done >= self._steps

    def _line(self) -> None:
        self._said = now = time.monotonic()
        left = []
        if self._steps is not None and (speed := self.seconds_per_step or self.done == self._steps):
            left.append((self._steps - self.done) * speed)
        if self._until is not None:
            left.append(max(self._until - now, 0.0))
        shown = ("rewards/", "objective/", "rollout/length", "loss/cross", "loss/brad", "accuracy")
        values = jax.device_get(
            {k: v for k, v in (self._last or {}).items() if k.startswith(shown)}
        )
        said = " ".join(f"{key.rpartition('/')[2]} {value:.3g}" for key, value in values.items())
        say(
            f"{self.what}  step {self.done}  {self.seconds_per_step:.3f} s/step  "
            f"ETA {f'{min(left):.0f}' if left else '?'} s  {said}"
        )


def say(text: str) -> None:
    """A line to the person at the console."""
    print(text, file=sys.stderr, flush=True)
