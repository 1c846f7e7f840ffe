"""Spans as they arrive: collected in memory, or by a receiver of OTLP over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext

from services.inference.generation_spans import GenerationSpans
from shared.clock import SystemClock
from shared.observability.otlp import OtlpExport
from shared.observability.spans import OFF, HeadSampling, Spans

NO_SPANS = GenerationSpans(OFF, SystemClock())


class CollectedSpans:
    """Spans that a service exported, in memory."""

    def __init__(self, ratio: float = 1.0) -> None:
        """Of traces without a parent, the share `ratio` is sampled."""
        self._exporter = InMemorySpanExporter()
        export = OtlpExport(SimpleSpanProcessor(self._exporter), Resource.create())
        self.spans = Spans(export, HeadSampling(ratio))

    def finished(self) -> tuple[ReadableSpan, ...]:
        """All spans so far, in the order in which they were exported."""
        return self._exporter.get_finished_spans()


def reached(trace_id: str, spans: Iterable[ReadableSpan]) -> set[str]:
    """Names of the spans in a trace, and in the traces that follow from it by links."""
    traces, names, left = {int(trace_id, 16)}, set[str](), list(spans)
    while True:
        news = [
            span
            for span in left
            if traces & {_trace(span), *(link.context.trace_id for link in span.links)}
        ]
        if not news:
            return names
        for span in news:
            left.remove(span)
            names.add(span.name)
            traces.add(_trace(span))


def context_of(span: ReadableSpan | Link | SpanContext | None) -> str:
    """The `traceparent` of a span, or of what a link or a parent names; sampled."""
    context = span if isinstance(span, SpanContext) else span and span.context
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


def _trace(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.trace_id


class OtlpReceiver:
    """What an OTLP receiver took: service names and spans."""

    def __init__(self) -> None:
        self.url = ""
        self.services: set[str] = set()
        self.spans: list[Span] = []

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.services.add(named["service.name"])
            self.spans += (span for scope in resource.scope_spans for span in scope.spans)


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """A receiver on a port of its own, until the context ends."""
    receiver = OtlpReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the base names it
            """Tests have output of their own."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield receiver
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
