"""SentencePiece vocabularies with T5's special ids, trained on one's own text.

    python -m clp_jax.data.vocabulary --input=train.jsonl --vocab_size=4096 --output=my.model
    python -m clp_jax.data.vocabulary --briefs --output=briefs.model

The second command makes the file `clp_jax/data/briefs/briefs.model`.
"""

import argparse
import io
import json
import re
import string
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from clp_jax.data.briefs import corpus
from clp_jax.data.text import check_text

# T5's ids; there is no beginning-of-sequence id.
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2

NORMALIZATIONS = ("nmt_nfkc", "identity")

# Every vocabulary has the characters of weight prefixes ("rouge: 0.6 0.6. "), whatever its text.
# "▁" is SentencePiece's space.
PREFIX_CHARACTERS = string.digits + ".,:;▁"

BRIEFS_VOCAB_SIZE = 256
BRIEFS_EXAMPLES = 2000
# "▁0." and "▁1." make every weight of one decimal two pieces.
BRIEFS_PREFIX_WORDS = ("summarize", "entailment", "rouge", "quality", "0.", "1.")


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    normalization: str = "nmt_nfkc",
    whole_words: Sequence[str] = (),
    required_characters: str = PREFIX_CHARACTERS,
) -> bytes:
    """Trains a unigram vocabulary. The same texts in the same order give the same pieces.

    Args:
      texts: the training text, each of one or more lines.
      vocab_size: number of pieces, the three special ones included.
      normalization: "nmt_nfkc" as in T5 (makes the file about 240 kB larger), or "identity".
      whole_words: words that must be one piece each.
      required_characters: characters that must be in the vocabulary, beside those of the text.

    Returns:
      The content of a SentencePiece model file.

    Raises:
      ValueError: no text, or a vocab_size that SentencePiece refuses; the message carries its
        own reason, which names the sizes that are possible.
    """
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("a vocabulary needs text to train on, got none")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=1.0,
            required_chars=required_characters,
            user_defined_symbols=[f"▁{word}" for word in whole_words],
            normalization_rule_name=normalization,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            # Lines longer than the limit would be left out without a word.
            max_sentence_length=10 + max(len(line.encode()) for line in lines),
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        # What follows the place in its C++ source, if anything does.
        reason = str(error).rpartition("] ")[2] or str(error)
        raise ValueError(
            f"no vocabulary of vocab_size={vocab_size} from {len(lines)} lines of text; "
            f"SentencePiece says: {reason}"
        ) from error
    return model.getvalue()


def read_fields(paths: Sequence[str], fields: Sequence[str]) -> Iterator[str]:
    """The texts of some fields of JSONL files, in file order.

    Args:
      paths: JSONL files of one object a line; blank lines are skipped.
      fields: names of text fields that every object must have.

    Yields:
      One text for each object and field.

    Raises:
      FileNotFoundError: a path is not a file.
      ValueError: a line is not a JSON object or lacks a field; names the file and the line.
    """
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"--input={path}: no such file")
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield from _texts_of(line, fields, f"{path}, line {number}")


def briefs_texts() -> list[str]:
    """The training text of the vocabulary of briefs: prefixes, documents and summaries."""
    texts = []
    for index, brief in enumerate(corpus.generate("train", BRIEFS_EXAMPLES)):
        w = index % 101 / 100
        prefix = f"entailment: {w:.2f} {w:.2f}; rouge: {1 - w:.2f} {1 - w:.2f}. "
        texts += [prefix + brief["document"], brief["summary"]]
    return texts


def train_briefs(vocab_size: int = BRIEFS_VOCAB_SIZE) -> bytes:
    """Trains the vocabulary of briefs, in which every word of the corpus is one piece.

    Args:
      vocab_size: number of pieces; by default as in the package's own briefs.model.

    Returns:
      The content of a SentencePiece model file.

    Raises:
      ValueError: a vocab_size that SentencePiece refuses.
    """
    texts = briefs_texts()
    words = {word for text in texts for word in re.findall(r"[A-Za-z]+", text)}
    characters = {character for word in words for character in word}
    return train(
        texts,
        vocab_size,
        normalization="identity",
        whole_words=sorted(words.union(BRIEFS_PREFIX_WORDS)),
        required_characters="".join(
            sorted(characters.union(string.ascii_lowercase, PREFIX_CHARACTERS))
        ),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Trains a vocabulary as the command line says."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.input and args.vocab_size is None:
        parser.error("--input needs --vocab_size")
    try:
        if args.briefs:
            size = BRIEFS_VOCAB_SIZE if args.vocab_size is None else args.vocab_size
            model = train_briefs(size)
        else:
            fields = [field.strip() for field in args.fields.split(",")]
            texts = read_fields(args.input, fields)
            model = train(texts, args.vocab_size, normalization=args.normalization)
        output = Path(args.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(model)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    print(f"wrote {output}: {size} pieces, {len(model)} bytes")


def _texts_of(line: bytes, fields: Sequence[str], where: str) -> Iterator[str]:
    try:
        record = json.loads(line)
    except ValueError as error:  # also of bytes that are not UTF-8
        raise ValueError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
    check_text(record, where)
    for field in fields:
        if not isinstance(record.get(field), str):
            found = ", ".join(sorted(key for key in record if isinstance(record[key], str)))
            raise ValueError(f"{where}: no text field {field!r}; text fields: {found or 'none'}")
        yield record[field]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clp_jax.data.vocabulary",
        description="Trains a SentencePiece vocabulary with T5's special ids: pad 0, end 1, "
        "unknown 2. It can write the digits and marks of weight prefixes. The same input gives "
        "the same vocabulary.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", action="append", metavar="FILE", help="a JSONL file; may be given repeatedly"
    )
    source.add_argument(
        "--briefs", action="store_true", help="train on the self-made corpus `briefs`"
    )
    parser.add_argument(
        "--fields",
        default="document,summary",
        help="text fields of --input to train on, by comma (default: %(default)s)",
    )
    parser.add_argument(
        "--vocab_size",
        type=int,
        metavar="N",
        help="number of pieces, the special ones included; multiples of 128 suit accelerators "
        f"(needed with --input; {BRIEFS_VOCAB_SIZE} with --briefs)",
    )
    parser.add_argument(
        "--normalization",
        choices=NORMALIZATIONS,
        default="nmt_nfkc",
        help="Unicode normalisation of --input: nmt_nfkc as in T5, or identity, which makes the "
        "file about 240 kB smaller (default: %(default)s)",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the .model file to write")
    return parser


if __name__ == "__main__":
    main()
