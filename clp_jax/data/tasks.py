"""SeqIO Tasks of prompts and references, and their records, of which SeqIO knows nothing."""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import seqio
import tensorflow as tf

from clp_jax.data.briefs import corpus
from clp_jax.data.text import check_text
from clp_jax.reporting.errors import unknown_name

Record = Mapping[str, Any]
T = TypeVar("T")

PROMPT_PREFIX = "summarize: "
SPLITS = ("train", "validation")

# Task name -> split -> the text of every example.
_RECORDS: dict[str, Callable[[str], Sequence[Record]]] = {}
_PROMPT_PREFIXES: dict[str, str] = {}


def columns(task_name: str, split: str) -> Sequence[Record] | None:
    """The text of every example of a split, or None for a Task that this module did not make.

    Returns:
      Records; each has "prompt" (the untruncated input), "document", "summary" and whatever else
      the data has.
    """
    records = _RECORDS.get(task_name)
    return None if records is None else records(split)


def column_names(records: Sequence[Record]) -> tuple[str, ...]:
    """The columns that every record has, which are those that rewards can read."""
    common = set(records[0]).intersection(*records) - {"prompt"}
    return tuple(name for name in records[0] if name in common)


def prompt_prefix(task_name: str) -> str:
    """What stands in front of each document in a Task's prompts; "" for Tasks made elsewhere."""
    return _PROMPT_PREFIXES.get(task_name, "")


def check_task(task_name: str) -> None:
    """Raises ValueError with the nearest names unless SeqIO knows `task_name`."""
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if task_name not in known:
        raise ValueError(unknown_name("task", task_name, known, "MIXTURE_OR_TASK_NAME"))


# ------------------------------------------------------------------------------------------------
# The Tasks
# ------------------------------------------------------------------------------------------------


def briefs(
    vocabulary: seqio.Vocabulary, train_size: int = 20_000, validation_size: int = 1_024,
    seed: int = 0, prompt_prefix: str = PROMPT_PREFIX,
) -> str:  # fmt: skip
    """The self-made corpus; see `clp_jax.data.briefs`.

    Returns:
      The name of the Task, which is registered anew.
    """
    sizes = {"train": train_size, "validation": validation_size}

    def records(split: str) -> Sequence[Record]:
        return _generated(split, sizes[split], seed)

    return register("briefs", records, vocabulary, prompt_prefix)


# Drawn once by a process.
_generated = functools.lru_cache(maxsize=4)(corpus.generate)


def briefs_vocabulary() -> seqio.Vocabulary:
    """The vocabulary of the self-made corpus, trained by `python -m clp_jax.data.vocabulary`."""
    model = pathlib.Path(corpus.__file__).with_name("briefs.model")
    return seqio.SentencePieceVocabulary(str(model))


def jsonl(
    vocabulary: seqio.Vocabulary,
    train_file: str,
    validation_file: str | None = None,
    validation_fraction: float = 0.05,
    document_field: str = "document",
    summary_field: str = "summary",
    prompt_prefix: str = PROMPT_PREFIX,
    name: str = "jsonl",
) -> str:
    """Any JSONL file with a document and a summary on each line.

    Args:
      vocabulary: of prompts and summaries.
      train_file: path.
      validation_file: path; None holds out a share of `train_file`, chosen by the document's hash.
      validation_fraction: that share; range (0, 1).
      document_field: name of the field that becomes the prompt.
      summary_field: name of the field that holds the reference summary.
      prompt_prefix: text in front of each document.
      name: of the Task.

    Returns:
      The name of the Task, which is registered anew.

    Raises:
      ValueError: a file that is missing or empty, or a bad line: path and line number.
    """

    def read(path: str) -> list[Record]:
        return read_jsonl(path, {"document": document_field, "summary": summary_field})

    records = from_files(
        read, lambda row: row["document"], train_file, validation_file, validation_fraction
    )
    return register(name, records, vocabulary, prompt_prefix)


def from_files(
    read: Callable[[str], Iterable[T]],
    document: Callable[[T], str],
    train_file: str,
    validation_file: str | None,
    validation_fraction: float,
) -> Callable[[str], Sequence[T]]:
    """Split -> examples, of one file or two; the hash of its `document` holds an example out."""
    splits: dict[str, list[T]] = {split: [] for split in SPLITS}
    if validation_file is not None:
        splits = {"train": list(read(train_file)), "validation": list(read(validation_file))}
        return splits.__getitem__
    for example in read(train_file):
        held_out = hash_fraction(document(example)) < validation_fraction
        splits["validation" if held_out else "train"].append(example)
    for split, examples in splits.items():
        if not examples:
            raise ValueError(
                f"{train_file} has no {split} examples with validation_fraction="
                f"{validation_fraction}; give a validation file or a larger data set"
            )
    return splits.__getitem__


