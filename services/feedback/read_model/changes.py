"""Changes of the read model: what one record of the log adds to it. Pure.

The last record of a name is the one that holds, so folding a record twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from shared.contracts.events.base import Context
from shared.contracts.events.erasures import TraceErased
from shared.contracts.events.feedback import (
    BAD_SCORE,
    GOOD_SCORE,
    RATINGS,
    FeedbackSubmitted,
    FeedbackType,
    FeedbackWithdrawn,
)
from shared.contracts.events.preferences import (
    PreferencePair,
    PreferenceRetracted,
    UnpairedExample,
)
from shared.contracts.events.quality import ExampleJoined
from shared.contracts.events.signals import SignalObserved
from shared.contracts.events.votes import VoteCast
from shared.kafka.envelope import decode, models_by_type
from shared.kafka.log import Record

MODELS = models_by_type(
    FeedbackSubmitted,
    FeedbackWithdrawn,
    SignalObserved,
    VoteCast,
    TraceErased,
    ExampleJoined,
    PreferencePair,
    UnpairedExample,
    PreferenceRetracted,
)

VOTE = "vote"
Source = Literal["example", "product"]
"""A joined row of examples.v1, or a pair or unpaired example of preferences.v1."""

TAG_MARK = "\x1f"
"""Begins each tag; names and queries cannot hold it."""

_TYPE_KINDS = {
    FeedbackType.text_correction: "correction",
    FeedbackType.demonstration: "demonstration",
    FeedbackType.comment: "comment",
}


@dataclass(frozen=True, slots=True)
class RevisionReceived:
    """A revision of feedback or of a signal, or a vote."""

    tenant: str
    feedback_id: str
    trace_id: str
    revision: int
    received_us: int
    type: str
    withdrawn: bool
    body: str


@dataclass(frozen=True, slots=True)
class DocumentStored:
    """A joined example, a pair or an unpaired example, with the kinds it is listed under."""

    tenant: str
    source: Source
    name: str
    at_us: int
    kinds: tuple[str, ...]
    versions: tuple[str, ...]
    category: str
    segment: str
    locale: str
    tags: str
    """Its labels, each as TAG_MARK, name, `=` and value, with TAG_MARK at the end."""
    causes: tuple[str, ...]
    text_bytes: int
    """Of a joined row's messages and answer, which its feedback shares MAX_TRACE_BYTES with."""
    body: str


@dataclass(frozen=True, slots=True)
class ProductRetracted:
    """A pair or unpaired example that no longer stands."""

    tenant: str
    name: str
    reason: str
    at_us: int


@dataclass(frozen=True, slots=True)
class PersonForgotten:
    """What a person said of one trace goes; all that was said of it where the person asked."""

    tenant: str
    trace_id: str
    subjects: tuple[str, ...]
    whole: bool
    until_us: int
    """What was received later stays."""


Change: TypeAlias = RevisionReceived | DocumentStored | ProductRetracted | PersonForgotten


def change_of(record: Record) -> Change:
    """What a record changes.

    Raises:
        UnreadableRecord: its value is not what its headers promise.

    """
    event = decode(record.headers, record.value, MODELS)
    match event:
        case FeedbackSubmitted() | FeedbackWithdrawn() | SignalObserved():
            return _revision(event)
        case VoteCast():
            return _vote(event)
        case TraceErased():
            return PersonForgotten(
                event.tenant,
                event.trace_id,
                event.subjects,
                event.whole,
                microseconds(event.erased_at),
            )
        case ExampleJoined():
            return _joined(event)
        case PreferencePair() | UnpairedExample():
            return _product(event)
        case PreferenceRetracted():
            at_us = microseconds(event.created_at)
            return ProductRetracted(event.tenant, event.pair_id, event.reason, at_us)
        case _:
            raise AssertionError(type(event))


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970, exact."""
    whole = int(moment.timestamp())
    return whole * 1_000_000 + moment.microsecond if whole >= 0 else 0


def _revision(
    event: FeedbackSubmitted | FeedbackWithdrawn | SignalObserved,
) -> RevisionReceived:
    return RevisionReceived(
        tenant=event.tenant,
        feedback_id=event.feedback_id,
        trace_id=event.trace_id,
        revision=event.revision,
        received_us=microseconds(event.submitted_at),
        type=str(event.type),
        withdrawn=isinstance(event, FeedbackWithdrawn),
        body=event.model_dump_json(exclude_defaults=True),
    )


def _vote(event: VoteCast) -> RevisionReceived:
    sides = {"left": {"completion"}, "right": {"completion"}}
    return RevisionReceived(
        tenant=event.tenant,
        feedback_id=event.comparison_id,
        trace_id=event.comparison_id,
        revision=event.revision,
        received_us=microseconds(event.submitted_at),
        type=VOTE,
        withdrawn=False,
        body=event.model_dump_json(exclude={"messages": True, **sides}),
    )


def _joined(event: ExampleJoined) -> DocumentStored:
    return DocumentStored(
        tenant=event.tenant,
        source="example",
        name=event.trace_id,
        at_us=microseconds(event.started_at),
        kinds=tuple(sorted(_kinds_of(event.feedback))),
        versions=(event.version,),
        **_labels(event.context, *(one.context for one in event.feedback)),
        causes=(),
        text_bytes=sum(len(turn.model_dump_json().encode()) for turn in event.messages)
        + len(event.completion.encode()),
        body=event.model_dump_json(),
    )


def _product(event: PreferencePair | UnpairedExample) -> DocumentStored:
    if isinstance(event, PreferencePair):
        kind, versions = "pair", (event.chosen_version, event.rejected_version)
    else:
        kind, versions = "unpaired", (event.version,)
    return DocumentStored(
        tenant=event.tenant,
        source="product",
        name=event.pair_id,
        at_us=microseconds(event.created_at),
        kinds=(kind,),
        versions=tuple(dict.fromkeys(version for version in versions if version)),
        **_labels(event.context),
        causes=tuple(cause.rpartition(":")[0] for cause in event.causes),
        text_bytes=0,
        body=event.model_dump_json(),
    )


def _labels(*contexts: Context) -> dict[str, str]:
    """What rows are filtered by: the interaction's own, else what feedback said of it."""
    found = {
        name: next((found for one in contexts if (found := getattr(one, name))), "")
        for name in ("category", "segment", "locale")
    }
    labels = {k: v for one in reversed(contexts) for k, v in one.labels.items()}
    tags = [f"{TAG_MARK}{k}={v.replace(TAG_MARK, ' ')}" for k, v in sorted(labels.items())]
    return found | {"tags": "".join(tags) + TAG_MARK if tags else ""}


def _kinds_of(feedback: Iterable[FeedbackSubmitted]) -> set[str]:
    """The kinds that an example is listed under: it is both where people disagree."""
    kinds: set[str] = set()
    for one in feedback:
        kinds.add("any")
        score = one.score if one.type in RATINGS else None
        if score is not None and score >= GOOD_SCORE:
            kinds.add("positive")
        if score is not None and score <= BAD_SCORE:
            kinds.add("negative")
        if one.type in _TYPE_KINDS:
            kinds.add(_TYPE_KINDS[one.type])
    return kinds
