"""Rows of the one table: what is known of a trace, and how rows travel on the changelog.

A row's bytes are one line of JSON (feedback and marks), a newline, and the interaction's own JSON
as it came from the topic, so that writing a row never encodes an interaction again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NotRequired, TypeAlias, TypedDict

import orjson

from services.aggregator.contributions import (
    FigureDeltas,
    Mark,
    decode_deltas,
    decode_mark,
    encode_mark,
)
from shared.contracts.topics import RATED

SEPARATOR = "\x1f"
"""Between the parts of a key; identifiers cannot contain it (see contracts.events.Identifier)."""

MAX_VALUE_BYTES = 900_000
"""Largest row or output, uncompressed: brokers refuse a record over 1,048,588 bytes with its headers,
and a row's marks of a batch or two come on top."""


NO_FEEDBACK = -1
UNANSWERED = -2
"""No feedback, and the request failed or was cancelled: the row does not keep its texts for long."""


def trace_key(partition: int, tenant: str, trace_id: str) -> bytes:
    """Key of the row that joins a trace's interaction, feedback or vote."""
    return SEPARATOR.join((str(partition), "trace", tenant, trace_id)).encode()


def prompt_row_key(partition: int, prompt_key: str) -> bytes:
    """Key of the row that holds a prompt's rated answers."""
    return SEPARATOR.join((str(partition), "prompt", prompt_key)).encode()


def cap_row_key(partition: int, cap_key: str) -> bytes:
    """Key of the row that holds what one user's feedback counted on one day."""
    return SEPARATOR.join((str(partition), "cap", cap_key)).encode()


def checkpoint_key(partition: int) -> bytes:
    """Key of a partition's checkpoint."""
    return SEPARATOR.join((str(partition), "checkpoint")).encode()


def row_key_of(partition: int, topic: str, body: Mapping[str, Any]) -> bytes | None:
    """Key of the row with texts that an event finds, by its JSON; None where there is no such row."""
    if topic == RATED:
        name = body.get("prompt_key")
        return prompt_row_key(partition, name) if isinstance(name, str) else None
    tenant, trace = body.get("tenant"), body.get("comparison_id") or body.get("trace_id")
    if not isinstance(tenant, str) or not isinstance(trace, str):
        return None
    return trace_key(partition, tenant, trace)


def partition_of(key: bytes) -> int:
    """The partition that a key of the table belongs to."""
    return int(key[: key.index(b"\x1f")])


def kind_of(key: bytes) -> str:
    """`trace`, `prompt`, `cap` or `checkpoint`."""
    return key.split(b"\x1f", 2)[1].decode()


def tenant_of(key: bytes) -> str | None:
    """The tenant of a trace's row; None for a row of another kind."""
    _, kind, rest = key.split(b"\x1f", 2)
    return rest[: rest.index(b"\x1f")].decode() if kind == b"trace" else None


class FirstScore(NamedTuple):
    """What the judge's counters take of a feedback's first submission."""

    score: float
    user_id: str
    received_s: float
    """When the submission reached the log."""


class Revised(NamedTuple):
    """One revision of a feedback, as far as the order of revisions goes."""

    revision: int
    received_s: float
    by_receipt: bool
    body: dict[str, Any] | None


@dataclass(slots=True)
class FeedbackEntry:
    """One feedback's (or vote's) present revision, and what it has caused so far."""

    revision: int
    kind: str
    """Type of its first submission, under which it counts."""
    body: dict[str, Any] | None
    """The event as JSON; None once withdrawn."""
    at_s: float
    """Event time of its first revision, from which the horizon counts."""
    ts_ms: int
    """When its present revision reached the log."""
    seen: bool = True
    """A submission was seen, not only its withdrawal."""
    counted: str = ""
    """Empty while it waits; then `joined` or `unjoined`, once and for all."""
    minute: int = 0
    """The minute whose live figures it is in."""
    figures: FigureDeltas = ()
    """What it adds to the figures now; an edit takes this out again."""
    products: list[str] = field(default_factory=list)
    """Ids of the pairs and examples that stand because of it."""
    rated: str | bool = ""
    """Prompt key under which it stands on the rated topic, empty where it does not; True in rows
    older than the second version of keys."""
    first: FirstScore | None = None
    """Of its first submission, whatever was edited later."""
    received_s: float = 0.0
    """When the service received the present revision; 0 in rows older than this field."""
    by_receipt: bool = False
    """The present revision is ordered by its receipt, not by its number."""
    edition: int = -1
    """Number of the present revision among all that counted; -1 is `revision`."""
    rival: Revised | None = None
    """The best revision of the other order, which may count again (see join)."""

    def copy(self) -> FeedbackEntry:
        """An entry that can be changed without changing this one; `replace` takes four times as long."""
        return FeedbackEntry(
            self.revision,
            self.kind,
            self.body,
            self.at_s,
            self.ts_ms,
            self.seen,
            self.counted,
            self.minute,
            self.figures,
            self.products,
            self.rated,
            self.first,
            self.received_s,
            self.by_receipt,
            self.edition,
            self.rival,
        )

    @property
    def present(self) -> Revised:
        """The present revision."""
        return Revised(self.revision, self.received_s, self.by_receipt, self.body)

    @property
    def number(self) -> int:
        """The edition: it grows with each change, whichever order the revisions have."""
        return self.revision if self.edition < 0 else self.edition


