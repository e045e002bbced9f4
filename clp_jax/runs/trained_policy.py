"""A trained run as a Python object: text in at any weighting, completions, scores and files out."""

import copy
import dataclasses
import functools
import os
import pathlib
import threading
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clp_jax.algorithm.weighting import Weighting
from clp_jax.data.text import check_text
from clp_jax.evaluation import result as result_lib
from clp_jax.evaluation.result import SweepResult
from clp_jax.machine import accelerators
from clp_jax.policies.logit_mixing import LogitMixingPolicy
from clp_jax.policies.policy import CLPPolicy
from clp_jax.reporting.errors import unknown_name
from clp_jax.reporting.metrics_log import markdown_table
from clp_jax.rewards import scoring
from clp_jax.rewards.base import NamedReward, RewardStack
from clp_jax.rewards.normalisation import Mixture
from clp_jax.rewards.rouge import RougeLsum
from clp_jax.runs import exporting, generation, restoring, states
from clp_jax.settings import command_line
from clp_jax.settings.config import MIXINGS, Run, check_whole_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Reward weights: by name, or m numbers in the order of the rewards.
RewardWeights = Mapping[str, float] | Sequence[float] | np.ndarray

# What `TrainedPolicy.score` calls the columns of the data.
_ARGUMENTS = {"document": "documents", "summary": "references"}


# gin and SeqIO know one configuration at a time.
_CONFIGURING = threading.Lock()


def load(
    model_dir: str | os.PathLike[str], step: int | None = None, mixing: str | None = None
) -> "TrainedPolicy":
    """Loads the policy of a run: CLP, prompting, a soup or DeRa alike.

    The global configuration of gin is from then on that of the run.

    Args:
      model_dir: MODEL_DIR of a run; may begin with "~".
      step: which checkpoint; None for the latest.
      mixing: what is mixed at a weighting, "parameters" or "logits"; None for what the run's
        evaluation mixes (EVAL_MIXING).

    Raises:
      ValueError: no run there, no checkpoint of that step, an unknown mixing, or one that this run
        cannot be steered by; names what is valid.
    """
    accelerators.look_for_none_in_vain()
    if mixing is not None and mixing not in MIXINGS:
        raise ValueError(unknown_name("mixing", mixing, MIXINGS, "mixing"))
    folder = pathlib.Path(model_dir).expanduser().absolute()
    with _CONFIGURING:
        run = command_line.saved_run(str(folder))
        return TrainedPolicy(run, step, mixing or run.evaluation.mixing)


class Scores(NamedTuple):
    """Scores of n summaries: reward -> float32 [n] each; NaN where a reward could not be computed.

    Attributes:
      raw: in each reward's own units.
      normalised: the reward's range is mapped to (0, 1).
    """

    raw: dict[str, np.ndarray]
    normalised: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Front:
    """An evaluated front; a notebook shows it as a table.

    Attributes:
      result: all that was measured, prompt by prompt.
    """

    result: SweepResult

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One a weighting: w, α, rewards normalised and raw, KL, values V, length, repetition."""
        return self.result.rows()

    def __repr__(self) -> str:
        return markdown_table(self.rows)

    def _repr_markdown_(self) -> str:
        return repr(self)

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draws the front.

        Args:
          axes: of matplotlib; None for those of a new figure.

        Returns:
          The axes.
        """
        # Imported here: a program that draws nothing keeps its choice of a window system.
        from clp_jax.evaluation import plots

        if axes is None:
            from matplotlib import pyplot as plt

            axes = plt.figure(figsize=plots.SIZE, layout="constrained").subplots()
        plots.draw_front(self.result, axes)
        return axes


