"""Event codec: which events each source topic carries, and how outputs become records."""

# pyright: reportMissingTypeStubs=false
# aiokafka has no stubs.
from __future__ import annotations

from typing import TypeAlias

from aiokafka.structs import ConsumerRecord

from services.aggregator.fold import Output
from services.aggregator.writer import Write
from shared.contracts.events.base import Event
from shared.contracts.events.erasures import TraceErased
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackWithdrawn
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.quality import Tick
from shared.contracts.events.rated import RatedAnswer, RatedScore
from shared.contracts.events.signals import SignalObserved
from shared.contracts.events.votes import VoteCast
from shared.contracts.topics import FEEDBACK, INTERACTIONS, RATED, TICKS
from shared.kafka.envelope import decode, headers_of, models_by_type
from shared.kafka.log import Record, event_record
from shared.observability.tracing import derived_traceparent

SourceRecord: TypeAlias = ConsumerRecord[bytes, bytes]
"""A record of a source topic as it was fetched."""

SOURCE = "/ratchet/aggregator"
MODELS = {
    INTERACTIONS: models_by_type(InteractionRecorded),
    FEEDBACK: models_by_type(
        FeedbackSubmitted, FeedbackWithdrawn, SignalObserved, VoteCast, TraceErased
    ),
    RATED: models_by_type(RatedAnswer, RatedScore),
    TICKS: models_by_type(Tick),
}
"""Source topic -> its event models by type name."""


def event_in(record: SourceRecord, value: bytes | None) -> Event:
    """The event that a record carries, of its value with the texts in clear.

    Raises:
        UnreadableRecord: it carries none that its topic may have.
    """
    return decode(record.headers, value, MODELS[record.topic])


def record_in(record: SourceRecord) -> Record:
    """A record as it was fetched, for its dead letter."""
    return Record(
        record.topic,
        record.partition,
        record.offset,
        (record.key or b"").decode("utf-8", "replace"),
        record.value,
        headers_of(record.headers),
        record.timestamp,
    )


def write_of(output: Output, *, sampled: bool = False) -> Write:
    """An output as the record to write; it goes on with the trace of the answer it is about."""
    return Write.of(
        event_record(
            output.topic,
            output.event,
            key=output.key,
            source=SOURCE,
            event_id=output.event_id,
            time=output.time,
            traceparent=traceparent_of(output, sampled=sampled),
        )
    )


def traceparent_of(output: Output, *, sampled: bool = False) -> str:
    """The span of an output, the same in each repeat; empty where its trace has no valid id."""
    return derived_traceparent(trace_of(output.event), output.event_id, sampled=sampled)


def trace_of(event: Event) -> str:
    """The trace that an output is about: the answer's, the chosen one's of a pair; empty for none."""
    traces: tuple[str, ...] = getattr(event, "traces", ())
    return str(getattr(event, "trace_id", "") or (traces[0] if traces else ""))


def event_time_s(event: Event) -> float | None:
    """Event time: when an interaction ended or a submission came; None for internal events."""
    match event:
        case InteractionRecorded():
            return event.started_at.timestamp() + event.duration_ms / 1000
        case FeedbackSubmitted() | FeedbackWithdrawn() | SignalObserved() | VoteCast():
            return event.submitted_at.timestamp()
        case _:
            return None
