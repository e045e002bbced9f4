"""Makes arrays of posts, entailment and preferences, for a machine that has no tokeniser.

  python -m experiments.tldr_from_scratch.prepare --data=DIR --output=arrays/

DIR holds reddit_tldr_2013/, nli/ and preferences/. Writes arrays.npz (token ids), pieces.txt (the
vocabulary), prompts.json (the text of the validation posts), meta.json and vocabulary.model.

Besides the labelled data there are weak pairs from the posts themselves, as the labelled ones are
short or of news: a post entails its own summary and not that of another post; a summary is better
than the same one cut off.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import random
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import sentencepiece

from clp_jax.data import vocabulary
from clp_jax.policies import prompting
from clp_jax.rewards.heads import TRUE_LABELS
from clp_jax.rewards.saved import INPUTS

NAMES = ("nli", "rouge", "tldr")
REPETITIONS = 5  # of each weight in the prompt, App. A.2

_NLI_FILES = ("snli_dev_test", "sick", "cad_nli", "rte", "factual_consistency")
_ENTAILED = ("entailment", "consistent")
_VALIDATION = 0.05  # of the labelled documents, by hash
_LONGER = 3  # times the length of a summary, of what the reward models are fitted on
_QUOTES = str.maketrans("’‘“”–—…", "''\"\"--.")

Example = tuple[str, tuple[str, ...], int]  # document, summaries, label


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    flags = _parser().parse_args(argv)
    data, output = pathlib.Path(flags.data), pathlib.Path(flags.output)
    try:
        posts = {split: read_posts(data, split, flags.limit) for split in ("train", "validation")}
        tasks = {
            "sft": {split: _summaries(rows) for split, rows in posts.items()},
            "nli": _merged(_nli(data, flags.limit), {k: _matches(v) for k, v in posts.items()}),
            "preference": _merged(
                _preferences(data, flags.limit), {k: _cut_off(v) for k, v in posts.items()}
            ),
        }
        model = vocabulary.train(_texts(tasks), flags.vocab_size, whole_words=("0", "1"))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    output.mkdir(parents=True, exist_ok=True)
    (output / "vocabulary.model").write_bytes(model)
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    (output / "pieces.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    arrays, counts = tokenised(tasks, processor, flags.document_length, flags.summary_length)
    arrays["weight_prefixes"] = weight_prefixes(processor)
    fields: Any = arrays
    np.savez_compressed(output / "arrays.npz", **fields)
    _write_prompts(output, posts["validation"], processor, flags.summary_length)
    meta = _meta(flags, processor, counts)
    (output / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    size = (output / "arrays.npz").stat().st_size
    print(f"wrote {output}: {json.dumps(counts)}; arrays.npz has {size / 1e6:.1f} MB")


def plain(text: str) -> str:
    """Text in ASCII on one line, so that few pieces of the vocabulary are spent on rare letters."""
    ascii_text = unicodedata.normalize("NFKD", text.translate(_QUOTES)).encode("ascii", "ignore")
    return " ".join(ascii_text.decode().split())


def read_posts(data: pathlib.Path, split: str, limit: int | None) -> list[tuple[str, str]]:
    """(post, summary) of a split, at most `limit`, without those that are left empty."""
    rows = _records(data / "reddit_tldr_2013" / f"{split}.jsonl")
    pairs = ((plain(row["document"]), plain(row["summary"])) for row in rows)
    return [pair for pair in pairs if all(pair)][:limit]


def tokenised(
    tasks: dict[str, dict[str, list[Example]]],
    processor: sentencepiece.SentencePieceProcessor,
    document_length: int,
    summary_length: int,
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The arrays of all tasks, in the format of `clp_jax.rewards.model`: no EOS, padded with 0.

    Args:
      tasks: task -> split -> examples.
      processor: the vocabulary.
      document_length: E; longer documents lose their end.
      summary_length: L of sft, a third of L of the other tasks; examples with a longer summary
        are left out.

    Returns:
      ({"documents": [D, E] uint16, each once, and for each task and split
      "TASK_SPLIT_index" [N] int32, "..._summaries" [N, S, L] uint16, "..._labels" [N] int32},
      counts).
    """
    index: dict[str, int] = {}
    arrays: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for task, splits in tasks.items():
        # Judged summaries of news are longer than what the policy may write.
        length = summary_length * (1 if task == "sft" else _LONGER)
        for split, examples in splits.items():
            texts = sorted({text for _, summaries, _ in examples for text in summaries})
            ids = dict(zip(texts, processor.encode(texts), strict=True))
            kept = [e for e in examples if all(len(ids[s]) <= length for s in e[1])]
            for document, _, _ in kept:
                index.setdefault(document, len(index))
            rows = [_padded([ids[s] for s in e[1]], length) for e in kept]
            name = f"{task}_{split}"
            arrays[f"{name}_index"] = np.array([index[e[0]] for e in kept], np.int32)
            arrays[f"{name}_summaries"] = np.array(rows, np.uint16)
            arrays[f"{name}_labels"] = np.array([e[2] for e in kept], np.int32)
            counts |= {name: len(kept), f"{name}_too_long": len(examples) - len(kept)}
    documents = processor.encode(list(index))
    counts |= {"documents": len(documents)}
    counts |= {"documents_cut": sum(len(row) > document_length for row in documents)}
    arrays["documents"] = _padded([row[:document_length] for row in documents], document_length)
    return arrays, counts


