"""Trace ids: each request has one of its own, by which its event and its feedback are found.

And the spans of a request: its own, and those of its attempts at engines.
"""

from __future__ import annotations

import os
from time import perf_counter

from services.router.call import Call
from shared.contracts.events.interactions import Outcome
from shared.observability import span_attributes as names
from shared.observability.span_contexts import SpanContexts
from shared.observability.spans import (
    NS,
    AttributeValue,
    FinishedSpan,
    SpanKind,
    Spans,
    nanoseconds,
)
from shared.observability.tracing import is_sampled, rebuilt_traceparent

ID_BYTES = 16
POOL_IDS = 256
"""Ids drawn from the system at once: a system call for each would cost more than all else here."""


class TraceIds:
    """Hands out trace ids that name one request each, whichever router it came to.

    A client's own trace id cannot be one: a product asks several times within one trace, and two
    routers would both take it.
    """

    def __init__(self, spans: Spans) -> None:
        self._contexts = SpanContexts(spans)
        self._pool = ""
        self._at = 0

    def take(self) -> str:
        """A new trace id: 32 random hex digits."""
        if self._at >= len(self._pool):
            self._pool = os.urandom(ID_BYTES * POOL_IDS).hex()
            self._at = 0
        start = self._at
        self._at = end = start + 2 * ID_BYTES
        return self._pool[start:end]

    def traceparent(self, trace_id: str, given: bytes | None) -> str:
        """A `traceparent` with a new span: of the client's trace, else of `trace_id`.

        `given` is the client's own header. The interaction event carries the result, so that a
        client's trace goes on behind the router. Sampled is what the export samples; without an
        export, what the client says.
        """
        return self._contexts.begin(trace_id, given.decode("latin-1") if given else "")


class RequestSpans:
    """Exports what a sampled request was: a server span, and where it was tried again, each attempt.

    The engine's own spans hang under it. `OVERHEAD_MS` is the router's part of the time.
    """

    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    def record(self, call: Call) -> None:
        """Export the spans of a request that is over."""
        if not self._spans.enabled or not is_sampled(call.traceparent):
            return
        start_ns = nanoseconds(call.started_at)
        operation = names.OPERATIONS[call.request.endpoint]
        # A span costs 45 µs, nearly all of it in the exporter.
        for number, attempt in enumerate(call.attempts if len(call.attempts) > 1 else ()):
            begun_ns = start_ns + int((attempt.started - call.started) * NS)
            attributes: dict[str, AttributeValue] = {
                names.OPERATION: operation,
                names.RESPONSE_MODEL: attempt.version,
            }
            if attempt.arm:
                attributes[names.ARM] = attempt.arm
            self._spans.record(
                FinishedSpan(
                    name=f"{operation} {attempt.version}",
                    context=call.attempt_span(number),
                    start_ns=begun_ns,
                    end_ns=begun_ns + int(attempt.duration_s * NS),
                    kind=SpanKind.client,
                    parent=call.traceparent,
                    attributes=attributes,
                    error=_error(attempt.outcome),
                )
            )
        given = call.given_traceparent
        self._spans.record(
            FinishedSpan(
                name=f"{operation} {call.choice.model}",
                context=call.traceparent,
                start_ns=start_ns,
                end_ns=start_ns + int((perf_counter() - call.started) * NS),
                kind=SpanKind.server,
                parent=rebuilt_traceparent(given.decode("latin-1")) if given else "",
                attributes=_attributes(call, operation),
                error=_error(call.last.outcome if call.attempts else Outcome.server_error),
            )
        )


def _attributes(call: Call, operation: str) -> dict[str, AttributeValue]:
    """Attributes of a request; each costs the exporter two microseconds, so none is empty."""
    answer = call.answer
    found: dict[str, AttributeValue] = {
        names.OPERATION: operation,
        names.REQUEST_MODEL: call.choice.model,
        names.TRACE_ID: call.request.trace_id,
        names.TENANT: call.tenant,
        names.OVERHEAD_MS: round(call.overhead_s * 1000, 3),
    }
    if call.attempts:
        found[names.RESPONSE_MODEL] = call.last.version
        if call.choice.rollout:
            found[names.ROLLOUT] = call.choice.rollout
            found[names.ARM] = call.last.arm
    if answer.prompt_tokens:
        found[names.INPUT_TOKENS] = answer.prompt_tokens
        found[names.OUTPUT_TOKENS] = answer.completion_tokens
    if answer.finish_reason:
        found[names.FINISH_REASONS] = (answer.finish_reason,)
    return found


def _error(outcome: Outcome) -> str:
    return "" if outcome is Outcome.ok else outcome.value