def xsum(
    vocabulary: seqio.Vocabulary,
    tfds_name: str = "xsum:1.1.0",
    data_dir: str | None = None,
    prompt_prefix: str = PROMPT_PREFIX,
    name: str = "xsum",
) -> str:
    """XSum (Narayan et al. 2018) through TFDS, or any TFDS data set of {document, summary}.

    Returns:
      The name of the Task, which is registered anew.
    """
    import tensorflow_datasets as tfds

    @functools.cache
    def records(split: str) -> Sequence[Record]:
        examples = tfds.as_numpy(tfds.load(tfds_name, split=split, data_dir=data_dir))
        return [
            {"document": e["document"].decode(), "summary": e["summary"].decode()} for e in examples
        ]

    return register(name, records, vocabulary, prompt_prefix)


def register(
    name: str,
    records: Callable[[str], Sequence[Record]],
    vocabulary: seqio.Vocabulary,
    prompt_prefix: str = PROMPT_PREFIX,
) -> str:
    """Registers a Task over records held in memory, replacing one of the same name.

    The Task's features are `inputs` (prefix and document) and `targets` (the summary), for SeqIO's
    own readers; ours take the records by index (`clp_jax.data.batches`).

    Args:
      name: of the Task.
      records: split -> records with at least "document" and "summary".
      vocabulary: of inputs and targets.
      prompt_prefix: text in front of each document.

    Returns:
      `name`.
    """

    @functools.cache
    def with_prompt(split: str) -> Sequence[Record]:
        return [{**r, "prompt": prompt_prefix + r["document"]} for r in records(split)]

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None):
        rows = with_prompt(split)
        texts = {"inputs": [r["prompt"] for r in rows], "targets": [r["summary"] for r in rows]}
        return tf.data.Dataset.from_tensor_slices(texts)

    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=SPLITS),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=dict.fromkeys(("inputs", "targets"), seqio.Feature(vocabulary)),
        metric_fns=[],
    )
    _RECORDS[name] = with_prompt
    _PROMPT_PREFIXES[name] = prompt_prefix
    return name


def tokens(
    vocabulary: seqio.Vocabulary, texts: Sequence[str], length: int, ended: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Texts as a Task has them: tokens, EOS if they are `ended`, cut, and padded with 0.

    Returns:
      ([n, length] int32, which lost their end [n] bool).
    """
    rows = encoded(vocabulary, texts)
    if ended:
        rows = [[*row, vocabulary.eos_id] for row in rows]
    padded = np.zeros([len(rows), length], np.int32)
    for out, row in zip(padded, rows, strict=True):
        out[: len(row)] = row[:length]
    return padded, np.array([len(row) > length for row in rows], bool)


def encoded(vocabulary: seqio.Vocabulary, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, without EOS."""
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return vocabulary.tokenizer.encode(list(texts))  # many at once, on several threads
    return [vocabulary.encode(text) for text in texts]


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def read_jsonl(path: str, fields: Mapping[str, str]) -> list[Record]:
    """Reads a JSONL file and checks every line.

    Args:
      path: file, one JSON object a line; blank lines are passed over.
      fields: canonical name -> name in the file; each must be a string on every line.

    Returns:
      One record a line: the canonical fields, and every other field under its own name.

    Raises:
      ValueError: missing or empty file, malformed line, missing field; with path and line number.
    """
    return [record for _, record in numbered_records(path, fields)]


def numbered_records(path: str, fields: Mapping[str, str]) -> Iterator[tuple[str, Record]]:
    """Yields ("path:line number", record) for every line of a JSONL file; see `read_jsonl`."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"{path} is not a file")
    empty = True
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                empty = False
                where = f"{path}:{number}"
                yield where, parse_line(line, fields, where)
    if empty:
        raise ValueError(f"{path} is empty; expected one JSON object with {_named(fields)} a line")


def parse_line(line: str | bytes, fields: Mapping[str, str], where: str) -> Record:
    """One line of JSONL as a record; `where` (file and line) stands in front of every error."""
    try:
        row = json.loads(line.decode("utf-8-sig") if isinstance(line, bytes) else line)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        expected = f"expected a JSON object with {_named(fields)}"
        raise ValueError(f"{where}: {expected}, got {line[:60]!r}")
    for field in fields.values():
        if field not in row:
            raise ValueError(f"{where}: {unknown_name('field', field, row)}")
        if not isinstance(row[field], str):
            raise ValueError(f"{where}: field {field!r} is {row[field]!r}, expected a string")
        if not row[field].strip():
            raise ValueError(f"{where}: field {field!r} is blank")
    check_text(row, where)
    return row | {name: row[field] for name, field in fields.items()}


def _named(fields: Mapping[str, str]) -> str:
    return ", ".join(repr(field) for field in fields.values())
