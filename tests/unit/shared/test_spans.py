"""Spans go out over OTLP as the OTEL_* variables say, and nowhere without them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shared.observability.spans import MAX_LINKS, OFF, FinishedSpan, SpanKind, Spans
from shared.observability.tracing import derived_trace_id, derived_traceparent, is_sampled
from tests.support.spans import CollectedSpans, otlp_receiver

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
OWN = derived_traceparent(TRACE, "own", sampled=True)


@pytest.fixture(autouse=True)
def no_otel_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


def test_a_span_arrives_with_its_ids_links_and_attributes(monkeypatch: pytest.MonkeyPatch):
    with otlp_receiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        monkeypatch.setenv(*next(iter(environ.items())))
        spans = Spans.of("router", environ)
        spans.record(
            FinishedSpan(
                name="chat assistant",
                context=OWN,
                start_ns=1_000,
                end_ns=3_000,
                kind=SpanKind.server,
                parent=PARENT,
                links=["", "nonsense", PARENT],
                attributes={"gen_ai.request.model": "assistant"},
                error="timeout",
            )
        )
        spans.close()
    (span,) = receiver.spans
    assert receiver.services == {"ratchet-router"}
    assert (span.name, span.trace_id.hex(), span.span_id.hex()) == (
        "chat assistant",
        TRACE,
        OWN.split("-")[2],
    )
    assert span.parent_span_id.hex() == "00f067aa0ba902b7"
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1_000, 3_000)
    assert [link.span_id.hex() for link in span.links] == ["00f067aa0ba902b7"]
    assert span.attributes[0].value.string_value == "assistant"
    assert (span.kind, span.status.message) == (span.SPAN_KIND_SERVER, "timeout")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_an_endpoint_nothing_is_exported(environ: dict[str, str]):
    spans = Spans.of("router", environ)
    assert not spans.enabled
    assert not spans.sampled(TRACE, PARENT)
    spans.record(FinishedSpan("lost", OWN, 0, 1))
    spans.close()


def test_the_sdk_is_not_loaded_without_an_endpoint():
    code = (
        "import sys; from shared.observability.spans import Spans; Spans.of('router', {});"
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_protocol_is_refused_with_its_variable():
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    with pytest.raises(SystemExit, match=r"OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc'.*http/protobuf"):
        Spans.of("router", environ)


def test_a_trace_is_sampled_by_its_parents_flag_else_by_its_id():
    spans, same = CollectedSpans(0.1).spans, CollectedSpans(0.1).spans
    ids = [derived_trace_id(str(number)) for number in range(2_000)]
    chosen = [one for one in ids if spans.sampled(one)]
    assert 140 < len(chosen) < 260
    assert chosen == [one for one in ids if same.sampled(one)]
    assert all(spans.sampled(one, f"00-{one}-00f067aa0ba902b7-01") for one in ids[:50])
    assert not any(spans.sampled(one, f"00-{one}-00f067aa0ba902b7-00") for one in ids[:50])


def test_what_is_not_sampled_is_not_exported_and_links_are_bounded():
    collected = CollectedSpans()
    collected.spans.record(FinishedSpan("unsampled", derived_traceparent(TRACE, "a"), 0, 1))
    links = [derived_traceparent(TRACE, str(number)) for number in range(1_000)]
    collected.spans.record(FinishedSpan("dataset", OWN, 5, 1, links=links))
    (span,) = collected.finished()
    assert (span.name, len(span.links), span.end_time) == ("dataset", MAX_LINKS, 5)


def test_off_samples_nothing():
    assert not OFF.enabled
    assert not OFF.sampled(TRACE, PARENT)


@pytest.mark.parametrize("flags", ["00", "02"])
def test_the_sampled_flag_is_one_bit(flags: str):
    assert is_sampled(PARENT)
    assert is_sampled(PARENT[:-2] + "03")
    assert not is_sampled(PARENT[:-2] + flags)
