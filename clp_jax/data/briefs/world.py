"""The world of briefs: what can happen, and how likely it is.

An event has a core fact ("the mayor bought a boat") and may have one detail in each slot. A
document states some of the details, each behind a hedge: the statement is true with the hedge's
probability, else the truth is one of the slot's other values, each equally likely. A summary
states details without hedges, each by its value ("in Paris") or by a hypernym ("in France").

Every slot has its own words: no word occurs in two slots, or in a slot and a core fact. The
longest common subsequence of two summaries is then a sum over slots, on which the oracle relies.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# Hedge -> probability that the statement behind it is true.
HEDGES: Mapping[str, float] = {
    "certainly": 0.97,
    "reportedly": 0.85,
    "probably": 0.7,
    "perhaps": 0.55,
    "supposedly": 0.4,
}

# Probability that an event has a detail in a slot of which its document says nothing.
UNREPORTED = 0.05

# Probability that a reference summary states a detail by its hypernym.
HYPERNYM_RATE = 0.15

# Number of details that a document states -> probability.
STATEMENT_COUNTS: Mapping[int, float] = {3: 0.15, 4: 0.35, 5: 0.5}

# Documents of few details have more distractors, so that all are of about the same length.
STATEMENTS_AND_DISTRACTORS = 6

# Present tense (documents) -> past tense (summaries).
VERBS: Mapping[str, str] = {
    "buys": "bought",
    "sells": "sold",
    "builds": "built",
    "paints": "painted",
    "repairs": "repaired",
    "rents": "rented",
    "restores": "restored",
    "designs": "designed",
    "opens": "opened",
    "closes": "closed",
    "moves": "moved",
    "insures": "insured",
    "inspects": "inspected",
    "cleans": "cleaned",
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


AGENTS = _words(
    "mayor farmer singer baker lawyer chef sailor judge banker poet nurse tailor miner teacher "
    "doctor writer dancer barber butcher printer potter weaver pilot captain hunter miller"
)

OBJECTS = _words(
    "boat barn bridge house tower chapel museum cottage piano statue garden wagon mill theatre "
    "castle stable bakery clock fountain carriage library gallery tavern workshop school"
)

# Who does what in the distractor sentences.
BYSTANDERS = _words("goat horse cat dog donkey rabbit goose parrot pigeon cow")
PASTIMES = _words("sleeps waits rests hides plays sings runs digs")


@dataclass(frozen=True)
class Slot:
    """One kind of detail.

    Attributes:
      name: what the detail tells.
      groups: hypernym phrase -> the value phrases that it covers.
      salience: weight of the slot in the quality reward.
      inclusion: probability that a reference summary states the detail. range: [0, 1]
    """

    name: str
    groups: Mapping[str, tuple[str, ...]]
    salience: float
    inclusion: float

    @property
    def values(self) -> tuple[str, ...]:
        """All value phrases."""
        return tuple(value for group in self.groups.values() for value in group)

    @property
    def phrases(self) -> tuple[str, ...]:
        """All phrases: values, then hypernyms."""
        return self.values + tuple(self.groups)

    def hypernym(self, value: str) -> str:
        """The hypernym phrase that covers `value`."""
        return next(hypernym for hypernym, group in self.groups.items() if value in group)

    def covered(self, phrase: str) -> tuple[str, ...]:
        """The values of which a claim of `phrase` is true."""
        return self.groups.get(phrase, (phrase,))


def _groups(preposition: str, **groups: str) -> dict[str, tuple[str, ...]]:
    def phrase(words: str) -> str:
        return f"{preposition} {words.replace('_', ' ')}"

    return {phrase(name): tuple(map(phrase, _words(group))) for name, group in groups.items()}


# In the order in which a summary states them. References leave out the salient details more often
# than the others, so that ROUGE and quality add details in different orders.
SLOTS: tuple[Slot, ...] = (
    Slot(
        "companion",
        _groups(
            "with",
            relatives="cousins brothers sisters",
            colleagues="clerks managers partners",
            youngsters="pupils students scouts",
        ),
        salience=3.0,
        inclusion=0.8,
    ),
    Slot(
        "amount",
        _groups(
            "for",
            small_change="forty_pennies sixty_pennies seventy_pennies ninety_pennies",
            large_sums="forty_pounds sixty_pounds seventy_pounds ninety_pounds",
        ),
        salience=2.0,
        inclusion=0.85,
    ),
    Slot(
        "place",
        _groups(
            "in",
            France="Paris Lyon Bordeaux",
            Italy="Rome Milan Venice",
            Germany="Berlin Munich Hamburg",
            Spain="Madrid Seville Malaga",
        ),
        salience=1.0,
        inclusion=0.9,
    ),
    Slot(
        "time",
        _groups(
            "during",
            spring="March April May",
            summer="June July August",
            autumn="September October November",
            winter="December January February",
        ),
        salience=1.0,
        inclusion=0.9,
    ),
    Slot(
        "reason",
        _groups(
            "due to",
            bad_weather="rain floods storms",
            money_worries="debts taxes fines",
            poor_health="fever injury fatigue",
        ),
        salience=3.0,
        inclusion=0.8,
    ),
)
