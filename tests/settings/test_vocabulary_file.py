"""A VOCABULARY_FILE that is none: one message with its path, exit status 2."""

import io
import json

import pytest
import sentencepiece
import smoke

from clp_jax import train
from clp_jax.data.text import check_vocabulary
from clp_jax.data.vocabulary import train as train_vocabulary

TEXTS = [f"the mayor sold {i} boats in Paris" for i in range(80)]


def default_ids():
    """A model as SentencePiece makes it by default: unk 0, bos 1, eos 2, no padding."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=30, minloglevel=2
    )
    return model.getvalue()


def wrong(folder):
    """Name -> (path, what the message says of it)."""
    (folder / "config.json").write_text("{}")
    (folder / "default.model").write_bytes(default_ids())
    (folder / "cut.model").write_bytes(train_vocabulary(TEXTS, 38)[:300])
    ids = "has pad = -1, not 0, eos = 2, not 1, unk = 0, not 2"
    return {
        "missing": (folder / "nowhere" / "spiece.model", "cannot be read"),
        "json": (folder / "config.json", "cannot be read"),
        "directory": (folder, "cannot be read"),
        "cut": (folder / "cut.model", "cannot be read"),
        "default ids": (folder / "default.model", ids),
    }


@pytest.mark.parametrize("kind", ["missing", "json", "directory", "cut", "default ids"])
def test_a_file_that_is_no_vocabulary(tmp_path, capfd, kind):
    path, said = wrong(tmp_path)[kind]
    rows = [{"document": text, "summary": text} for text in TEXTS]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = smoke.flags(
        tmp_path / "run", f"TRAIN_FILE='{tmp_path / 'docs.jsonl'}'", f"VOCABULARY_FILE='{path}'",
        "REWARDS=('rouge',)", "INIT_FROM_SCRATCH=True",
        files=["gin/clp_attn.gin", "gin/jsonl.gin", "gin/models/tiny.gin"],
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        train.main([*flags, "--dry_run"])
    assert ended.value.code == 2
    error = capfd.readouterr().err
    assert f"VOCABULARY_FILE={str(path)!r} {said}" in error
    assert "valid is a SentencePiece model with T5's ids" in error
    assert "Traceback" not in error


def test_ours_pass(tmp_path):
    import seqio

    (tmp_path / "ours.model").write_bytes(train_vocabulary(TEXTS, 38))
    for extra_ids in (0, 100):
        vocabulary = seqio.SentencePieceVocabulary(str(tmp_path / "ours.model"), extra_ids)
        check_vocabulary(vocabulary, "VOCABULARY_FILE")
    check_vocabulary(seqio.ByteVocabulary(), "VOCABULARY_FILE")
