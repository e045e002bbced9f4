"""Briefs in words: the text of documents and summaries, and how it is read back."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from clp_jax.data.briefs.world import AGENTS, BYSTANDERS, HEDGES, OBJECTS, PASTIMES, SLOTS, VERBS


@dataclass(frozen=True)
class Core:
    """Who did what. The verb is in the present tense."""

    agent: str
    verb: str
    object: str


@dataclass(frozen=True)
class Statement:
    """A detail as the document states it: a value phrase behind a hedge."""

    value: str
    hedge: str


@dataclass(frozen=True)
class Facts:
    """What a document says of its event: the core fact, and slot name -> statement."""

    core: Core
    statements: Mapping[str, Statement]


@dataclass(frozen=True)
class Claims:
    """What a summary says: the core fact, and slot name -> phrase of a value or a hypernym."""

    core: Core
    details: Mapping[str, str]


def summary_text(claims: Claims) -> str:
    """One sentence, with the details in the order of `SLOTS`."""
    core = claims.core
    details = [claims.details[slot.name] for slot in SLOTS if slot.name in claims.details]
    return " ".join([f"The {core.agent} {VERBS[core.verb]} a {core.object}", *details]) + "."


def core_sentence(core: Core) -> str:
    """The sentence of a document that tells the core fact."""
    return f"The {core.agent} {core.verb} a {core.object}."


def detail_sentence(statements: Iterable[Statement]) -> str:
    """The sentence of a document that states one or two details."""
    first, *rest = statements
    second = "".join(f" and {statement.hedge} {statement.value}" for statement in rest)
    return f"It {first.hedge} happens {first.value}{second}."


def distractor_sentence(bystander: str, pastime: str, phrase: str) -> str:
    """A sentence about something else."""
    return f"A {bystander} {pastime} {phrase}."


def _one_of(words: Iterable[str]) -> str:
    return f"({'|'.join(words)})"


_PRESENT = {past: present for present, past in VERBS.items()}
_VALUES = [value for slot in SLOTS for value in slot.values]
_SLOT_NAMES = {value: slot.name for slot in SLOTS for value in slot.values}

_CORE = re.compile(rf"The {_one_of(AGENTS)} {_one_of(VERBS)} a {_one_of(OBJECTS)}\.")
_DETAILS = re.compile(
    rf"It {_one_of(HEDGES)} happens {_one_of(_VALUES)}"
    rf"(?: and {_one_of(HEDGES)} {_one_of(_VALUES)})?\."
)
_DISTRACTOR = re.compile(rf"A {_one_of(BYSTANDERS)} {_one_of(PASTIMES)} {_one_of(_VALUES)}\.")
_SUMMARY = re.compile(
    rf"The {_one_of(AGENTS)} {_one_of(_PRESENT)} a {_one_of(OBJECTS)}"
    + "".join(f"(?: {_one_of(slot.phrases)})?" for slot in SLOTS)
    + r"\."
)


@lru_cache(maxsize=4096)
def parse_document(document: str) -> Facts:
    """What a document says of its event.

    Args:
      document: the text of a document of briefs, with no prefix.

    Returns:
      The core fact and the statements, in the order of `SLOTS`.

    Raises:
      ValueError: the text is not a document of briefs.
    """
    cores: list[Core] = []
    statements: dict[str, Statement] = {}
    for sentence in re.findall(r"[^.]+\.?", document):
        sentence = sentence.strip()
        if match := _CORE.fullmatch(sentence):
            cores.append(Core(*match.groups()))
        elif match := _DETAILS.fullmatch(sentence):
            hedge, value, *rest = match.groups()
            statements[_SLOT_NAMES[value]] = Statement(value, hedge)
            if rest[0]:
                statements[_SLOT_NAMES[rest[1]]] = Statement(rest[1], rest[0])
        elif not _DISTRACTOR.fullmatch(sentence):
            raise ValueError(f"not a sentence of a briefs document: {sentence!r} in {document!r}")
    if len(cores) != 1:
        raise ValueError(f"a briefs document has one core fact, found {len(cores)}: {document!r}")
    in_order = {slot.name: statements[slot.name] for slot in SLOTS if slot.name in statements}
    return Facts(cores[0], in_order)


@lru_cache(maxsize=4096)
def parse_summary(summary: str) -> Claims | None:
    """What a summary claims.

    Args:
      summary: any text, such as a completion.

    Returns:
      The claims, or None if the text is not exactly one sentence with a core fact and details in
      the order of `SLOTS`, at most one of each slot. White space around it is ignored.
    """
    match = _SUMMARY.fullmatch(summary.strip())
    if match is None:
        return None
    agent, verb, object_, *phrases = match.groups()
    details = {slot.name: phrase for slot, phrase in zip(SLOTS, phrases, strict=True) if phrase}
    return Claims(Core(agent, _PRESENT[verb], object_), details)