@dataclass(slots=True)
class TraceRow:
    """What is known of one trace of one tenant."""

    interaction: bytes = b""
    """The interaction's JSON; empty until it came."""
    entries: dict[str, FeedbackEntry] = field(default_factory=dict)
    started_s: float = 0.0
    ts_ms: int = 0
    """When the interaction reached the log."""
    touched_s: float = 0.0
    """Event time of the last change."""
    with_feedback_minute: int = NO_FEEDBACK
    """Minute in which it counts as having feedback; NO_FEEDBACK or UNANSWERED while it has none."""
    scored: bool = False
    """Its first scored feedback was handed on to the satisfaction counters."""
    erased: tuple[str, ...] = ()
    """Subjects of the people whose data were erased from it."""
    marks: list[Mark] = field(default_factory=list)

    def pending(self) -> int:
        """How many feedbacks wait for the interaction."""
        return len(self.waiting())

    def waiting(self) -> list[int]:
        """The minute of the log in which each feedback came that waits for the interaction."""
        return [
            entry.ts_ms // 60_000
            for entry in self.entries.values()
            if entry.seen and not entry.counted
        ]

    def copy(self) -> TraceRow:
        """A row that can be changed without changing this one; entries are shared."""
        return TraceRow(
            self.interaction,
            dict(self.entries),
            self.started_s,
            self.ts_ms,
            self.touched_s,
            self.with_feedback_minute,
            self.scored,
            self.erased,
            list(self.marks),
        )

    def encode(self) -> bytes:
        """The row as it is stored."""
        state = orjson.dumps(
            [
                [[name, *_entry_fields(entry)] for name, entry in self.entries.items()],
                self.started_s,
                self.ts_ms,
                self.touched_s,
                self.with_feedback_minute,
                self.scored,
                *((self.erased,) if self.erased else ()),  # as format 2 had it
                [encode_mark(mark) for mark in self.marks],
            ]
        )
        return state + b"\n" + self.interaction

    @classmethod
    def decode(cls, stored: bytes) -> TraceRow:
        """The row that `encode` wrote."""
        state, _, interaction = stored.partition(b"\n")
        entries, *rest, marks = orjson.loads(state)
        row = cls(
            interaction,
            {name: _decode_entry(values) for name, *values in entries},
            *rest,
            marks=[decode_mark(mark) for mark in marks],
        )
        row.erased = tuple(row.erased)
        return row


def _entry_fields(entry: FeedbackEntry) -> tuple[Any, ...]:
    fields = (
        entry.revision,
        entry.kind,
        entry.body,
        entry.at_s,
        entry.ts_ms,
        entry.seen,
        entry.counted,
        entry.minute,
        entry.figures,
        entry.products,
        entry.rated,
        tuple(entry.first) if entry.first else None,
    )
    if not entry.received_s:
        return fields  # as format 2 had it
    rival = tuple(entry.rival) if entry.rival else None
    return (*fields, entry.received_s, entry.by_receipt, entry.edition, rival)


def _decode_entry(values: list[Any]) -> FeedbackEntry:
    entry = FeedbackEntry(*values)
    entry.figures = decode_deltas(entry.figures)
    if entry.first is not None:
        entry.first = FirstScore(*entry.first)
    if entry.rival is not None:
        entry.rival = Revised(*entry.rival)
    return entry


class KeptAnswer(TypedDict):
    """One rated answer of a prompt, stored as it is."""

    revision: int
    score: float | None
    pairs: list[str]
    """Ids of the pairs that it stands in."""
    event: NotRequired[dict[str, Any]]
    """Its RatedAnswer as JSON but for the prompt; missing where it has no score."""


@dataclass(slots=True)
class PromptRow:
    """The rated answers to one prompt, oldest first: `{trace, feedback -> answer}`.

    The prompt's messages and tools are not kept: every event that asks for answers carries them.
    """

    answers: dict[str, KeptAnswer] = field(default_factory=dict[str, KeptAnswer])
    touched_s: float = 0.0
    marks: list[Mark] = field(default_factory=list)

    def encode(self) -> bytes:
        """The row as it is stored."""
        marks = [encode_mark(mark) for mark in self.marks]
        return orjson.dumps([self.answers, self.touched_s, marks])

    @classmethod
    def decode(cls, stored: bytes) -> PromptRow:
        """The row that `encode` wrote, or one of format 1, whose answers held the messages too."""
        answers, touched_s, marks = orjson.loads(stored)
        row = cls(answers, touched_s, [decode_mark(mark) for mark in marks])
        for answer in row.answers.values():
            answer.get("event", {}).pop("messages", None)
        return row


@dataclass(slots=True)
class CapRow:
    """Which of a user's scores were counted on one day of one rollout."""

    counted: list[str] = field(default_factory=list)
    touched_s: float = 0.0
    marks: list[Mark] = field(default_factory=list)

    def encode(self) -> bytes:
        """The row as it is stored."""
        marks = [encode_mark(mark) for mark in self.marks]
        return orjson.dumps([self.counted, self.touched_s, marks])

    @classmethod
    def decode(cls, stored: bytes) -> CapRow:
        """The row that `encode` wrote."""
        counted, touched_s, marks = orjson.loads(stored)
        return cls(counted, touched_s, [decode_mark(mark) for mark in marks])


Row: TypeAlias = TraceRow | PromptRow | CapRow

_KINDS: dict[str, type[TraceRow | PromptRow | CapRow]] = {
    "trace": TraceRow,
    "prompt": PromptRow,
    "cap": CapRow,
}


def decode_row(key: bytes, stored: bytes) -> Row:
    """The row stored under a key, which names its kind."""
    return _KINDS[kind_of(key)].decode(stored)
