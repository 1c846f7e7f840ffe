"""Spans reach an OpenTelemetry collector. `make verify` builds one from source, where Go is there."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from deploy.local.starter import BASE_MODEL, STARTER_ENGINE
from shared.contracts.topics import FEEDBACK, INTERACTIONS
from shared.observability.spans import FinishedSpan, SpanKind
from shared.observability.trace_export import spans_of
from shared.observability.tracing import derived_traceparent, interaction_traceparent
from tests.support.collected import CollectedSpan, collected_spans
from tests.support.command import ratchet
from tests.support.go import build, needs_go
from tests.support.unforgiving_users import CALL_S, served_by
from tests.support.waiting import eventually

COLLECTOR = Path(__file__).parents[1] / "support" / "collector"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT = f"00-{TRACE}-00f067aa0ba902b7-01"
VERSION = "assistant-base"
SERVES_S = 300.0
ARRIVES_S = 60.0
"""Batches leave every five seconds; the join's spans, with its checkpoint."""
SAMPLING = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
"""What is sampled is so by the client's flag alone."""
pytestmark = [pytest.mark.verify, pytest.mark.timeout(1_200), needs_go]


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


class Collector:
    """A collector that runs, and the spans that it took."""

    def __init__(self, url: str, output: Path) -> None:
        self.url = url
        self._output = output

    def printed(self) -> str:
        return self._output.read_text()

    def spans(self) -> list[CollectedSpan]:
        return collected_spans(self.printed())


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("collector") / "collector"
    build(COLLECTOR, made)
    return made


@pytest.fixture
async def collector(binary: Path, tmp_path: Path) -> AsyncIterator[Collector]:
    port = free_ports(["collector"])["collector"]
    settings, output = tmp_path / "collector.yaml", tmp_path / "output.txt"
    settings.write_text(configuration(port))
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            str(binary), "--config", str(settings), stdout=file, stderr=file
        )
    running = Collector(f"http://127.0.0.1:{port}", output)
    try:
        await eventually(lambda: "Everything is ready" in running.printed(), "the collector is up")
        yield running
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
def stack(
    clean_environment: None, starter: str, collector: Collector, tmp_path: Path
) -> Iterator[Stack]:
    with Stack(
        tmp_path / "stack",
        services=["router", "rollout", "inference", "feedback", "aggregator"],
        env={
            BASE_MODEL: starter,
            **STARTER_ENGINE,
            **SAMPLING,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        },
        ports="free",
        scrape_interval="1s",
    ) as started:
        yield started


async def test_a_real_collector_takes_the_spans(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    spans = spans_of("router", {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
    own = derived_traceparent(TRACE, "own", sampled=True)
    spans.record(
        FinishedSpan(
            name="chat assistant",
            context=own,
            start_ns=1,
            end_ns=2,
            kind=SpanKind.server,
            parent=CLIENT,
            attributes={"gen_ai.request.model": "assistant"},
        )
    )
    await asyncio.to_thread(spans.close)
    await eventually(lambda: bool(collector.spans()), "the span arrived")
    (span,) = collector.spans()
    assert (span.service, span.name) == ("ratchet-router", "chat assistant")
    assert (span.trace_id, span.span_id, span.parent_id) == (TRACE, own[36:52], CLIENT[36:52])
    assert span.attributes == {"gen_ai.request.model": "assistant"}


async def test_a_clients_trace_goes_through_engine_and_feedback_to_the_join(
    stack: Stack, starter: str, collector: Collector
) -> None:
    options = ("--base", starter, "--reason", "the model as it is")
    made = ratchet("versions", "register", VERSION, *options, env=stack.environment())
    assert made.status == 0, made.err
    await served_by(stack.url("router"), VERSION, SERVES_S)
    question = {"model": "assistant", "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"traceparent": CLIENT}
    async with httpx.AsyncClient(headers=headers, timeout=CALL_S) as http:
        chat = await http.post(stack.url("router") + "/v1/chat/completions", json=question)
        assert chat.status_code == 200, chat.text
        answer = chat.headers["x-ratchet-trace-id"]
        vote = {"trace_id": answer, "type": "thumbs_up", "user_id": "u1"}
        posted = await http.post(stack.url("feedback") + "/v1/feedback", json=vote)
        assert posted.status_code == 202, posted.text
        moderated = await http.post(stack.url("router") + "/v1/moderated", json=question)
        assert moderated.status_code == 200, moderated.text

    wanted = {
        "ratchet-router": ["chat assistant"],
        "ratchet-engine": ["llm_request"] * 3,
        "ratchet-feedback": ["POST /v1/feedback"],
        "ratchet-inference": ["critic", "moderated assistant", "score", "writer"],
        "ratchet-aggregator": [f"process {FEEDBACK}", f"process {INTERACTIONS}"],
    }

    def arrived() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for span in collector.spans():
            found.setdefault(span.service, []).append(span.name)
        return {service: sorted(names) for service, names in found.items()}

    # Nothing else is sampled: neither the requests before nor the engine's own.
    await eventually(lambda: arrived() == wanted, "all spans arrived", ARRIVES_S)
    spans = {span.name: span for span in collector.spans() if span.name != "llm_request"}
    of_engine = {one.parent_id for one in collector.spans() if one.service == "ratchet-engine"}
    request, post, whole = (
        spans["chat assistant"],
        spans["POST /v1/feedback"],
        spans["moderated assistant"],
    )
    assert {one.trace_id for one in (request, post, whole)} == {TRACE}
    assert {one.parent_id for one in (request, post, whole)} == {CLIENT[36:52]}
    assert of_engine == {request.span_id, spans["writer"].span_id, spans["critic"].span_id}
    asked, said = spans[f"process {INTERACTIONS}"], spans[f"process {FEEDBACK}"]
    assert (asked.trace_id, asked.span_id) == (answer, interaction_traceparent(answer)[36:52])
    assert said.parent_id == asked.span_id
    assert (post.links, said.links) == ([asked.span_id], [post.span_id])
    assert asked.links == [request.span_id]
    assert whole.attributes["ratchet.outcome"] == "fallback"
    assert "Hello" not in collector.printed()
