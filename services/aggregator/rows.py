"""Rows of the one table: what is known of a trace, and how rows travel on the changelog.

A row's bytes are one line of JSON (feedback and marks), a newline, and the interaction's own JSON
as it came from the topic, so that writing a row never encodes an interaction again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

SEPARATOR = "\x1f"
"""Between the parts of a key; identifiers cannot contain it (see contracts.events.Identifier)."""

MAX_VALUE_BYTES = 900_000
"""Largest row or output, uncompressed: brokers refuse a record over 1,048,588 bytes with its headers,
and a row's marks of a batch or two come on top."""

Contribution: TypeAlias = list[Any]
"""What an event adds to the aggregates, as JSON: `[kind, …]`; see aggregates.py."""
Mark: TypeAlias = list[Any]
"""`[topic, offset, contributions]`: an event whose effect the row holds."""
Vector: TypeAlias = list[list[float]]
"""Sparse figures: `[[index, delta], …]`; the indices are in aggregates.py."""


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


def partition_of(key: bytes) -> int:
    """The partition that a key of the table belongs to."""
    return int(key[: key.index(b"\x1f")])


def kind_of(key: bytes) -> str:
    """`trace`, `prompt`, `cap` or `checkpoint`."""
    return key.split(b"\x1f", 2)[1].decode()


@dataclass(slots=True)
class FeedbackEntry:
    """One feedback's (or vote's) highest revision, and what it has caused so far."""

    revision: int
    kind: str
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
    figures: Vector = field(default_factory=list)
    """What it adds to the figures now; an edit takes this out again."""
    products: list[str] = field(default_factory=list)
    """Ids of the pairs and examples that stand because of it."""
    rated: bool = False
    """It stands on the rated topic."""
    first: list[Any] | None = None
    """`[score, user, event time]` of its first submission, whatever was edited later."""


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
    with_feedback_minute: int = -1
    """Minute in which it counts as having feedback; -1 while it has none."""
    scored: bool = False
    """Its first scored feedback was handed on to the satisfaction counters."""
    marks: list[Mark] = field(default_factory=list)

    def pending(self) -> int:
        """How many feedbacks wait for the interaction."""
        return sum(1 for entry in self.entries.values() if entry.seen and not entry.counted)

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
                self.marks,
            ]
        )
        return state + b"\n" + self.interaction

    @classmethod
    def decode(cls, stored: bytes) -> TraceRow:
        """The row that `encode` wrote."""
        state, _, interaction = stored.partition(b"\n")
        entries, *rest = orjson.loads(state)
        return cls(interaction, {name: FeedbackEntry(*values) for name, *values in entries}, *rest)


def _entry_fields(entry: FeedbackEntry) -> tuple[Any, ...]:
    return (
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
        entry.first,
    )


@dataclass(slots=True)
class PromptRow:
    """The rated answers to one prompt, oldest first: `{trace, feedback -> answer}`.

    An answer is `{"revision", "score", "pairs"}` and, where it has a score, `"event"`: its
    RatedAnswer as JSON but for the messages. Those are in every event that asks for them.
    """

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    touched_s: float = 0.0
    marks: list[Mark] = field(default_factory=list)

    def encode(self) -> bytes:
        """The row as it is stored."""
        return orjson.dumps([self.answers, self.touched_s, self.marks])

    @classmethod
    def decode(cls, stored: bytes) -> PromptRow:
        """The row that `encode` wrote, or one of format 1, whose answers held the messages too."""
        row = cls(*orjson.loads(stored))
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
        return orjson.dumps([self.counted, self.touched_s, self.marks])

    @classmethod
    def decode(cls, stored: bytes) -> CapRow:
        """The row that `encode` wrote."""
        return cls(*orjson.loads(stored))


Row: TypeAlias = TraceRow | PromptRow | CapRow

_KINDS: dict[str, type[TraceRow | PromptRow | CapRow]] = {
    "trace": TraceRow,
    "prompt": PromptRow,
    "cap": CapRow,
}


def decode_row(key: bytes, stored: bytes) -> Row:
    """The row stored under a key, which names its kind."""
    return _KINDS[kind_of(key)].decode(stored)
