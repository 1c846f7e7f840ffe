"""Export of spans over OTLP, by the OpenTelemetry SDK's batches; it reads the OTEL_* variables."""

from __future__ import annotations

import threading
from itertools import islice

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from shared.observability.spans import MAX_LINKS, FinishedSpan
from shared.observability.tracing import parse_traceparent

CLOSE_TIMEOUT_S = 5.0
_SCOPE = InstrumentationScope("ratchet")
_KINDS = dict(SpanKind.__members__)
_UNSET = Status(StatusCode.UNSET)


class SharedResource(Resource):
    """A resource that is hashed once: the encoder looks it up for each span, as JSON."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash


class OtlpExport:
    """Hands finished spans to the SDK's processor, which sends batches from a thread of its own."""

    def __init__(self, processor: SpanProcessor, resource: Resource) -> None:
        self._processor = processor
        self._resource = resource

    @classmethod
    def of(cls, service_name: str) -> OtlpExport:
        """An export over HTTP to the endpoint that the variables name."""
        resource = Resource.create({"service.name": service_name})
        return cls(BatchSpanProcessor(OTLPSpanExporter()), SharedResource(resource))

    def export(self, span: FinishedSpan) -> None:
        """See SpanExport.export."""
        self._processor.on_end(_readable(span, self._resource))

    def close(self) -> None:
        """See SpanExport.close."""
        # The SDK's own deadline is 30 s and more.
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)


def _readable(span: FinishedSpan, resource: Resource) -> ReadableSpan:
    """The span as the SDK exports it."""
    links = islice(filter(parse_traceparent, span.links), MAX_LINKS)
    return ReadableSpan(
        name=span.name,
        context=_context(span.context, remote=False),
        parent=_context(span.parent) if span.parent else None,
        resource=resource,
        attributes=span.attributes,
        links=[Link(_context(link)) for link in links],
        kind=_KINDS[span.kind.value],
        status=Status(StatusCode.ERROR, span.error) if span.error else _UNSET,
        start_time=span.start_ns,
        end_time=max(span.start_ns, span.end_ns),
        # One for all: the encoder groups by it.
        instrumentation_scope=_SCOPE,
    )


def _context(traceparent: str, *, remote: bool = True) -> SpanContext:
    return SpanContext(
        int(traceparent[3:35], 16),
        int(traceparent[36:52], 16),
        remote,
        TraceFlags(int(traceparent[53:55], 16)),
    )
