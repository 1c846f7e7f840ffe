"""Contributions: what one event adds to the aggregates, and how rows store them.

A stored contribution is a JSON array whose first item names its kind; the rest are its fields in
order. Rows outlive releases, so neither names nor order may change within one checkpoint format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

FigureDeltas: TypeAlias = tuple[tuple[int, float], ...]
"""Sparse changes of a figures vector: (index, delta); indices are those of aggregates.FIGURES."""


class FeedbackCounted(NamedTuple):
    """One feedback or vote, counted once and for all."""

    version: str
    kind: str


class ScoreCounted(NamedTuple):
    """One satisfaction score that the judge's counters take."""

    version: str
    arm: str
    rollout: str
    segment: str
    score: float
    at_s: float
    tenant: str = ""
    """Hashed, as the API key is (`shared.voters`); empty in what was stored before format 5."""
    api_key: str = ""


class VoteCounted(NamedTuple):
    """One vote between two versions."""

    chosen: str
    rejected: str
    result: str


class OutcomeCounted(NamedTuple):
    """What became of one record: accepted, edited, duplicate or another."""

    outcome: str


class AudienceCounted(NamedTuple):
    """One request, or one feedback on it, by what is known of whom it is from."""

    what: str
    """`requests` or `feedback`."""
    category: str
    locale: str
    segment: str


class FiguresChanged(NamedTuple):
    """A change of a version's quality figures."""

    version: str
    start_s: float
    """Start of the interaction, which decides the quality windows."""
    minute: int
    """Minute of arrival, which decides the live windows."""
    deltas: FigureDeltas


Contribution: TypeAlias = (
    FeedbackCounted | ScoreCounted | VoteCounted | OutcomeCounted | AudienceCounted | FiguresChanged
)


class Mark(NamedTuple):
    """Marks an event whose effect the row holds, with what the event contributed."""

    topic: str
    offset: int
    contributions: Sequence[Contribution]


SCORE_FIELDS_BEFORE_5 = 6
_NAMES: dict[type[Contribution], str] = {
    FeedbackCounted: "feedback",
    ScoreCounted: "score",
    VoteCounted: "vote",
    OutcomeCounted: "outcome",
    AudienceCounted: "audience",
    FiguresChanged: "figures",
}


def encode_mark(mark: Mark) -> tuple[object, ...]:
    """The mark as orjson can write it; orjson refuses named tuples."""
    topic, offset, contributions = mark
    stored: list[tuple[object, ...]] = [(_NAMES[type(item)], *item) for item in contributions]
    for place, item in enumerate(contributions):
        # Fields that format 5 added to a score only where they were known.
        if type(item) is ScoreCounted and not item.tenant:
            stored[place] = stored[place][: 1 + SCORE_FIELDS_BEFORE_5]
    return (topic, offset, stored)


def decode_mark(stored: Sequence[Any]) -> Mark:
    """The mark that `encode_mark` wrote, from its JSON.

    Raises:
        ValueError: a contribution of an unknown kind.
    """
    topic, offset, contributions = stored
    return Mark(topic, offset, [decode_contribution(item) for item in contributions])


def decode_contribution(stored: Sequence[Any]) -> Contribution:
    """One contribution, from its JSON.

    Raises:
        ValueError: its kind is unknown.
    """
    match stored:
        case ["figures", str(version), start_s, int(minute), deltas]:
            return FiguresChanged(version, start_s, minute, decode_deltas(deltas))
        case ["feedback", str(version), str(kind)]:
            return FeedbackCounted(version, kind)
        case ["score", str(version), str(arm), str(rollout), str(segment), score, at_s]:
            return ScoreCounted(version, arm, rollout, segment, score, at_s)
        case ["score", str(version), str(arm), str(rollout), str(segment), score, at_s,
              str(tenant), str(key)]:  # fmt: skip
            return ScoreCounted(version, arm, rollout, segment, score, at_s, tenant, key)
        case ["vote", str(chosen), str(rejected), str(result)]:
            return VoteCounted(chosen, rejected, result)
        case ["outcome", str(outcome)]:
            return OutcomeCounted(outcome)
        case ["audience", str(what), str(category), str(locale), str(segment)]:
            return AudienceCounted(what, category, locale, segment)
        case _:
            raise ValueError(f"unknown contribution {stored!r}")


def decode_deltas(stored: Sequence[Sequence[float]]) -> FigureDeltas:
    """Figure deltas, from their JSON."""
    return tuple((int(index), delta) for index, delta in stored)
