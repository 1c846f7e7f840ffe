"""The intake's handler on a log in memory."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.feedback.circuit_breaker import CircuitBreaker
from services.feedback.errors import EventTooLarge
from services.feedback.intake.handler import INTAKE_MODELS, INTAKE_TOPIC, Intake
from services.feedback.metrics import FeedbackMetrics
from services.feedback.publisher import MAX_RECORD_BYTES, FeedbackPublisher, feedback_record
from services.feedback.submissions import submitted
from shared.contracts.catalogue import INTAKE
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType, FeedbackWithdrawn
from shared.contracts.events.intake import Submission, Withdrawal
from shared.contracts.generate import CONTRACTS
from shared.contracts.topics import FEEDBACK, intake_topic
from shared.kafka.consumer import Reject
from shared.kafka.envelope import Headers, decode, header
from shared.kafka.log import LogUnavailable, Record, record_bytes
from shared.observability.spans import OFF, Spans, nanoseconds
from shared.observability.tracing import derived_trace_id, interaction_traceparent
from shared.quotas import Quotas, RateLimits
from shared.redaction.redactor import Redactor
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.feedback import UNLIMITED, event_of
from tests.support.spans import CollectedSpans, context_of

SUBMITTED: Headers = (("ce_type", FeedbackSubmitted.ce_type.encode()),)
WITHDRAWN: Headers = (("ce_type", FeedbackWithdrawn.ce_type.encode()),)


NOW_S = 1_770_000_060


def record_of(
    body: Any,
    headers: Headers = SUBMITTED,
    tenant: str = "acme",
    timestamp_ms: int = 1_770_000_000_123,
) -> Record:
    return Record(
        topic=intake_topic(tenant),
        partition=2,
        offset=7,
        key="any",
        value=orjson.dumps(body),
        headers=headers,
        timestamp_ms=timestamp_ms,
    )


async def handle(
    log: MemoryLog,
    record: Record,
    *,
    quotas: Quotas = UNLIMITED,
    registry: CollectorRegistry | None = None,
    spans: Spans = OFF,
) -> None:
    clock = ManualClock(datetime.fromtimestamp(NOW_S, UTC))
    metrics = FeedbackMetrics(registry or CollectorRegistry())
    publisher = FeedbackPublisher(log, CircuitBreaker(max_waiting=10), metrics, clock, timeout_s=1)
    intake = Intake(
        publisher, metrics, redact=Redactor().text, clock=clock, quotas=quotas, spans=spans
    )
    await intake.handle(decode(record.headers, record.value, INTAKE_MODELS), record)


async def test_a_submission_gets_its_tenant_from_the_topic_and_its_time_from_the_record() -> None:
    log = MemoryLog()
    record = record_of({"trace_id": "t", "type": "rating", "value": 4, "user_id": "u"})
    await handle(log, record)
    await handle(log, record)
    first, second = log.all(FEEDBACK)
    assert (first.key, first.value, first.headers) == (second.key, second.value, second.headers)
    event = event_of(first)
    assert (event.tenant, event.value) == ("acme", 4)
    assert event.submitted_at.timestamp() == pytest.approx(1_770_000_000.123)


async def test_a_withdrawal_comes_this_way_too() -> None:
    log = MemoryLog()
    body = {"trace_id": "t", "feedback_id": "f", "type": "comment", "revision": 2}
    await handle(log, record_of(body, WITHDRAWN))
    assert isinstance(event_of(log.all(FEEDBACK)[0]), FeedbackWithdrawn)


@pytest.mark.parametrize(
    "path", sorted((CONTRACTS / "examples").glob("*intake*.json")), ids=lambda path: path.stem
)
async def test_what_the_published_contract_shows_is_taken(path: Path) -> None:
    name = path.stem.partition("+")[0]
    body = orjson.loads(path.read_bytes())
    jsonschema.validate(body, orjson.loads((CONTRACTS / "schemas" / f"{name}.json").read_bytes()))
    log = MemoryLog()
    kind = INTAKE[name].ce_type
    await handle(log, record_of(body, (("ce_type", kind.encode()),)))
    stored = event_of(log.all(FEEDBACK)[0])
    trace_id = ":".join((*filter(None, [body.get("source")]), body["trace_id"]))
    assert (stored.ce_type, stored.tenant, stored.trace_id) == (kind, "acme", trace_id)


@pytest.mark.parametrize(
    ("body", "reason", "named"),
    [
        ({"trace_id": "t", "type": "rating", "value": 9}, "schema", "value"),
        ({"type": "rating", "value": 4}, "schema", "trace_id"),
        ({"trace_id": "t", "type": "thumbs_up", "tenant": "other"}, "schema", "tenant"),
        (
            {"trace_id": "t", "type": "thumbs_up", "metadata": {"tenant": "other"}},
            "schema",
            "metadata.tenant",
        ),
    ],
)
async def test_what_breaks_a_rule_is_rejected_with_field_and_rule(
    body: Any, reason: str, named: str
) -> None:
    log = MemoryLog()
    with pytest.raises(Reject, match=named) as caught:
        await handle(log, record_of(body))
    assert caught.value.reason == reason
    assert "?" not in str(caught.value), "a record has no query to ask by"
    assert log.all(FEEDBACK) == []


@pytest.mark.parametrize("off_s", [-40 * 86_400, 600, 40 * 86_400])
async def test_a_producers_clock_that_is_far_off_is_told_and_spreads_nothing(off_s: int) -> None:
    log = MemoryLog()
    body = {"trace_id": "t", "type": "thumbs_up", "user_id": "u"}
    with pytest.raises(Reject, match=r"timestamp: of the record is .*set the clock"):
        await handle(log, record_of(body, timestamp_ms=(NOW_S + off_s) * 1000))
    assert log.all(FEEDBACK) == []
    await handle(log, record_of(body, timestamp_ms=(NOW_S - 86_400) * 1000))
    assert len(log.all(FEEDBACK)) == 1


async def test_how_long_records_waited_is_counted_once_each_is_stored() -> None:
    log, registry = MemoryLog(), CollectorRegistry()
    body = {"trace_id": "t", "type": "thumbs_up", "user_id": "u"}
    late = record_of(body, timestamp_ms=(NOW_S - 400) * 1000)
    log.available = False
    with pytest.raises(LogUnavailable):
        await handle(log, late, registry=registry)
    assert registry.get_sample_value("ratchet_intake_age_seconds_count") == 0
    log.available, registry = True, CollectorRegistry()
    await handle(log, late, registry=registry)
    assert registry.get_sample_value("ratchet_intake_age_seconds_sum") == 400
    registry = CollectorRegistry()
    await handle(log, record_of(body, timestamp_ms=(NOW_S + 5) * 1000), registry=registry)
    assert registry.get_sample_value("ratchet_intake_age_seconds_sum") == 0


async def test_a_tenant_over_its_quota_holds_up_no_other_and_its_records_are_kept() -> None:
    log, quotas = MemoryLog(), Quotas(key=lambda _: RateLimits(), tenant=RateLimits(2))
    body = {"trace_id": "t", "type": "thumbs_up", "user_id": "u"}
    for _ in "ab":
        await handle(log, record_of(body), quotas=quotas)
    with pytest.raises(Reject, match=r"policy: rate limit of the tenant .*replay") as refused:
        await handle(log, record_of(body), quotas=quotas)
    assert refused.value.reason == "policy"
    await handle(log, record_of(body, tenant="other"), quotas=quotas)
    assert len(log.all(FEEDBACK)) == 3


async def test_tries_of_an_outage_do_not_use_up_the_quota() -> None:
    log, quotas = MemoryLog(), Quotas(key=lambda _: RateLimits(), tenant=RateLimits(2))
    record = record_of({"trace_id": "t", "type": "thumbs_up", "user_id": "u"})
    log.available = False
    for _ in range(5):
        with pytest.raises(LogUnavailable):
            await handle(log, record, quotas=quotas)
    log.available = True
    await handle(log, record, quotas=quotas)
    assert len(log.all(FEEDBACK)) == 1


@pytest.mark.parametrize("timestamp_ms", [-1, 1_500_000_000_000, 2**45, -(2**63), 2**63 - 1])
async def test_a_withdrawal_at_an_odd_time_is_stored_or_rejected(timestamp_ms: int) -> None:
    log = MemoryLog()
    body = {"trace_id": "t", "feedback_id": "f", "type": "comment"}
    with pytest.raises(Reject, match=r"revision|timestamp") as caught:
        await handle(log, record_of(body, WITHDRAWN, timestamp_ms=timestamp_ms))
    assert caught.value.reason == "schema"
    assert log.all(FEEDBACK) == []


@given(
    body=st.dictionaries(
        st.sampled_from((*Submission.model_fields, *Withdrawal.model_fields, "odd")),
        st.sampled_from((*FeedbackType, "", "x", "\x00", None, 0, 3, -1, 2**40, [], {}, True)),
    ),
    headers=st.sampled_from((SUBMITTED, WITHDRAWN)),
    timestamp_ms=st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2**42),
)
async def test_a_record_of_any_kind_is_stored_or_rejected(
    body: dict[str, Any], headers: Headers, timestamp_ms: int
) -> None:
    with contextlib.suppress(Reject):
        await handle(MemoryLog(), record_of(body, headers, timestamp_ms=timestamp_ms))


async def test_a_record_that_is_too_large_is_rejected_as_such() -> None:
    text = "é" * 100_000
    body = {
        "trace_id": "t",
        "type": "preference",
        "value": {"chosen": "…" * 100_000, "rejected": "–" * 100_000},
        "source": "old",
        "model": "assistant",
        "prompt": text,
        "completion": text,
    }
    with pytest.raises(Reject) as caught:
        await handle(MemoryLog(), record_of(body))
    assert caught.value.reason == "too_large"


async def test_what_the_brokers_refuse_for_good_is_rejected_and_not_tried_again() -> None:
    """Case oversized-traceparent."""
    log = MemoryLog()
    log.max_record_bytes = 5_000
    body = {"trace_id": "t", "type": "comment", "value": "x" * 6_000}
    with pytest.raises(Reject, match="more than the brokers take") as caught:
        await handle(log, record_of(body))
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize("filler", ["é", "x"])
async def test_key_headers_and_value_are_measured_together(filler: str) -> None:
    """Case oversized-traceparent: no record over the limit reaches the log, whatever is long in it."""
    event = submitted(
        Submission(trace_id=filler * 200, type=FeedbackType.thumbs_up, feedback_id=filler * 200),
        tenant="acme",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        redact=str,
    )
    record = feedback_record(event)
    room = MAX_RECORD_BYTES - record_bytes(record) - len("traceparent")
    assert record_bytes(feedback_record(event, traceparent="0" * room)) == MAX_RECORD_BYTES
    with pytest.raises(EventTooLarge):
        feedback_record(event, traceparent="0" * (room + 1))


async def test_with_the_log_away_the_record_is_to_be_tried_again() -> None:
    log = MemoryLog()
    log.available = False
    with pytest.raises(LogUnavailable):
        await handle(log, record_of({"trace_id": "t", "type": "thumbs_up"}))


@pytest.mark.parametrize("tenant", ["default", "acme", "a.b-c"])
def test_topics_and_tenants_belong_together(tenant: str) -> None:
    found = INTAKE_TOPIC.match(intake_topic(tenant))
    assert found is not None
    assert found["tenant"] == tenant


@pytest.mark.parametrize("given", ["", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"])
async def test_a_record_has_a_span_and_read_again_the_same(given: str) -> None:
    collected, log = CollectedSpans(0.0 if given else 1.0), MemoryLog()
    answer = derived_trace_id("an answer")
    headers = (*SUBMITTED, *((("traceparent", given.encode()),) if given else ()))
    record = record_of({"trace_id": answer, "type": "thumbs_up", "user_id": "u"}, headers)
    for _ in range(2):
        await handle(log, record, spans=collected.spans)
    first, again = collected.finished()
    assert first.name == "process feedback-intake"
    assert context_of(first) == context_of(again)
    stored = {header(record.headers, "traceparent") for record in log.all(FEEDBACK)}
    assert stored == {context_of(first)}
    assert context_of(first.parent) == (given or interaction_traceparent(answer))
    assert [context_of(link) for link in first.links] == (
        [interaction_traceparent(answer)] if given else []
    )
    assert first.start_time == nanoseconds(event_of(log.all(FEEDBACK)[0]).submitted_at)
