"""Spans of stored feedback: from its receipt to the brokers' acknowledgement.

A request goes on in the trace of its `traceparent` and links to the answers that it is about. Without
one, feedback on one answer is in that answer's trace, and a batch has a trace of its own. What is
stored carries the span's context, so the join links to it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime

from shared.clock import Clock
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackWithdrawn
from shared.contracts.events.signals import SignalObserved
from shared.observability import span_attributes as names
from shared.observability.span_contexts import SpanContexts
from shared.observability.spans import AttributeValue, FinishedSpan, SpanKind, Spans, nanoseconds
from shared.observability.tracing import (
    derived_traceparent,
    interaction_traceparent,
    is_sampled,
    is_trace_id,
    parse_traceparent,
)


class FeedbackSpans:
    """Contexts and spans of requests that store feedback. `given` is a client's valid header or empty."""

    def __init__(self, spans: Spans, clock: Clock) -> None:
        self._spans = spans
        self._enabled = spans.enabled
        self._contexts = SpanContexts(spans)
        self._clock = clock

    def context(self, given: str, trace_id: str, place: str = "") -> str:
        """The `traceparent` of feedback on the answer `trace_id`; empty where nothing is sampled.

        Of a record its `place` on the log, so that a repeat has the same. Without an export, `given`.
        """
        if not self._enabled:
            return given
        if not given and not (is_trace_id(trace_id) and self._spans.sampled(trace_id)):
            return ""
        if place:
            own = parse_traceparent(given) or trace_id
            return derived_traceparent(own, place, sampled=self._spans.sampled(own, given))
        return self._contexts.begin(trace_id, given)

    def batch_context(self, given: str) -> str:
        """The `traceparent` of feedback on several answers; empty where nothing is sampled."""
        if not self._enabled:
            return given
        context = self._contexts.begin(secrets.token_hex(16), given)
        return context if given or is_sampled(context) else ""

    def stored(
        self,
        name: str,
        context: str,
        given: str,
        event: FeedbackSubmitted | SignalObserved | FeedbackWithdrawn,
        kind: SpanKind = SpanKind.server,
    ) -> None:
        """Export the span of one piece of feedback that was stored."""
        if not self._enabled or not context or not is_sampled(context):
            return
        answer = interaction_traceparent(event.trace_id)
        self._record(
            name,
            context,
            given or answer,
            (answer,) if given else (),
            event.submitted_at,
            {names.TENANT: event.tenant, names.TRACE_ID: event.trace_id, names.KIND: event.type},
            kind,
        )

    def stored_batch(
        self, name: str, context: str, given: str, tenant: str, trace_ids: list[str], at: datetime
    ) -> None:
        """Export the span of a batch that came at `at`, with the answers that it is about."""
        if not self._enabled or not context or not is_sampled(context):
            return
        # The export takes no more links than a span may have, and asks for no more.
        links = map(interaction_traceparent, dict.fromkeys(trace_ids))
        self._record(
            name,
            context,
            given,
            links,
            at,
            {names.TENANT: tenant, names.ITEMS: len(trace_ids)},
            SpanKind.server,
        )

    def _record(
        self,
        name: str,
        context: str,
        parent: str,
        links: Iterable[str],
        began: datetime,
        attributes: Mapping[str, AttributeValue],
        kind: SpanKind,
    ) -> None:
        now_ns = nanoseconds(self._clock.now())
        self._spans.record(
            FinishedSpan(
                name=name,
                context=context,
                start_ns=min(nanoseconds(began), now_ns),
                end_ns=now_ns,
                kind=kind,
                parent=parent,
                links=links,
                attributes=attributes,
            )
        )
