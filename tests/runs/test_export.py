"""A steered model leaves the run: files, card, and the same completions elsewhere."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke

from clp_jax.algorithm import conditioning
from clp_jax.algorithm import train_step as clp_step
from clp_jax.algorithm.weighting import Weighting
from clp_jax.data.batches import Batches
from clp_jax.models import checkpoints, hf_checkpoints
from clp_jax.runs import exporting, restoring, states, training
from clp_jax.runs.run_checkpoints import RunCheckpoints
from clp_jax.settings import command_line

STEP = 7
DOCUMENTS = [
    "The judge moves a school. It perhaps happens due to fatigue.",
    "A goose sings in Lyon. The pilot sells a bridge with pupils and certainly in Berlin.",
    "The nurse",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run as training leaves it, whose replicas are far from each other and the reference."""
    folder = tmp_path_factory.mktemp("export") / "run"
    run = smoke.configured(folder)
    command_line.claim_model_dir(str(folder))
    reference = jax.tree.map(lambda x: 1.5 * x, states.init_params(run))
    checkpoints.save_params(folder / checkpoints.REFERENCE, reference)
    state = clp_step.init_train_state(run.clp, reference, run.model.subset, 2)
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    state = state.replace(step=jnp.int32(STEP), params=jax.tree.unflatten(tree, moved))
    saved = RunCheckpoints(folder / "checkpoints", run.checkpoint_cfg.save)
    saved.save(STEP, state, Batches(run.train_dataset_cfg, repeat=True, seed=0))
    saved.close()
    return run


def at(run, *weights, kl_weight=0.05):
    return Weighting.of(kl_weight, np.array(weights))


def export(run, output, *args, **kwargs):
    return exporting.Export.of(run, at(run, 0.7, 0.3)).write(str(output), *args, **kwargs)


def mixed(run, weighting):
    state, reference = restoring.restore(run)
    return conditioning.condition(state.params, reference, weighting, run.model.kl_mix)


@pytest.mark.parametrize("file_format", exporting.FORMATS)
def test_what_is_exported_is_the_mixture_and_starts_another_run(run, tmp_path, file_format):
    path = export(run, tmp_path / "out", file_format)
    got = checkpoints.load_params(path, states.reference_shapes(run), run.model.module.config)
    jax.tree.map(np.testing.assert_array_equal, got, mixed(run, at(run, 0.7, 0.3)))
    again = smoke.configured(tmp_path / "again", f"INITIAL_CHECKPOINT_PATH={str(path)!r}")
    training.check(again)
    jax.tree.map(np.testing.assert_array_equal, training.load_reference(again), got)


@pytest.mark.parametrize("file_format", exporting.FORMATS)
def test_a_checkpoint_of_another_size_says_what_to_set(run, tmp_path, file_format):
    path = export(run, tmp_path / "out", file_format)

    def check(binding):
        settings = (f"INITIAL_CHECKPOINT_PATH={str(path)!r}", binding)
        training.check(smoke.configured(tmp_path / "other", *settings))

    with pytest.raises(ValueError, match=f"{path}.*256.*512.*; t5.T5Config.vocab_size = 256 makes"):
        check("t5.T5Config.vocab_size=512")
    with pytest.raises(ValueError, match=str(path)):
        check("t5.T5Config.num_decoder_layers=3")
    if file_format == "hf":  # which the shapes do not tell
        with pytest.raises(ValueError, match="config.json.*feed_forward_proj"):
            check("t5.T5Config.mlp_activations=('silu', 'linear')")


def test_a_damaged_checkpoint_stops_the_run_before_it_starts(run, tmp_path):
    path = export(run, tmp_path / "out")
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-8])
    damaged = smoke.configured(tmp_path / "again", f"INITIAL_CHECKPOINT_PATH={str(path)!r}")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole.*61440"):
        training.check(damaged)


def test_parts_are_the_state_and_make_it_again(run, tmp_path):
    state, reference = restoring.restore(run)
    parts = {}
    for part in ("expert:0", "expert:1", "reference", "value"):
        path = exporting.Export.of(run, part=part).write(str(tmp_path / part), "t5x")
        assert path.name == f"checkpoint_{STEP}"
        parts[part] = checkpoints.load_params(path, states.reference_shapes(run))
    experts = [parts["expert:0"], parts["expert:1"]]
    again = conditioning.from_experts(experts, run.model.subset)
    jax.tree.map(np.testing.assert_array_equal, again, state.params)
    jax.tree.map(np.testing.assert_array_equal, parts["reference"], reference)
    jax.tree.map(np.testing.assert_array_equal, parts["value"], state.value_params)
    experts[1]["decoder"]["decoder_norm"]["scale"] += 1.0
    with pytest.raises(ValueError, match="expert 1 differs from expert 0 in decoder/decoder_norm"):
        conditioning.from_experts(experts, run.model.subset)


