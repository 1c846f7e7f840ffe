"""Feedback that was stored has a span, in the client's trace or in that of the answer it is about."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from opentelemetry.trace import SpanKind
from structlog.testing import capture_logs

from services.feedback.feedback_spans import FeedbackSpans
from shared.kafka.envelope import header
from shared.observability.spans import MAX_LINKS, OFF, Spans
from shared.observability.tracing import (
    derived_trace_id,
    interaction_traceparent,
    is_sampled,
    parse_traceparent,
)
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.feedback import FeedbackHarness, feedback_service
from tests.support.spans import CollectedSpans, context_of

ANSWER = derived_trace_id("an answer")
CLIENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = CLIENT[:-2] + "00"


@asynccontextmanager
async def serving(spans: Spans) -> AsyncIterator[FeedbackHarness]:
    async with feedback_service(MemoryLog(), spans=spans) as service:
        yield service


async def sent(service: FeedbackHarness, trace_id: str = ANSWER, given: str = "") -> str:
    """The `traceparent` of the record that one piece of feedback became."""
    body = {"trace_id": trace_id, "type": "thumbs_up", "user_id": "u1"}
    headers = {"traceparent": given} if given else {}
    answer = await service.post("/v1/feedback", body, headers=headers)
    assert answer.status_code == 202, answer.text
    return header((await service.records(trace_id))[-1].headers, "traceparent")


async def test_it_goes_on_in_the_clients_trace_and_links_to_the_answer() -> None:
    collected = CollectedSpans(0.0)  # What is sampled is so by the client's flag alone.
    async with serving(collected.spans) as service:
        stored = await sent(service, given=CLIENT)
    (span,) = collected.finished()
    assert (span.name, span.kind) == ("POST /v1/feedback", SpanKind.SERVER)
    assert context_of(span) == stored
    assert parse_traceparent(stored) == CLIENT[3:35]
    assert f"{span.parent.span_id:016x}" == CLIENT[36:52]
    assert [context_of(link) for link in span.links] == [interaction_traceparent(ANSWER)]
    assert span.attributes == {
        "ratchet.tenant": "default",
        "ratchet.trace_id": ANSWER,
        "ratchet.kind": "thumbs_up",
    }


async def test_without_a_header_it_is_in_the_answers_trace() -> None:
    collected = CollectedSpans()
    async with serving(collected.spans) as service:
        stored = await sent(service)
        (event,) = await service.stored(ANSWER)
        path = f"/v1/feedback/{event.feedback_id}?trace_id={ANSWER}&user_id=u1"
        with capture_logs() as logs:
            withdrawal = await service.client.delete(path)
        assert withdrawal.status_code == 202, withdrawal.text
    assert [line["trace_id"] for line in logs] == [ANSWER]
    given, taken_back = collected.finished()
    assert context_of(given) == stored
    assert context_of(given.parent) == interaction_traceparent(ANSWER)
    assert not given.links
    assert taken_back.name == "DELETE /v1/feedback/{feedback_id:path}"
    assert taken_back.parent.span_id == given.parent.span_id
    assert taken_back.context.span_id != given.context.span_id


async def test_a_batch_has_one_span_with_the_answers_that_were_stored() -> None:
    collected = CollectedSpans()
    answers = [derived_trace_id(str(number)) for number in range(MAX_LINKS + 40)]
    items = [{"trace_id": one, "type": "thumbs_up", "user_id": "u"} for one in answers]
    refused = {"trace_id": ANSWER, "type": "applause"}
    async with serving(collected.spans) as service:
        body = {"items": [refused, items[0], *items]}
        assert (await service.post("/v1/feedback/batch", body)).status_code == 207
        stored = {
            header(record.headers, "traceparent") for record in await service.records(answers[-1])
        }
        await service.post(
            "/v1/feedback/batch", {"items": items[:1]}, headers={"traceparent": CLIENT}
        )
    span, of_client = collected.finished()
    assert (span.name, span.attributes["ratchet.items"]) == (
        "POST /v1/feedback/batch",
        len(items) + 1,
    )
    assert stored == {context_of(span)}
    assert span.parent is None
    links = [interaction_traceparent(one) for one in answers[:MAX_LINKS]]
    assert [context_of(link) for link in span.links] == links
    assert parse_traceparent(context_of(of_client)) == CLIENT[3:35]
    assert f"{of_client.parent.span_id:016x}" == CLIENT[36:52]


@pytest.mark.parametrize(("trace_id", "given"), [(ANSWER, ""), (ANSWER, UNSAMPLED), ("own", "")])
async def test_what_is_not_sampled_has_no_span_and_samples_nothing_behind(
    trace_id: str, given: str
) -> None:
    collected = CollectedSpans(1.0 if trace_id == "own" else 0.0)
    async with serving(collected.spans) as service:
        stored = await sent(service, trace_id, given)
        items = {"items": [{"trace_id": trace_id, "type": "thumbs_down", "user_id": "u2"}]}
        headers = {"traceparent": given or UNSAMPLED}
        await service.post("/v1/feedback/batch", items, headers=headers)
    assert not is_sampled(stored)
    assert bool(stored) == bool(given)
    assert not collected.finished()


async def test_an_unsampled_batch_carries_no_header() -> None:
    assert FeedbackSpans(CollectedSpans(0.0).spans, ManualClock()).batch_context("") == ""


async def test_what_is_refused_or_not_acknowledged_has_no_span() -> None:
    collected = CollectedSpans()
    log = MemoryLog()
    async with feedback_service(log, spans=collected.spans) as service:
        answer = await service.post("/v1/feedback", {"trace_id": ANSWER, "type": "applause"})
        assert answer.status_code == 422
        log.available = False
        answer = await service.post("/v1/feedback", {"trace_id": ANSWER, "type": "thumbs_up"})
        assert answer.status_code == 503
    assert not collected.finished()


async def test_without_an_export_the_clients_header_is_stored_as_it_came() -> None:
    async with serving(OFF) as service:
        assert await sent(service, given=CLIENT) == CLIENT
        assert await sent(service, "another") == ""