class TrainedPolicy:
    """The policy of a run, steerable at every call; made by `load`.

    Attributes:
      step: of the checkpoint.
      mixing: "parameters" or "logits".
    """

    def __init__(self, run: Run, step: int | None, mixing: str):
        self._run, self.mixing = run, mixing
        self._place = states.placement(run, training=False)
        self._params, self._reference, self.step = restoring.restore_params(run, step, self._place)
        self._texts = generation.Texts(run)
        self._policies: dict[float, CLPPolicy | LogitMixingPolicy] = {}
        self._policy(0.0)  # says now if the run cannot be mixed so

    def __repr__(self) -> str:
        return (
            f"TrainedPolicy({self._run.model_dir!r}, step {self.step}: "
            f"{', '.join(self.reward_names)}; KL weight in [{self.kl_weight_min:g}, 1]; "
            f"mixes {self.mixing})"
        )

    @property
    def reward_names(self) -> tuple[str, ...]:
        """The m rewards' names, in the order of reward weights."""
        return self._run.model.rewards.names

    @property
    def kl_weight_min(self) -> float:
        """α_min, the KL weight where none is given; range [0, 1)."""
        return self._run.model.kl_mix.kl_weight_min

    def generate(
        self,
        documents: Sequence[str],
        reward_weights: RewardWeights | Sequence[RewardWeights],
        kl_weight: float | Sequence[float] | None = None,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 32,
    ) -> list[str]:
        """One completion of each document.

        Documents of one weighting are completed together, and as in a call of their own.

        Args:
          documents: n texts, without the prompt's prefix.
          reward_weights: w by name, or m numbers in the order of `reward_names`; they sum to 1. Or
            n of these, one for each document, e.g. [n, m].
          kl_weight: α in [kl_weight_min, 1], or n of them; None for kl_weight_min.
          temperature: 0 is greedy, 1 samples as in training; >= 0.
          seed: of sampling.
          batch_size: how many documents are completed at a time, at most; >= 1.

        Returns:
          n completions, in the order of the documents.

        Raises:
          ValueError: an argument outside of its range; names what is valid.
        """
        documents = _texts("documents", documents)
        weightings = generation.weightings(self._run, len(documents), reward_weights, kl_weight)
        check_whole_number("batch_size", batch_size, 1)
        check_whole_number("seed", seed, 0)
        if seed >= 2**32:
            raise ValueError(f"seed={seed} must be below 2**32")
        policy = self._policy(float(temperature))
        tokens = self._texts.tokens(documents)
        if said := self._texts.too_long(tokens):
            warnings.warn(said, stacklevel=2)
        groups: dict[tuple[float, tuple[float, ...]], list[int]] = {}
        for i, weighting in enumerate(weightings):
            groups.setdefault(weighting, []).append(i)
        completions = [""] * len(documents)
        for weighting, group in groups.items():
            rows = [tokens[i] for i in group]
            done = self._texts.completions(
                policy, Weighting.of(*weighting), rows, seed, batch_size, filled=False
            )
            for i, completion in zip(group, done, strict=True):
                completions[i] = completion
        policy.release()
        return completions

    def score(
        self,
        documents: Sequence[str],
        summaries: Sequence[str],
        references: Sequence[str] | None = None,
        **columns: Sequence[Any],
    ) -> Scores:
        """Scores summaries from any source by the rewards of the run.

        Args:
          documents: n texts.
          summaries: n texts, which are scored.
          references: n reference summaries, which ROUGE compares with.
          **columns: n values each, of other fields of the data that a reward of your own reads.

        Returns:
          Raw and normalised scores; NaN, with a warning, of a reward that lacks what it reads.

        Raises:
          ValueError: not a list of texts, or lists of different lengths.
          RewardError: a reward failed.
        """
        if wrong := _ARGUMENTS.keys() & columns.keys():
            valid = ", ".join(_ARGUMENTS[column] for column in sorted(wrong))
            raise ValueError(f"{', '.join(sorted(wrong))}: give {valid} instead")
        given = {**columns, "document": _texts("documents", documents)}
        if references is not None:
            given["summary"] = _texts("references", references)
        summaries = _texts("summaries", summaries)
        for column, values in given.items():
            if len(values) != len(summaries):
                name = _ARGUMENTS.get(column, column)
                raise ValueError(f"{name} has {len(values)} values for {len(summaries)} summaries")
        usable, lacking = self._usable(given)
        if lacking:
            needs = [f"{name} needs {', '.join(what)}" for name, what in lacking.items()]
            warnings.warn(f"scores are NaN: {'; '.join(needs)}", stacklevel=2)
        nan, names = np.nan, self.reward_names
        scores = Scores(*({n: np.full(len(summaries), nan, "f4") for n in names} for _ in range(2)))
        if usable:
            stack = RewardStack(usable, self._rewards.components)
            for kind, found in zip(scores, stack(given["document"], summaries, given), strict=True):
                kind.update(zip(stack.names, found.T, strict=True))
        return scores

    def front(self) -> Front:
        """The front of this step, as the run or `clp_jax.evaluate` evaluated it.

        Raises:
          ValueError: it was not evaluated; names the steps that were, and the command.
        """
        other = "" if self.mixing == self._run.evaluation.mixing else f"-{self.mixing}"
        folder = pathlib.Path(self._run.model_dir)
        path = folder / "evaluation" / f"{self.step}{other}" / result_lib.PROMPTS
        if not path.is_file():
            steps = ", ".join(map(str, result_lib.evaluations(folder))) or "none"
            flag = other and f" --mixing={self.mixing}"
            raise ValueError(
                f"there is no {path}; evaluated steps: {steps}. To evaluate this one:\n  "
                f"python -m clp_jax.evaluate --model_dir={folder} --step={self.step}{flag}"
            )
        return Front(result_lib.load(path))

    def export(
        self,
        output: str | os.PathLike[str],
        reward_weights: RewardWeights,
        kl_weight: float | None = None,
        *,
        format: str = "hf",
        dtype: str = "float32",
        overwrite: bool = False,
    ) -> pathlib.Path:
        """Writes the policy at one weighting as a plain T5.

        Args:
          output: directory to write; may begin with "~".
          reward_weights: w by name, or m numbers in the order of `reward_names`; they sum to 1.
          kl_weight: α in [kl_weight_min, 1]; None for kl_weight_min.
          format: "hf" for Hugging Face transformers, or "t5x" for OUTPUT/checkpoint_STEP.
          dtype: of the stored parameters: float32, bfloat16 or float16.
          overwrite: replace an export that is there; nothing else is ever replaced.

        Returns:
          The directory that was written.

        Raises:
          ValueError: see `clp_jax.runs.exporting.Export`; logits are mixed, which one T5 cannot do.
        """
        if self.mixing == "logits":
            raise ValueError(
                "logits of several models are mixed for each token, which no single T5 does; "
                'load(..., mixing="parameters") has a policy that can be exported'
            )
        (weighting,) = generation.weightings(self._run, 1, reward_weights, kl_weight)
        export = exporting.Export.of(self._run, Weighting.of(*weighting), step=self.step)
        path = os.path.expanduser(os.fspath(output))
        return export.write(path, format, dtype, overwrite)

    def _policy(self, temperature: float) -> CLPPolicy | LogitMixingPolicy:
        """Kept, as the temperature is part of the program that is compiled."""
        if temperature not in self._policies:
            self._policies[temperature] = restoring.policy_of(
                self._run, self._params, self._reference, self.mixing, temperature, self._place
            )
        return self._policies[temperature]

    @functools.cached_property
    def _rewards(self) -> RewardStack:
        """The rewards of the run, which read text and are computed in this process."""

        def without_pool(entry: NamedReward) -> NamedReward:
            if not isinstance(entry.reward, RougeLsum):
                return entry
            # A pool's workers would run again a script that calls us and has no main guard.
            reward = copy.copy(entry.reward)
            reward._workers = 0
            return dataclasses.replace(entry, reward=reward)

        stack = scoring.of_text(self._run.model.rewards)
        return RewardStack(
            [without_pool(entry) for entry in stack.rewards],
            [without_pool(entry) for entry in stack.components],
        )

    def _usable(self, columns: Collection[str]) -> tuple[list[NamedReward], dict[str, list[str]]]:
        """The rewards that these columns suffice for, and what each other one lacks."""
        stack, usable, lacking = self._rewards, [], {}
        for entry in stack.rewards:
            parts = entry.reward.weights if isinstance(entry.reward, Mixture) else ()
            others = [e for e in (*stack.rewards, *stack.components) if e.name in parts]
            needed = RewardStack([entry], others).columns
            if missing := [column for column in needed if column not in columns]:
                lacking[entry.name] = [_ARGUMENTS.get(column, column) for column in missing]
            else:
                usable.append(entry)
        return usable, lacking


def _texts(name: str, texts: Iterable[str]) -> list[str]:
    """`texts` as a list, or a ValueError that says what is wrong with it."""
    if isinstance(texts, str | bytes | Mapping | Set) or not isinstance(texts, Iterable):
        what = "one text" if isinstance(texts, str) else f"a {type(texts).__name__}"
        raise ValueError(f"{name} is {what}; valid is a list of texts")
    listed = list(texts)
    for i, text in enumerate(listed):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{i}] is {text!r}; valid is a list of texts")
        check_text({name: text}, f"{name}[{i}]")
    return listed
