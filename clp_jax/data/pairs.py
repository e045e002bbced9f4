"""The data from which reward models are trained, as SeqIO Tasks.

Natural language inference has a premise, a hypothesis and a label; a preference has a post and two
summaries of it, the better and the worse. `clp_jax.data.pair_batches` gives their features and
batches.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import seqio

from clp_jax.data import tasks
from clp_jax.data.briefs import pairs as briefs
from clp_jax.data.pair_batches import Pair, PairBatch, PairBatches, class_names, records, register
from clp_jax.data.tasks import Record
from clp_jax.reporting.errors import unknown_name

__all__ = [
    "PairBatch",
    "PairBatches",
    "anli",
    "briefs_nli",
    "briefs_preferences",
    "class_names",
    "nli_jsonl",
    "preference_jsonl",
    "records",
]

NLI_LABELS = ("entailment", "neutral", "contradiction")


def nli_jsonl(
    vocabulary: seqio.Vocabulary,
    train_file: str,
    validation_file: str | None = None,
    validation_fraction: float = 0.1,
    labels: Sequence[str] = NLI_LABELS,
    premise_field: str = "premise",
    hypothesis_field: str = "hypothesis",
    label_field: str = "label",
    name: str = "nli_jsonl",
) -> str:
    """Any JSONL file with a premise, a hypothesis and a label on each line.

    Args:
      vocabulary: of premises and hypotheses.
      train_file: path.
      validation_file: path; None holds out a share of `train_file`, chosen by the premise's hash,
        so that no premise is in both splits.
      validation_fraction: that share; range (0, 1).
      labels: all that a line may be labelled, by class; a line has one of them or its index.
      premise_field: name of the field that holds the premise.
      hypothesis_field: name of the field that holds the hypothesis.
      label_field: name of the field that holds the label.
      name: of the Task.

    Returns:
      The name of the Task, which is registered anew.

    Raises:
      ValueError: bad `labels`, a file that is missing or empty, a bad line (path and line number),
        or a split without examples.
    """
    labels = _checked_labels(labels)
    fields = {"premise": premise_field, "hypothesis": hypothesis_field}

    def read(path: str) -> Iterable[Pair]:
        for where, row in tasks.numbered_records(path, fields):
            if label_field not in row:
                raise ValueError(f"{where}: {unknown_name('field', label_field, row)}")
            yield _nli_pair(row, row[label_field], labels, where)

    pairs = tasks.from_files(read, _stripped, train_file, validation_file, validation_fraction)
    return register(name, pairs, vocabulary, labels)


def anli(
    vocabulary: seqio.Vocabulary,
    tfds_name: str | Sequence[str] = "anli/r3",
    data_dir: str | None = None,
    labels: Sequence[str] = NLI_LABELS,
    name: str = "anli",
) -> str:
    """Adversarial NLI (Nie et al. 2020) through TFDS.

    Args:
      vocabulary: of premises and hypotheses.
      tfds_name: a data set of {context, hypothesis, label}; several are joined, e.g. the rounds
        ("anli/r1", "anli/r2", "anli/r3").
      data_dir: of TFDS.
      labels: what the classes 0, 1, ... are.
      name: of the Task.

    Returns:
      The name of the Task, which is registered anew. The data are read when they are first used.

    Raises:
      ValueError: bad `labels`; on first use, a data set of other features or with other classes.
    """
    import tensorflow_datasets as tfds

    labels = _checked_labels(labels)
    sources = (tfds_name,) if isinstance(tfds_name, str) else tuple(tfds_name)

    def read(source: str, split: str) -> Iterable[Pair]:
        examples = tfds.as_numpy(tfds.load(source, split=split, data_dir=data_dir))
        for index, example in enumerate(examples):
            where = f"{source} {split} example {index}"
            for feature in ("context", "hypothesis", "label"):
                if feature not in example:
                    raise ValueError(f"{where}: {unknown_name('feature', feature, example)}")
            row = {"premise": example["context"], "hypothesis": example["hypothesis"]}
            row = {field: text.decode() for field, text in row.items()}
            yield _nli_pair(row, int(example["label"]), labels, where)

    @functools.cache
    def pairs(split: str) -> Sequence[Pair]:
        return [pair for source in sources for pair in read(source, split)]

    return register(name, pairs, vocabulary, labels)


def preference_jsonl(
    vocabulary: seqio.Vocabulary,
    train_file: str,
    validation_file: str | None = None,
    validation_fraction: float = 0.1,
    post_field: str = "post",
    better_field: str = "better",
    worse_field: str = "worse",
    name: str = "preference_jsonl",
) -> str:
    """Any JSONL file with a post and two summaries of it on each line, one preferred.

    Args:
      vocabulary: of posts and summaries.
      train_file: path.
      validation_file: path; None holds out a share of `train_file`, chosen by the post's hash, so
        that no post is in both splits.
      validation_fraction: that share; range (0, 1).
      post_field: name of the field that holds the post.
      better_field: name of the field that holds the preferred summary.
      worse_field: name of the field that holds the other summary.
      name: of the Task.

    Returns:
      The name of the Task, which is registered anew.

    Raises:
      ValueError: a file that is missing or empty, a bad line (path and line number), or a split
        without examples.
    """
    fields = {"post": post_field, "better": better_field, "worse": worse_field}

    def read(path: str) -> Iterable[Pair]:
        for where, row in tasks.numbered_records(path, fields):
            if row["better"].strip() == row["worse"].strip():
                raise ValueError(
                    f"{where}: {better_field!r} and {worse_field!r} are the same: "
                    f"{row['better'][:60]!r}"
                )
            yield _preference_pair(row, where)

    pairs = tasks.from_files(read, _stripped, train_file, validation_file, validation_fraction)
    return register(name, pairs, vocabulary)


def briefs_nli(
    vocabulary: seqio.Vocabulary, train_size: int = 20_000, validation_size: int = 1_024,
    seed: int = 0, hard: bool = True, name: str = "briefs_nli",
) -> str:  # fmt: skip
    """Hypotheses on the self-made corpus; see `clp_jax.data.briefs.pairs.nli`.

    Returns:
      The name of the Task, which is registered anew.

    Raises:
      ValueError: a size below 1.
    """

    def pair(row: Record, where: str) -> Pair:
        return _nli_pair(row, row["label"], briefs.LABELS, where)

    generate = functools.partial(briefs.nli, seed=seed, hard=hard)
    pairs = _generated(name, generate, train_size, validation_size, pair)
    return register(name, pairs, vocabulary, briefs.LABELS)


def briefs_preferences(
    vocabulary: seqio.Vocabulary, train_size: int = 20_000, validation_size: int = 1_024,
    seed: int = 0, hard: bool = True, name: str = "briefs_preferences",
) -> str:  # fmt: skip
    """Preferences on the self-made corpus; see `clp_jax.data.briefs.pairs.preferences`.

    Returns:
      The name of the Task, which is registered anew.

    Raises:
      ValueError: a size below 1.
    """
    generate = functools.partial(briefs.preferences, seed=seed, hard=hard)
    pairs = _generated(name, generate, train_size, validation_size, _preference_pair)
    return register(name, pairs, vocabulary)


def _generated(
    name: str,
    generate: Callable[[str, int], Sequence[Record]],
    train_size: int,
    validation_size: int,
    pair: Callable[[Record, str], Pair],
) -> Callable[[str], Sequence[Pair]]:
    """Split -> its generated examples, made when they are first asked for."""
    sizes = {"train": train_size, "validation": validation_size}
    for split, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} has no {split} examples with {split}_size={size}")

    @functools.cache
    def pairs(split: str) -> Sequence[Pair]:
        rows = generate(split, sizes[split])
        return [pair(row, f"{name} {split} example {i}") for i, row in enumerate(rows)]

    return pairs


def _nli_pair(row: Record, label: Any, labels: Sequence[str], where: str) -> Pair:
    """`row` as an example; `label` is one of `labels` or an index into them."""
    if isinstance(label, str):
        if label not in labels:
            raise ValueError(f"{where}: {unknown_name('label', label, labels)}")
        label = labels.index(label)
    # JSON's true is an int of Python.
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(labels):
        raise ValueError(
            f"{where}: the label is {label!r}, expected one of {', '.join(labels)} or an index "
            f"from 0 to {len(labels) - 1}"
        )
    record = {**row, "label": labels[label]}
    return Pair(row["premise"], (row["hypothesis"],), label, record, where)


def _preference_pair(row: Record, where: str) -> Pair:
    return Pair(row["post"], (row["better"], row["worse"]), 0, row, where)


def _stripped(pair: Pair) -> str:
    """Texts that differ in the white space around them only are the same document."""
    return pair.document.strip()


def _checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str) or len(labels) < 2:
        raise ValueError(f"labels must be two or more names, got {labels!r}")
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"labels has {label!r} twice: {tuple(labels)}")
    return tuple(labels)
