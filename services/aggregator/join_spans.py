"""Spans of the join: from an event's receipt by the log to the checkpoint that counts it.

All spans about an answer are in the trace of its trace id. The interaction's span is the parent of
its feedback's; a pair links to the interactions that it is about.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.aggregator.codec import SourceRecord, trace_of, traceparent_of
from services.aggregator.fold import Output
from shared.contracts.topics import FEEDBACK, INTERACTIONS, PREFERENCES
from shared.kafka.envelope import header, headers_of
from shared.observability import span_attributes as names
from shared.observability.spans import FinishedSpan, SpanKind, Spans, nanoseconds
from shared.observability.tracing import (
    derived_traceparent,
    interaction_traceparent,
    is_sampled,
    parse_traceparent,
)

NS_PER_MS = 1_000_000


class JoinSpans:
    """Exports the spans of confirmed batches. A repeat after a crash has the same ids."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    @property
    def enabled(self) -> bool:
        """Whether spans go anywhere."""
        return self._spans.enabled

    def sampled(self, output: Output) -> bool:
        """Whether the trace that an output is about is sampled."""
        trace_id = trace_of(output.event)
        return (
            self.enabled
            and bool(interaction_traceparent(trace_id))
            and self._spans.sampled(trace_id)
        )

    def joined(self, records: Iterable[SourceRecord], now_ns: int) -> None:
        """Export a span for each interaction and feedback that a batch counted."""
        for record in records:
            if record.topic == INTERACTIONS or record.topic == FEEDBACK:
                self._joined(record, now_ns)

    def written(self, outputs: Iterable[Output], now_ns: int) -> None:
        """Export a span for each pair that a batch wrote."""
        for output in outputs:
            if output.topic == PREFERENCES and self.sampled(output):
                traces: tuple[str, ...] = getattr(output.event, "traces", ())
                self._spans.record(
                    FinishedSpan(
                        name=f"publish {PREFERENCES}",
                        context=traceparent_of(output, sampled=True),
                        start_ns=min(nanoseconds(output.time), now_ns),
                        end_ns=now_ns,
                        kind=SpanKind.producer,
                        links=[interaction_traceparent(trace_id) for trace_id in traces],
                        attributes={
                            names.MESSAGING_SYSTEM: "kafka",
                            names.MESSAGING_DESTINATION: PREFERENCES,
                            names.KIND: output.event.ce_type,
                        },
                    )
                )

    def _joined(self, record: SourceRecord, now_ns: int) -> None:
        trace_id = (record.key or b"").decode("utf-8", "replace")
        cause = header(headers_of(record.headers), "traceparent")
        own = interaction_traceparent(trace_id)
        if not own or not (is_sampled(cause) or self._spans.sampled(trace_id)):
            return
        same = parse_traceparent(cause) == trace_id
        if record.topic == FEEDBACK:
            place = f"{record.topic}/{record.partition}/{record.offset}"
            context, parent = derived_traceparent(trace_id, place, sampled=True), own
        else:
            context, parent = own, cause if same else ""
        self._spans.record(
            FinishedSpan(
                name=f"process {record.topic}",
                context=context,
                start_ns=min(record.timestamp * NS_PER_MS, now_ns),
                end_ns=now_ns,
                kind=SpanKind.consumer,
                parent=parent,
                links=(cause,),
                attributes={
                    names.MESSAGING_SYSTEM: "kafka",
                    names.MESSAGING_DESTINATION: record.topic,
                    names.MESSAGING_PARTITION: str(record.partition),
                    names.MESSAGING_OFFSET: record.offset,
                    names.TRACE_ID: trace_id,
                },
            )
        )
