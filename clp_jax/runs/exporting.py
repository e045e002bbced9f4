"""Plain language models out of a trained run: parameters, tokenizer and model card."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from clp_jax.algorithm import conditioning
from clp_jax.algorithm.weighting import Weighting
from clp_jax.data import tasks
from clp_jax.models import checkpoints, hf_checkpoints, hf_safetensors, t5x_checkpoints
from clp_jax.reporting.errors import unknown_name
from clp_jax.runs import restoring
from clp_jax.runs.trainer import prompter
from clp_jax.settings.config import Run

Params = Any

FORMATS = ("hf", "t5x")

# Says of a directory that it is an export, and which of its files are.
MANIFEST = "clp_export.json"


@dataclasses.dataclass(frozen=True)
class Export:
    """A plain LM taken from a run.

    Attributes:
      run: the trained run.
      step: of the checkpoint.
      params: a plain LM tree.
      title: what it is, in one line.
      weighting: (α, w) it was mixed at; None for a part of the run.
      generates: whether it is a policy; the value network is none.
    """

    run: Run
    step: int
    params: Params
    title: str
    weighting: Weighting | None = None
    generates: bool = True

    @classmethod
    def of(
        cls,
        run: Run,
        weighting: Weighting | None = None,
        part: str | None = None,
        step: int | None = None,
    ) -> "Export":
        """Takes θ^{α,w} (Eq. 3) or a part from a run's checkpoint.

        Args:
          run: the trained run.
          weighting: (α, w), or None to take a part.
          part: "expert:I", "reference" or "value".
          step: which checkpoint; None for the latest.

        Raises:
          ValueError: no such part or checkpoint.
        """
        if weighting is None:
            _check_part(part, run.model.num_objectives)
        params, reference, step = restoring.restore_params(run, step)
        names, at = run.model.rewards.names, f"step {step}"
        if weighting is not None:
            mixed = conditioning.condition(params, reference, weighting, run.model.kl_mix)
            weights = ", ".join(
                f"{name} {float(weight):g}"
                for name, weight in zip(names, weighting.reward_weights, strict=True)
            )
            title = f"the policy at {weights}, KL weight {float(weighting.kl_weight):g}, {at}"
            return cls(run, step, mixed, title, weighting)
        name, _, index = str(part).partition(":")
        if name == "expert":
            part_params = conditioning.expert(params, int(index))
            title = f"expert {index} ({names[int(index)]}), not mixed with the reference, {at}"
        elif name == "value":
            part_params = restoring.restore_value_params(run, step)
            title = f"the value network, {at}"
        else:
            part_params, title = reference, "the reference policy"
        return cls(run, step, part_params, title, generates=name != "value")

    def write(
        self, output: str, file_format: str = "hf", dtype: str = "float32", overwrite: bool = False
    ) -> pathlib.Path:
        """Writes the model; it is there whole or not at all.

        Args:
          output: directory to write.
          file_format: "hf", or "t5x" for OUTPUT/checkpoint_STEP.
          dtype: of the stored parameters.
          overwrite: replace an export that is there; nothing else is ever replaced.

        Returns:
          The directory that was written.

        Raises:
          ValueError: unknown format; `output` is none that may be written, or something is there
            that may not be replaced; a parameter that is not finite or too large for `dtype`; a
            model that Hugging Face's T5 cannot be.
        """
        if file_format not in FORMATS:
            raise ValueError(unknown_name("format", file_format, FORMATS, "--format"))
        _check_output(output, self.run.model_dir)
        path = pathlib.Path(output)
        if file_format == "t5x":
            if hf_checkpoints.recognises(path):
                raise ValueError(
                    f"--output={path} holds a Hugging Face model; choose another directory, as "
                    "one with both formats would not be read"
                )
            path = path / f"checkpoint_{self.step}"
        _check_free(path, overwrite)
        with checkpoints.whole_directory(path) as partial:
            if file_format == "t5x":
                t5x_checkpoints.save(partial, self.params, self.step, dtype)
            else:
                self._write_hf(partial, dtype)
            (partial / "README.md").write_text(self.model_card(file_format), encoding="utf-8")
            files = sorted(file.name for file in partial.iterdir())
            hf_safetensors.write_json(partial / MANIFEST, {"what": self.title, "files": files})
        return path

    def model_card(self, file_format: str) -> str:
        """What the model is and how it is used, in Markdown."""
        run, weighting = self.run, self.weighting
        rewards = run.model.rewards
        lines = [f"# {self.title[0].upper()}{self.title[1:]}", ""]
        if weighting is None:
            lines.append(f"A part of a conditional language policy on {', '.join(rewards.names)}.")
        else:
            lines += [
                f"θ^(α,w) of a conditional language policy at α = {float(weighting.kl_weight):g}:",
                "",
                "| reward | weight | raw scores that count as 0 and 1 |",
                "|---|---|---|",
            ]
            for name, weight in zip(rewards.names, weighting.reward_weights, strict=True):
                low, high = rewards.ranges[name]
                lines.append(f"| {name} | {float(weight):g} | {low:g}, {high:g} |")
        lines += ["", *self._usage(file_format)]
        text = "\n".join(lines) + "\n"
        if file_format != "hf":
            return text
        tags = "".join(f"- {tag}\n" for tag in ("t5", "conditional-language-policy"))
        return f"---\nlibrary_name: transformers\ntags:\n{tags}---\n\n{text}"

    def _usage(self, file_format: str) -> list[str]:
        run = self.run
        prefix = tasks.prompt_prefix(run.train_dataset_cfg.mixture_or_task_name)
        weights_in_prompt = prompter(run.model)
        if self.weighting is not None and weights_in_prompt is not None:
            prefix = weights_in_prompt.text(np.asarray(self.weighting.reward_weights)) + prefix
        lines = [
            f"Prompts begin with {prefix!r} and have at most {run.max_prompt_length} tokens, "
            f"completions at most {run.max_decode_length}.",
            "",
        ]
        if file_format == "t5x":
            return [
                *lines,
                "Parameters only, in T5X's legacy format: restore it with a fallback for the "
                "optimizer state, or give it to clp_jax.train as INITIAL_CHECKPOINT_PATH.",
            ]
        if not self.generates:
            return [
                *lines,
                "It writes no text: its logits at the first decoder position are values, that of "
                "token id i of the i-th reward.",
            ]
        code = (
            "from transformers import AutoTokenizer, T5ForConditionalGeneration",
            "",
            'model = T5ForConditionalGeneration.from_pretrained("this directory")',
            'tokenizer = AutoTokenizer.from_pretrained("this directory")',
            f"prompt = tokenizer({prefix!r} + document, return_tensors='pt', truncation=True)",
            "print(tokenizer.decode(model.generate(**prompt)[0], skip_special_tokens=True))",
        )
        return [*lines, "```python", *code, "```"]

    def _write_hf(self, folder: pathlib.Path, dtype: str) -> None:
        run = self.run
        generation = {"max_new_tokens": run.max_decode_length, "do_sample": False}
        hf_checkpoints.save(
            folder,
            self.params,
            run.model.module.config,
            dtype,
            eos_id=run.model.eos_id,
            generation=generation,
        )
        _write_tokenizer(folder, run)


def _write_tokenizer(folder: pathlib.Path, run: Run) -> None:
    """The files of transformers' T5Tokenizer, for a SentencePiece vocabulary."""
    vocabulary = run.model.vocabulary
    if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
        raise ValueError(
            f"the vocabulary is a {type(vocabulary).__name__}; valid for --format=hf is a SeqIO "
            "SentencePieceVocabulary, which transformers' T5Tokenizer can read"
        )
    # The file as it is: to `vocabulary.sp_model` SeqIO has added the extra ids, and so will
    # transformers.
    with tf.io.gfile.GFile(vocabulary.sentencepiece_model_file, "rb") as file:
        (folder / "spiece.model").write_bytes(file.read())
    pieces = vocabulary.tokenizer
    extra_ids = vocabulary.extra_ids
    config: dict[str, Any] = {
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": run.max_prompt_length,
        "extra_ids": extra_ids,
        "pad_token": pieces.IdToPiece(vocabulary.pad_id),
        "eos_token": pieces.IdToPiece(vocabulary.eos_id),
        "unk_token": pieces.IdToPiece(vocabulary.unk_id),
    }
    if not extra_ids:
        config["additional_special_tokens"] = []
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _check_part(part: str | None, num_objectives: int) -> None:
    experts = [f"expert:{i}" for i in range(num_objectives)]
    valid = [*experts, "reference", "value"]
    if part not in valid:
        raise ValueError(f"--part={part} is none of this run; valid are {', '.join(valid)}")


