"""Span export (OpenTelemetry): what a service did is told over OTLP once it is over.

Span ids stand in `traceparent` headers, or follow from ids on the log (`derived_traceparent`), so a
span is built at its end from what is known anyway, and what is not sampled costs one look.
The OTEL_* variables of the OpenTelemetry specification set everything; without an endpoint there
is no exporter, and its libraries are not even imported.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING

from shared.observability.tracing import is_sampled, parse_traceparent

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
    from opentelemetry.trace import SpanContext

AttributeValue = str | bool | int | float | Sequence[str]

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
MAX_LINKS = 128
"""Links of one span, the specification's default: a dataset has more pairs than that."""
CLOSE_TIMEOUT_S = 5.0
NS = 1_000_000_000


class SpanKind(StrEnum):
    """OpenTelemetry's kinds of spans that occur here."""

    internal = "INTERNAL"
    server = "SERVER"
    client = "CLIENT"
    consumer = "CONSUMER"
    producer = "PRODUCER"


@dataclass(frozen=True, slots=True)
class FinishedSpan:
    """A span that is over. `context`, `parent` and `links` are `traceparent` texts.

    `start_ns` and `end_ns` are nanoseconds since the epoch; `error` is empty where it went well.
    """

    name: str
    context: str
    start_ns: int
    end_ns: int
    kind: SpanKind = SpanKind.internal
    parent: str = ""
    links: Iterable[str] = ()
    attributes: Mapping[str, AttributeValue] | None = None
    error: str = ""


class Spans:
    """Sends finished spans to an OTLP receiver in batches; without one, nothing is sampled."""

    def __init__(
        self, processor: SpanProcessor | None = None, provider: TracerProvider | None = None
    ) -> None:
        """Spans go to `processor`, which queues a bounded number, with the provider's resource.

        The provider's sampler chooses traces.
        """
        self._processor = processor
        self._provider = provider

    @classmethod
    def of(cls, service: str, environ: Mapping[str, str] = os.environ) -> Spans:
        """The exporter that the OTEL_* variables describe for `ratchet-<service>`.

        Raises:
            SystemExit: a protocol other than OTLP over HTTP is asked for.

        """
        off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        if off or environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
            return cls()
        if not any(environ.get(name) for name in ENDPOINTS):
            return cls()
        for name in PROTOCOLS:
            if environ.get(name, PROTOCOL) != PROTOCOL:
                raise SystemExit(
                    f"{name}: {environ[name]!r} is not supported; use {PROTOCOL} and its port"
                )
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = environ.get("OTEL_SERVICE_NAME")
        resource = Resource.create({"service.name": named or f"ratchet-{service}"})
        # The provider reads OTEL_TRACES_SAMPLER.
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        return cls(BatchSpanProcessor(OTLPSpanExporter()), provider)

    @property
    def enabled(self) -> bool:
        """Whether spans go anywhere."""
        return self._processor is not None

    def sampled(self, trace_id: str, parent: str = "") -> bool:
        """Whether a trace is sampled: by the flag of `parent`, else by its id, alike everywhere."""
        if self._provider is None:
            return False
        from opentelemetry import trace
        from opentelemetry.sdk.trace.sampling import Decision

        context = None
        if parent:
            context = trace.set_span_in_context(trace.NonRecordingSpan(_context(parent)))
        found = self._provider.sampler.should_sample(context, int(trace_id, 16), "")
        return found.decision is Decision.RECORD_AND_SAMPLE

    def record(self, span: FinishedSpan) -> None:
        """Queue a span for export, unless its context is not sampled; a full queue drops one."""
        if self._processor is not None and self._provider is not None and is_sampled(span.context):
            self._processor.on_end(_readable(span, self._provider.resource))

    def close(self) -> None:
        """Send what is queued; what an absent receiver does not take in time is lost."""
        if self._processor is None:
            return
        # Its own deadline is 30 s and more.
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)


OFF = Spans()
"""No export."""


def nanoseconds(moment: datetime) -> int:
    """A moment in nanoseconds since the epoch."""
    return int(moment.timestamp() * NS)


def _readable(span: FinishedSpan, resource: Resource) -> ReadableSpan:
    """The span as the SDK exports it."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    links = islice(filter(parse_traceparent, span.links), MAX_LINKS)
    code = trace.StatusCode.ERROR if span.error else trace.StatusCode.UNSET
    return ReadableSpan(
        name=span.name,
        context=_context(span.context, remote=False),
        parent=_context(span.parent) if parse_traceparent(span.parent) else None,
        resource=resource,
        attributes=span.attributes,
        links=[trace.Link(_context(link)) for link in links],
        kind=trace.SpanKind[span.kind.value],
        status=trace.Status(code, span.error or None),
        start_time=span.start_ns,
        end_time=max(span.start_ns, span.end_ns),
        instrumentation_scope=InstrumentationScope("ratchet"),
    )


def _context(traceparent: str, *, remote: bool = True) -> SpanContext:
    from opentelemetry import trace

    _, trace_id, span_id, flags = traceparent.split("-")[:4]
    return trace.SpanContext(
        int(trace_id, 16), int(span_id, 16), remote, trace.TraceFlags(int(flags[:2], 16))
    )
