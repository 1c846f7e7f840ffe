"""Spans reach an OpenTelemetry collector. `make verify` builds one from source, where Go is there."""

from __future__ import annotations

import asyncio
import textwrap
from pathlib import Path

import pytest

from deploy.local.ports import free_ports
from shared.observability.spans import FinishedSpan, SpanKind
from shared.observability.trace_export import spans_of
from shared.observability.tracing import derived_traceparent
from tests.support.go import build, needs_go
from tests.support.waiting import eventually

COLLECTOR = Path(__file__).parents[1] / "support" / "collector"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def configuration(port: int) -> str:
    return textwrap.dedent(
        f"""
        receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
        exporters: {{debug: {{verbosity: detailed}}}}
        service:
          telemetry: {{metrics: {{level: none}}}}
          pipelines: {{traces: {{receivers: [otlp], exporters: [debug]}}}}
        """
    )


@pytest.mark.verify
@pytest.mark.timeout(1_200)
@needs_go
async def test_a_real_collector_takes_the_spans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_ports(["collector"])["collector"]
    (tmp_path / "collector.yaml").write_text(configuration(port))
    output, binary = tmp_path / "output.txt", tmp_path / "collector"
    await asyncio.to_thread(build, COLLECTOR, binary)
    with output.open("wb") as file:
        collector = await asyncio.create_subprocess_exec(
            str(binary),
            "--config",
            str(tmp_path / "collector.yaml"),
            stdout=file,
            stderr=file,
        )
    try:
        await eventually(lambda: "Everything is ready" in output.read_text(), "the collector is up")
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        monkeypatch.setenv(*next(iter(environ.items())))
        spans = spans_of("router", environ)
        own = derived_traceparent(TRACE, "own", sampled=True)
        spans.record(
            FinishedSpan(
                name="chat assistant",
                context=own,
                start_ns=1,
                end_ns=2,
                kind=SpanKind.server,
                parent=f"00-{TRACE}-00f067aa0ba902b7-01",
                attributes={"gen_ai.request.model": "assistant"},
            )
        )
        await asyncio.to_thread(spans.close)
        await eventually(lambda: "chat assistant" in output.read_text(), "the span arrived")
    finally:
        collector.terminate()
        await collector.wait()
    told = output.read_text()
    for text in ("ratchet-router", TRACE, "00f067aa0ba902b7", own[36:52], "gen_ai.request.model"):
        assert text in told