def _check_output(output: str, model_dir: str) -> None:
    """Raises ValueError if a model may not be written there, whatever is there."""
    if "://" in output:
        raise ValueError(
            f"--output={output}: models are written to a directory of this machine; copy it to a "
            "bucket from there"
        )
    path, run = pathlib.Path(output).resolve(), pathlib.Path(model_dir).resolve()
    kept = (restoring.checkpoint_folder(model_dir).resolve(), run / checkpoints.REFERENCE)
    if path == run or any(path.is_relative_to(folder) for folder in kept):
        raise ValueError(
            f"--output={output} is where the run keeps its own state; choose another directory"
        )


def _check_free(path: pathlib.Path, overwrite: bool) -> None:
    """Raises ValueError if something is there that may not be replaced."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).is_file():
        raise ValueError(
            f"--output={path} exists and is no export (it has no {MANIFEST}); choose another "
            "directory"
        )
    if not overwrite:
        raise ValueError(f"--output={path} exists; --overwrite replaces it")
    written = {MANIFEST, *hf_safetensors.read_json(path / MANIFEST).get("files", ())}
    if others := sorted({entry.name for entry in path.iterdir()} - written):
        raise ValueError(
            f"--output={path} has {', '.join(others)}, which no export wrote and --overwrite would "
            "delete; move it, or choose another directory"
        )
