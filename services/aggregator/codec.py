"""Event codec: which events each source topic carries, and how messages become records and back."""

# pyright: basic, reportMissingTypeStubs=false
# faust has no useful types.
from __future__ import annotations

from typing import Any

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
from shared.kafka.envelope import Headers, decode, encode, headers_of, models_by_type
from shared.kafka.log import Record
from shared.observability.tracing import derived_traceparent

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


def headers_in(message: Any) -> Headers:
    """Headers of a Faust message, which has them as a mapping or as pairs."""
    headers = message.headers or ()
    return headers_of(headers.items() if isinstance(headers, dict) else headers)


def timestamp_ms(message: Any) -> int:
    """When a Faust message reached the log, in milliseconds."""
    return int((message.timestamp or 0) * 1000)


def event_in(message: Any) -> Event:
    """The event that a Faust message carries.

    Raises:
        UnreadableRecord: it carries none that its topic may have.
    """
    return decode(headers_in(message), message.value, MODELS[message.topic])


def record_in(message: Any) -> Record:
    """A Faust message as a record, for its dead letter."""
    return Record(
        message.topic,
        message.partition,
        message.offset,
        (message.key or b"").decode("utf-8", "replace"),
        message.value,
        headers_in(message),
        timestamp_ms(message),
    )


def write_of(output: Output, *, sampled: bool = False) -> Write:
    """An output as the record to write; it goes on with the trace of the answer it is about."""
    headers = encode(
        output.event,
        source=SOURCE,
        event_id=output.event_id,
        time=output.time,
        traceparent=traceparent_of(output, sampled=sampled),
    )
    return Write(output.topic, None, output.key.encode(), output.event.to_json(), headers)


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
