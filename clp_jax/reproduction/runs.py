"""The runs that the claims are judged by, as command lines of `clp_jax.train`."""

import dataclasses
import functools
import itertools
import pathlib
import shlex
from collections.abc import Mapping, Sequence

METHODS = {
    "full": "gin/clp_full.gin",
    "attn": "gin/clp_attn.gin",
    "logit": "gin/clp_logit.gin",
    "prompting": "gin/prompting.gin",
    "soup": "gin/rewarded_soup.gin",
    "dera": "gin/dera.gin",
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is spent.

    Attributes:
      seeds: of sampling and of the order of the data; the reference is one for all.
      steps: T of the main comparison, of two rewards.
      kl_steps: T with one reward, the KL weight varied.
      short_steps: T with three rewards and of ablations; divides the others.
      eval_period: steps between evaluations of some runs of two rewards; divides the others.
      settings: gin settings of every run.
      files: gin files behind all others.
    """

    seeds: tuple[int, ...]
    steps: int
    kl_steps: int
    short_steps: int
    eval_period: int
    settings: Mapping[str, str]
    files: tuple[str, ...] = ()


BRIEFS = Scale(
    seeds=(0, 1, 2),
    steps=500,
    kl_steps=1000,
    short_steps=250,
    eval_period=125,
    settings={"SAVE_PERIOD": "250", "EVAL_EXAMPLES": "384", "EVAL_BATCH_SIZE": "384"},
)

# To see that everything works: nothing is learnt.
QUICK = Scale(
    seeds=(0,),
    steps=6,
    kl_steps=6,
    short_steps=3,
    eval_period=3,
    settings={"SAVE_PERIOD": "6"},
    files=("gin/smoke.gin",),
)


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One run.

    Attributes:
      name: of its folder: "experiment/method/seed".
      files: gin files, in order.
      settings: gin macros.
      step: T; 0 for supervised finetuning alone.
      reference: the name of the run that it starts from.
    """

    name: str
    files: tuple[str, ...]
    settings: Mapping[str, str]
    step: int
    reference: str = ""

    def model_dir(self, output: pathlib.Path) -> pathlib.Path:
        """Where the run is written."""
        return output / "runs" / self.name

    def finished(self, output: pathlib.Path) -> bool:
        """Whether its evaluation, or the reference, is there."""
        folder = self.model_dir(output)
        if not self.step:
            return (folder / "reference").is_dir()
        return (folder / "evaluation" / str(self.step) / "values.json").is_file()

    def flags(self, output: pathlib.Path) -> list[str]:
        """The command line behind `python -m clp_jax.train`."""
        settings = {"MODEL_DIR": repr(str(self.model_dir(output))), **self.settings}
        return [
            *(f"--gin_file={file}" for file in self.files),
            *(f"--gin.{name}={value}" for name, value in settings.items()),
        ]

    def command(self, output: pathlib.Path) -> str:
        """The same as text for a shell."""
        module = "clp_jax.train" if self.step else "clp_jax.sft"
        return f"python -m {module} {shlex.join(self.flags(output))}"


def reference_spec(scale: Scale, model: str) -> RunSpec:
    """Supervised finetuning, for `clp_jax.sft`: the reference of every run of one model size."""
    files = ("gin/clp_full.gin", "gin/briefs.gin", *_model_files(model), *scale.files)
    return RunSpec(f"reference_{model}", files, {}, 0)


def specs(scale: Scale, output: pathlib.Path) -> list[RunSpec]:
    """Every run but those of the references; all of the first seed come first."""
    two = functools.partial(_experiment, scale, output, experiment="nli_rouge")
    short = functools.partial(two, steps=scale.short_steps)
    # With one α in a batch, two seeds differed by .08 in V at α_min after 1000 steps.
    multi_kl = functools.partial(
        _experiment, scale, output, experiment="multi_kl", settings={"WEIGHTINGS_PER_BATCH": "4"}
    )
    kl = functools.partial(multi_kl, name="multi_kl", steps=scale.kl_steps)
    watched = functools.partial(two, name="two_rewards", eval_period=scale.eval_period)
    found = [
        *watched(methods=("prompting", "full", "attn"), steps=scale.steps),
        *two(name="two_rewards", methods=("logit", "soup"), steps=scale.steps),
        *_experiment(
            scale, output, name="three_rewards", experiment="three_rewards",
            methods=("full", "attn", "soup"), steps=scale.short_steps,
        ),
        *kl(methods=("full",), eval_period=scale.short_steps),
        *kl(methods=("attn",)),
        *multi_kl(name="multi_kl", methods=("logit",), steps=scale.short_steps),
        *kl(experiment="nli_rouge_mixture", methods=("dera",), settings=None),
        *multi_kl(name="linear_kl_mix", methods=("full",), steps=scale.short_steps,
            ablation="linear_kl_mix"),
        *short(name="prompt_too", methods=("full",), ablation="condition_prompt"),
        *short(name="dirichlet_0.3", methods=("full",), ablation="dirichlet_0.3"),
        *short(name="small_model", methods=("full", "prompting", "soup"), model="mini"),
    ]  # fmt: skip
    # Two that need the same programs do not begin together: the later one finds them compiled.
    return sorted(found, key=lambda spec: spec.settings["RANDOM_SEED"])


def _experiment(
    scale: Scale,
    output: pathlib.Path,
    *,
    name: str,
    experiment: str,
    methods: Sequence[str],
    steps: int,
    ablation: str | None = None,
    model: str = "tiny",
    eval_period: int = 0,
    settings: Mapping[str, str] | None = None,
) -> list[RunSpec]:
    """The runs of several methods and all seeds."""
    reference = reference_spec(scale, model)
    common = {
        "INITIAL_CHECKPOINT_PATH": repr(str(reference.model_dir(output))),
        "SFT_STEPS": "0",
        "TRAIN_STEPS": str(steps),
        "EVAL_PERIOD": str(eval_period),
        "rouge.RougeLsum.workers": "0",  # each run has one core
        **scale.settings,
        **(settings or {}),
    }
    return [
        RunSpec(
            f"{name}/{method}/{seed}",
            (
                METHODS[method],
                f"gin/experiments/{experiment}.gin",
                *((f"gin/ablations/{ablation}.gin",) if ablation else ()),
                "gin/briefs.gin",
                *_model_files(model),
                *scale.files,
            ),
            {**common, "RANDOM_SEED": str(seed)},
            steps,
            reference.name,
        )
        for method, seed in itertools.product(methods, scale.seeds)
    ]


def _model_files(model: str) -> tuple[str, ...]:
    # gin/briefs.gin has the tiny one.
    return () if model == "tiny" else (f"gin/ablations/model_{model}.gin",)
