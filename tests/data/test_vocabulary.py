"""The vocabulary command, and the vocabulary of briefs that it made."""

import json
import re
import subprocess
import sys
from importlib import resources

import pytest
import sentencepiece

from clp_jax.data import vocabulary
from clp_jax.data.briefs import corpus, world


def load(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def pieces(model: bytes) -> list[str]:
    processor = load(model)
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


@pytest.fixture(scope="module")
def briefs_model() -> bytes:
    return (resources.files("clp_jax.data.briefs") / "briefs.model").read_bytes()


@pytest.fixture(scope="module")
def briefs(briefs_model) -> sentencepiece.SentencePieceProcessor:
    return load(briefs_model)


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "data.jsonl"
    records = corpus.generate("train", 300)
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return path


def test_retraining_gives_the_packaged_vocabulary(briefs_model):
    assert pieces(vocabulary.train_briefs()) == pieces(briefs_model)


def test_the_special_ids_are_those_of_t5(briefs):
    assert (briefs.pad_id(), briefs.eos_id(), briefs.unk_id(), briefs.bos_id()) == (0, 1, 2, -1)
    assert briefs.get_piece_size() == 256


def test_every_word_of_briefs_is_one_piece(briefs):
    phrases = [phrase for slot in world.SLOTS for phrase in slot.phrases]
    groups = (world.AGENTS, world.VERBS, world.VERBS.values(), world.OBJECTS, world.HEDGES)
    groups += (world.BYSTANDERS, world.PASTIMES, phrases, ["The It A a and happens summarize"])
    words = {word for group in groups for text in group for word in text.split()}
    assert {word: briefs.encode(word, out_type=str) for word in words} == {
        word: [f"▁{word}"] for word in words
    }


def test_briefs_survive_the_round_trip(briefs):
    for record in corpus.generate("validation", 300):
        for text in record.values():
            ids = briefs.encode(text)
            assert briefs.unk_id() not in ids
            assert len(ids) == len(re.findall(r"\w+|\.", text))
            assert briefs.decode(ids) == text


def test_weight_prefixes_are_short_and_known(briefs):
    prefix = "entailment: 0.4 0.4; rouge: 0.35 0.35; quality: 0.25 0.25. summarize: The mayor"
    assert briefs.unk_id() not in briefs.encode(prefix)
    assert briefs.decode(briefs.encode(prefix)) == prefix
    for number in [f"{i / 100:.2f}" for i in range(101)] + [f"{i / 10}" for i in range(11)]:
        ids = briefs.encode(f"rouge: {number}")
        assert briefs.unk_id() not in ids
        assert len(ids) - len(briefs.encode("rouge:")) <= len(number) - 1
    assert briefs.unk_id() not in briefs.encode("rouge: 0 1; quality: 1 0.")


def test_the_file_is_small(briefs_model):
    assert len(briefs_model) < 10_000


def test_training_is_deterministic_and_has_the_prefix_characters(jsonl):
    texts = list(vocabulary.read_fields([str(jsonl)], ["document", "summary"]))
    assert len(texts) == 600
    model = vocabulary.train(texts, 200)
    assert model == vocabulary.train(texts, 200)
    processor = load(model)
    assert processor.get_piece_size() == 200
    assert (processor.pad_id(), processor.eos_id(), processor.unk_id()) == (0, 1, 2)
    assert processor.unk_id() not in processor.encode("0123456789 .,:;")


# SentencePiece's own limit is 4192 bytes.
def test_long_lines_are_not_left_out():
    processor = load(vocabulary.train(["word " * 3000 + "zebra", "word"], 26))
    assert processor.unk_id() not in processor.encode("zebra")


def test_the_command_writes_a_vocabulary(jsonl, tmp_path, capsys):
    output = tmp_path / "new" / "x.model"
    vocabulary.main([f"--input={jsonl}", "--vocab_size=150", f"--output={output}"])
    both = pieces(output.read_bytes())
    assert len(both) == 150
    assert f"wrote {output}: 150 pieces" in capsys.readouterr().out
    vocabulary.main(
        [f"--input={jsonl}", "--fields=summary", "--vocab_size=150", f"--output={output}"]
    )
    assert "▁Elsewhere" not in both
    assert pieces(output.read_bytes()) != both


def test_the_command_trains_the_vocabulary_of_briefs(tmp_path, briefs_model):
    output = tmp_path / "briefs.model"
    vocabulary.main(["--briefs", f"--output={output}"])
    assert pieces(output.read_bytes()) == pieces(briefs_model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"--input=.*data.jsonl: no such file"),
        ('{"document": "a", "summary": "b"}\n\n{"document"\n', r"data.jsonl, line 3: not valid"),
        ('{"document": "a", "text": "b"}\n', r"line 1: no text field 'summary'.*document, text"),
        ('{"document": "a", "summary": 3}\n', r"line 1: no text field 'summary'.*: document"),
        ("[1]\n", r"line 1: expected a JSON object, got list"),
        (b"\xff\xfe\xfa\n", r"line 1: not valid JSON"),
        ("\n", r"needs text to train on"),
        ('{"document": "a b", "summary": "b"}\n', r"vocab_size=500 .*value <= \d+"),
    ],
)
def test_bad_input_is_named(tmp_path, content, message):
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit, match=message):
        vocabulary.main([f"--input={path}", "--vocab_size=500", f"--output={tmp_path}/x.model"])
    assert not (tmp_path / "x.model").exists()


def test_bad_arguments_are_named(tmp_path, capsys):
    output = f"--output={tmp_path}/x.model"
    with pytest.raises(SystemExit, match="Vocabulary size is smaller than required_chars"):
        vocabulary.main(["--briefs", "--vocab_size=8", output])
    with pytest.raises(SystemExit, match="vocab_size=0"):
        vocabulary.main(["--briefs", "--vocab_size=0", output])
    with pytest.raises(SystemExit):
        vocabulary.main(["--input=x.jsonl", output])
    assert "--input needs --vocab_size" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        vocabulary.main([output])
    assert "--input --briefs is required" in capsys.readouterr().err


def test_help_works_without_tensorflow():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('tensorflow', 'seqio', 'gin', 'jax')));"
        "from clp_jax.data import vocabulary; vocabulary.main(['--help'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "nmt_nfkc as in T5" in result.stdout
