#!/usr/bin/env bash
# SeqIO 0.0.20 with tensorflow-text 2.21.1: the SentencePiece model is not loaded once for a vocabulary. Each
# access of SentencePieceVocabulary.tf_tokenizer makes a tokenizer, inside the graph of the data set that is
# built, so that every text feature loads the model anew whenever the Task is read.
#
# A good engineer would guess that a vocabulary, which caches its model in Python, is loaded once for a
# Task. With a model that has no normalisation rules each load prints a line from C++, which neither Python's
# logging nor sentencepiece.set_min_log_level nor TF_CPP_MIN_LOG_LEVEL silences, as tensorflow-text has a
# SentencePiece of its own; here these lines are counted.
#
# Seen: of a Task with two text features, 2 loads when it is read, and 2 more when it is read again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet seqio==0.0.20 tensorflow-text==2.21.1 tensorflow==2.21.0 \
  sentencepiece==0.2.3 importlib_resources==7.1.0
cat >"$folder/loads.py" <<'PYTHON'
import os
import sys
import tempfile

import sentencepiece
import seqio
import tensorflow as tf

folder = sys.argv[1]
text = os.path.join(folder, "text.txt")
with open(text, "w") as file:
    file.writelines(f"a house number {i} stands in a street\n" for i in range(200))
sentencepiece.set_min_log_level(2)
sentencepiece.SentencePieceTrainer.train(
    input=text, model_prefix=os.path.join(folder, "m"), vocab_size=40,
    normalization_rule_name="identity",
)
vocabulary = seqio.SentencePieceVocabulary(os.path.join(folder, "m.model"), extra_ids=0)


def dataset(split, shuffle_files=False, seed=None):
    rows = [f"house number {i}" for i in range(8)]
    return tf.data.Dataset.from_tensor_slices({"inputs": rows, "targets": rows})


seqio.TaskRegistry.add(
    "houses",
    source=seqio.FunctionDataSource(dataset, splits=["train"]),
    preprocessors=[seqio.preprocessors.tokenize],
    output_features={key: seqio.Feature(vocabulary) for key in ("inputs", "targets")},
)


def loads(function):
    """How many lines of SentencePiece `function` leaves on the file descriptor of stderr."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        function()
        os.dup2(kept, 2)
        held.seek(0)
        return held.read().count(b"precompiled_charsmap is empty")


def read():
    task = seqio.get_mixture_or_task("houses")
    assert len(list(task.get_dataset(None, split="train", shuffle=False))) == 8


found = {
    "a data set of two features": loads(read),
    "the same, read again": loads(read),
}
print(found)
assert list(found.values()) == [2, 2], found
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/loads.py" "$folder" 2>/dev/null
echo "as described: seqio 0.0.20, tensorflow-text 2.21.1, sentencepiece 0.2.3"