def weight_prefixes(processor: sentencepiece.SentencePieceProcessor) -> np.ndarray:
    """The pieces of prompts' prefixes (App. A.2), for each objective and weight 0, .01, ..., 1.

    The parts of a prefix side by side say what `prompting.weight_prefix` says.

    Returns:
      [m, 101, W] uint16, padded with 0.
    """
    ends = ["; "] * (len(NAMES) - 1) + [". "]
    parts = [
        processor.encode(prompting.weight_prefix([name], [i / 100], REPETITIONS)[:-2] + end)
        for name, end in zip(NAMES, ends, strict=True)
        for i in range(101)
    ]
    return _padded(parts, max(map(len, parts))).reshape(len(NAMES), 101, -1)


def _padded(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    out = np.zeros((len(rows), length), np.uint16)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _summaries(posts: list[tuple[str, str]]) -> list[Example]:
    return [(post, (summary,), 0) for post, summary in posts]


def _matches(posts: list[tuple[str, str]]) -> list[Example]:
    """Weak entailment: of each post its own summary (label 0) and the next post's (1)."""
    others = [*posts[1:], *posts[:1]]
    examples: list[Example] = []
    for (post, summary), (_, other) in zip(posts, others, strict=True):
        examples += [(post, (summary,), 0), (post, (other,), 1)]
    return examples


def _cut_off(posts: list[tuple[str, str]]) -> list[Example]:
    """Weak preferences: a summary over its first words, 30 to 70 % of them."""
    draw = random.Random(0)
    examples: list[Example] = []
    for post, summary in posts:
        words = summary.split()
        worse = " ".join(words[: max(1, int(len(words) * draw.uniform(0.3, 0.7)))])
        if worse != summary:
            examples.append((post, (summary, worse), 0))
    return examples


def _nli(data: pathlib.Path, limit: int | None) -> Iterator[Example]:
    """Labelled (premise, hypothesis); label 0 is entailment, 1 anything else."""
    for name in _NLI_FILES:
        for row in _records(data / "nli" / f"{name}.jsonl")[:limit]:
            label = int(row["label"] not in _ENTAILED)
            yield plain(row["premise"]), (plain(row["hypothesis"]),), label


def _preferences(data: pathlib.Path, limit: int | None) -> Iterator[Example]:
    """Judged (post, better, worse)."""
    folder = data / "preferences"
    documents = _records(folder / "derived_pairs_docs.jsonl")
    posts = {(row["dataset"], row["post_id"]): row["post"] for row in documents}
    derived = _records(folder / "derived_pairs.jsonl")[:limit]
    rows = [{**row, "post": posts[row["dataset"], row["post_id"]]} for row in derived]
    for row in rows + _records(folder / "news_pairwise_human.jsonl")[:limit]:
        yield plain(row["post"]), (plain(row["better"]), plain(row["worse"])), 0


def _merged(
    labelled: Iterator[Example], weak: dict[str, list[Example]]
) -> dict[str, list[Example]]:
    """Both by split; the hash of a labelled document says which it is in."""
    merged = collections.defaultdict(list, {split: list(rows) for split, rows in weak.items()})
    for example in labelled:
        if example[0] and all(example[1]):
            digest = int(hashlib.md5(example[0].encode()).hexdigest(), 16)
            merged["validation" if digest % 1000 < 1000 * _VALIDATION else "train"].append(example)
    return dict(merged)


def _texts(tasks: dict[str, dict[str, list[Example]]]) -> list[str]:
    """What the vocabulary is trained on: a quarter of the training posts, and all other text."""
    own = tasks["sft"]["train"]
    posts = {example[0] for example in own}
    other = [e for task in ("nli", "preference") for e in tasks[task]["train"] if e[0] not in posts]
    texts = [text for e in own[::4] for text in (e[0], *e[1])]
    texts += sorted({text for e in other for text in (e[0], *e[1])})
    return [*texts, prompting.weight_prefix(NAMES, [0.37] * len(NAMES))]


def _write_prompts(output, posts, processor, summary_length) -> None:
    """The text of the validation posts, in the order of sft_validation."""
    kept = [(p, s) for p, s in posts if len(processor.encode(s)) <= summary_length]
    columns = {"documents": [p for p, _ in kept], "references": [s for _, s in kept]}
    (output / "prompts.json").write_text(json.dumps(columns))


def _meta(flags, processor, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "names": NAMES,
        "vocab_size": processor.get_piece_size(),
        "document_length": flags.document_length,
        "summary_length": flags.summary_length,
        "inputs": {kind: [processor.encode(text) for text in INPUTS[kind]] for kind in INPUTS},
        "labels": list(TRUE_LABELS),
        "label_tokens": [processor.piece_to_id(f"▁{text}") for text in TRUE_LABELS.values()],
        "counts": counts,
    }


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tldr_from_scratch.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--output", required=True, metavar="DIR", help="made if missing")
    parser.add_argument("--vocab_size", type=int, default=8000, help="pieces; default: %(default)s")
    parser.add_argument(
        "--document_length", type=int, default=383, help="tokens kept; default: %(default)s"
    )
    parser.add_argument(
        "--summary_length", type=int, default=47, help="tokens at most; default: %(default)s"
    )
    parser.add_argument("--limit", type=int, help="lines read of each file; default: all")
    return parser


if __name__ == "__main__":
    main()
