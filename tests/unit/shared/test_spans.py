"""Spans go out over OTLP as the OTEL_* variables say, and nowhere without them."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

import pytest
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from shared.observability import otlp
from shared.observability.spans import MAX_LINKS, OFF, FinishedSpan, HeadSampling, SpanKind
from shared.observability.trace_export import spans_of
from shared.observability.tracing import derived_trace_id, derived_traceparent, is_sampled
from tests.support.spans import CollectedSpans, otlp_receiver

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
UNREACHABLE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
OWN = derived_traceparent(TRACE, "own", sampled=True)


def test_a_span_arrives_with_its_ids_links_and_attributes(monkeypatch: pytest.MonkeyPatch):
    with otlp_receiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        monkeypatch.setenv(*next(iter(environ.items())))
        spans = spans_of("router", environ)
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


def test_a_receiver_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(otlp, "CLOSE_TIMEOUT_S", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        monkeypatch.setenv(*next(iter(environ.items())))
        spans = spans_of("router", environ)
        began = time.monotonic()
        for _ in range(5_000):
            spans.record(FinishedSpan(name="chat m", context=OWN, start_ns=1, end_ns=2))
        spans.close()
        assert time.monotonic() - began < 30
    # What still tries again draws from `random`, which Hypothesis refuses beside its strategies.
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=30)
        assert not thread.is_alive(), thread.name


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {**UNREACHABLE, "OTEL_SDK_DISABLED": "true"},
        {**UNREACHABLE, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_an_endpoint_nothing_is_exported(environ: dict[str, str]):
    spans = spans_of("router", environ)
    assert not spans.enabled
    assert not spans.sampled(TRACE, PARENT)
    spans.record(FinishedSpan("lost", OWN, 0, 1))
    spans.close()


def test_the_sdk_is_not_loaded_without_an_endpoint():
    code = (
        "import sys; from shared.observability.trace_export import spans_of; spans_of('router', {});"
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_protocol_is_refused_with_its_variable():
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    with pytest.raises(SystemExit, match=r"OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc'.*http/protobuf"):
        spans_of("router", environ)


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


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 1.0])
def test_a_ratio_chooses_the_traces_that_the_sdks_sampler_chooses(ratio: float):
    ours, theirs = HeadSampling(ratio), TraceIdRatioBased(ratio)
    for number in range(500):
        trace_id = derived_trace_id(str(number))
        decision = theirs.should_sample(None, int(trace_id, 16), "").decision
        assert ours.sampled(trace_id) == (decision is Decision.RECORD_AND_SAMPLE)


@pytest.mark.parametrize(
    ("sampler", "ratio", "roots", "children"),
    [
        ("", "", True, False),
        ("always_on", "", True, True),
        ("always_off", "", False, False),
        ("parentbased_always_off", "", False, False),
        ("parentbased_traceidratio", "1", True, False),
        ("traceidratio", "0", False, False),
        ("traceidratio", "", True, True),
    ],
)
def test_the_samplers_of_the_specification(sampler: str, ratio: str, roots: bool, children: bool):
    environ = {**UNREACHABLE, "OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": ratio}
    spans = spans_of("router", environ)
    found = spans.sampled(TRACE), spans.sampled(TRACE, PARENT[:-2] + "00")
    spans.close()
    assert found == (roots, children)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER_ARG", "10"),
        ("OTEL_TRACES_SAMPLER_ARG", "a tenth"),
    ],
)
def test_a_sampler_that_cannot_be_had_is_refused(variable: str, value: str):
    environ = {**UNREACHABLE, "OTEL_TRACES_SAMPLER": "traceidratio", variable: value}
    with pytest.raises(SystemExit, match=f"{variable}: '{value}'"):
        spans_of("router", environ)
