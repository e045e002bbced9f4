"""What text may hold, and what vocabularies have to be."""

import re
from collections.abc import Mapping
from typing import Any


def check_text(row: Mapping[str, Any], where: str) -> None:
    """Raises ValueError, with `where`, if a string has half of a surrogate pair: no text has."""
    for field, value in row.items():
        if isinstance(value, str) and (found := re.search("[\ud800-\udfff]", value)):
            raise ValueError(
                f"{where}: field {field!r} has the lone surrogate {found[0]!r} at character "
                f"{found.start()}, which no encoding of text holds; write the character whole"
            )


_IDS = {"pad": 0, "eos": 1, "unk": 2}


def check_vocabulary(vocabulary: Any, setting: str) -> None:
    """Raises ValueError unless a SentencePiece vocabulary can be read and has T5's special ids.

    Args:
      vocabulary: SeqIO's; one of another kind passes.
      setting: what names its file, for the message.
    """
    file = getattr(vocabulary, "sentencepiece_model_file", None)
    if file is None:
        return
    hint = "valid is a SentencePiece model with T5's ids, such as clp_jax.data.vocabulary trains"
    try:
        pieces = vocabulary.tokenizer
    except Exception as error:  # of TensorFlow's files, protobuf or SentencePiece
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{setting}={file!r} cannot be read ({reason}); {hint}") from error
    ids = {"pad": pieces.pad_id(), "eos": pieces.eos_id(), "unk": pieces.unk_id()}
    if wrong := [f"{name} = {ids[name]}, not {i}" for name, i in _IDS.items() if ids[name] != i]:
        raise ValueError(f"{setting}={file!r} has {', '.join(wrong)}; {hint}: pad 0, eos 1, unk 2")