def test_low_precision(run, tmp_path):
    path = export(run, tmp_path / "out", dtype="bfloat16")
    got = checkpoints.load_params(path, states.reference_shapes(run))
    expected = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), mixed(run, at(run, 0.7, 0.3))
    )
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_the_card_says_what_it_is(run, tmp_path):
    card = (export(run, tmp_path / "out") / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for text in ("α = 0.05", "| entailment | 0.7 |", "'summarize: '"):
        assert text in card
    low, high = run.model.rewards.ranges["rouge"]
    assert f"| rouge | 0.3 | {low:g}, {high:g} |" in card


def test_only_a_policy_is_said_to_generate(run, tmp_path):
    cards = {}
    for part in ("expert:0", "value"):
        path = exporting.Export.of(run, part=part).write(str(tmp_path / part))
        cards[part] = (path / "README.md").read_text()
    assert "model.generate(" in cards["expert:0"]
    assert "generate" not in cards["value"]
    assert "writes no text" in cards["value"]


def test_an_unknown_format_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="'hff'.*hf"):
        exporting.Export.of(run, part="reference").write(str(tmp_path / "out"), "hff")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_replaced_only_when_asked_and_only_by_a_whole_one(
    run, tmp_path, monkeypatch
):
    path = export(run, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    with pytest.raises(ValueError, match="out exists; --overwrite replaces it"):
        export(run, tmp_path / "out")

    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(hf_checkpoints.hf_safetensors, "write_json", full_disk)
        with pytest.raises(OSError, match="no space left"):
            export(run, tmp_path / "out", overwrite=True)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    exporting.Export.of(run, at(run, 0, 1)).write(str(path), overwrite=True)
    assert (path / "model.safetensors").read_bytes() != before["model.safetensors"]


@pytest.mark.parametrize("file_format", exporting.FORMATS)
def test_nothing_but_an_export_is_ever_replaced(run, tmp_path, file_format):
    path = export(run, tmp_path / "out", file_format)
    export(run, tmp_path / "out", file_format, overwrite=True)
    (path / "optimizer.pt").write_text("mine")
    with pytest.raises(ValueError, match="has optimizer.pt, which no export wrote"):
        export(run, tmp_path / "out", file_format, overwrite=True)
    (path / exporting.MANIFEST).unlink()
    with pytest.raises(ValueError, match=f"exists and is no export .*{exporting.MANIFEST}"):
        export(run, tmp_path / "out", file_format, overwrite=True)
    assert (path / "optimizer.pt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises((ValueError, OSError), match="file"):
        export(run, tmp_path / "file", file_format, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("file_format", exporting.FORMATS)
def test_a_run_is_not_written_over(run, file_format):
    before = sorted(pathlib.Path(run.model_dir).rglob("*"))
    for place in ("", "checkpoints", "checkpoints/9", "reference/x", "../run"):
        with pytest.raises(ValueError, match="is where the run keeps its own state"):
            export(run, pathlib.Path(run.model_dir, place), file_format, overwrite=True)
    assert sorted(pathlib.Path(run.model_dir).rglob("*")) == before


def test_a_bucket_is_not_taken_for_a_directory(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--output=gs://bucket/x: models are written to a direct"):
        export(run, "gs://bucket/x")
    assert not any(tmp_path.iterdir())


def test_formats_are_not_mixed_in_one_directory(run, tmp_path):
    export(run, tmp_path / "hf")
    with pytest.raises(ValueError, match="hf holds a Hugging Face model"):
        export(run, tmp_path / "hf", "t5x")
    export(run, tmp_path / "t5x", "t5x")
    with pytest.raises(ValueError, match="t5x exists and is no export"):
        export(run, tmp_path / "t5x", overwrite=True)


@pytest.mark.parametrize("file_format", exporting.FORMATS)
@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.nan, "float32", "NaN or infinite"),
        (-np.inf, "bfloat16", "NaN or infinite"),
        (1e6, "float16", "value of 1000000.0, too large for float16.*bfloat16 or float32"),
        (3.4e38, "bfloat16", "too large for bfloat16"),
    ],
)
def test_values_that_a_type_has_not(run, tmp_path, file_format, value, dtype, message):
    made = exporting.Export.of(run, part="reference")
    made.params["decoder"]["decoder_norm"]["scale"] = np.full(16, value, np.float32)
    with pytest.raises(ValueError, match=f"decoder/decoder_norm/scale has .*{message}"):
        made.write(str(tmp_path / "out"), file_format, dtype)
    assert not (tmp_path / "out/checkpoint_7").exists()
    assert not (tmp_path / "out/config.json").exists()


def test_who_may_read_one_file_may_read_all(run, tmp_path):
    path = export(run, tmp_path / "out")
    assert len({file.stat().st_mode for file in path.iterdir()}) == 1


def test_extra_ids_are_those_of_transformers_too(run, tmp_path, monkeypatch):
    import seqio

    file = run.model.vocabulary.sentencepiece_model_file
    vocabulary = seqio.SentencePieceVocabulary(file, extra_ids=100)
    monkeypatch.setitem(run.model.__dict__, "vocabulary", vocabulary)
    path = export(run, tmp_path / "out")
    assert (path / "spiece.model").read_bytes() == pathlib.Path(file).read_bytes()
    if importlib.util.find_spec("transformers"):
        done = subprocess.run(
            [sys.executable, "-c", EXTRA_IDS, str(path)], capture_output=True, text=True, check=True
        )
        length, ids = json.loads(done.stdout.splitlines()[-1])
        assert length == vocabulary.vocab_size
        assert ids == [vocabulary.vocab_size - 1, vocabulary.vocab_size - 100]


EXTRA_IDS = """
import json, sys, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"])
print(json.dumps([len(tokenizer), ids]))
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part=expert:2"], "valid are expert:0, expert:1, reference, value"),
        (["--part=expert"], "--part=expert is none of this run"),
        (["--reward_weights=0.7,0.7"], "--reward_weights"),
        (["--reward_weights=1,0", "--kl_weight=0.001"], "--kl_weight"),
        (["--reward_weights=1,0", "--step=3"], "no checkpoint of step 3"),
        ([], "give either --reward_weights or --part"),
        (["--part=value", "--reward_weights=1,0"], "give either"),
        (["--part=value", "--kl_weight=1"], "goes with --reward_weights"),
    ],
)
def test_bad_arguments(run, tmp_path, capsys, arguments, message):
    from clp_jax import export

    arguments = [f"--model_dir={run.model_dir}", f"--output={tmp_path / 'out'}", *arguments]
    with pytest.raises(SystemExit) as stopped:
        export.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# A process of its own: torch and TensorFlow do not always go together in one.
TRANSFORMERS = """
import json, sys, torch, transformers
model = transformers.T5ForConditionalGeneration.from_pretrained(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
batch = tokenizer(json.load(sys.stdin), return_tensors="pt", padding=True, truncation=True)
with torch.inference_mode():
    tokens = model.generate(**batch)
print(json.dumps(tokenizer.batch_decode(tokens, skip_special_tokens=True)))
"""


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="needs the extra `parity`",
)
def test_transformers_generates_what_we_generate(run, tmp_path, capsys):
    from clp_jax import export, generate

    weights = [f"--model_dir={run.model_dir}", "--reward_weights=0.7,0.3", "--kl_weight=0.05"]
    export.main([*weights, f"--output={tmp_path / 'out'}"])
    assert "wrote" in capsys.readouterr().out
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"document": d}) + "\n" for d in DOCUMENTS))
    generate.main([*weights, f"--input={rows}"])
    ours = [json.loads(line)["completion"] for line in capsys.readouterr().out.splitlines()]
    prompts = ["summarize: " + document for document in DOCUMENTS]
    done = subprocess.run(
        [sys.executable, "-c", TRANSFORMERS, str(tmp_path / "out")],
        input=json.dumps(prompts), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(set(ours)) > 1
    assert json.loads(done.stdout.splitlines()[-1]) == ours


def test_conditioned_prompts_stand_in_the_card(tmp_path, run):
    files = [f.replace("clp_attn", "prompting") for f in smoke.FILES]
    prompting = smoke.configured(tmp_path / "p", files=files)
    card = exporting.Export(prompting, 0, {}, "the policy", at(run, 0.7, 0.3)).model_card("hf")
    assert "'entailment: 0.7 0.7 0.7 0.7 0.7" in card


def test_a_vocabulary_that_transformers_has_not(tmp_path, run, monkeypatch):
    import seqio

    monkeypatch.setitem(run.model.__dict__, "vocabulary", seqio.ByteVocabulary())
    with pytest.raises(ValueError, match="ByteVocabulary; valid for --format=hf"):
        export(run, tmp_path / "out")
    assert not pathlib.Path(tmp_path / "out").exists()
