"""Whatever is sent, the service answers, and the next good request succeeds."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.feedback.circuit_breaker import CircuitBreaker
from services.feedback.intake.handler import INTAKE_MODELS, Intake
from services.feedback.metrics import FeedbackMetrics
from services.feedback.publisher import FeedbackPublisher
from shared.kafka.consumer import Reject
from shared.kafka.envelope import UnreadableRecord, decode
from shared.kafka.log import Record
from shared.redaction import Redactor
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.feedback import UNLIMITED, feedback_service
from tests.support.fuzzing import Mutations

REQUESTS = (2_000, pytest.param(40_000, marks=[pytest.mark.verify, pytest.mark.timeout(3600)]))
PUBLISHED = datetime.fromtimestamp(1_700_000_000, UTC)
RECORDS = (1_500, pytest.param(25_000, marks=[pytest.mark.verify, pytest.mark.timeout(3600)]))
EXAMPLES = Path(__file__).parents[3] / "shared/contracts/examples"
GOOD: dict[str, Any] = {"trace_id": "t", "type": "thumbs_up"}
PATHS = ("/v1/feedback", "/v1/feedback", "/v1/feedback/batch", "/v1/comparisons/c/vote")


def submissions() -> list[dict[str, Any]]:
    paths = sorted(EXAMPLES.glob("ratchet.feedback-intake.*.json"))
    assert len(paths) > 5
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize("count", REQUESTS)
async def test_no_request_breaks_the_service(count: int) -> None:
    mutations, bodies = Mutations(seed=9), submissions()
    async with feedback_service(MemoryLog()) as service:
        for number in range(count):
            path, valid = mutations.rng.choice(PATHS), mutations.rng.choice(bodies)
            body = mutations.body({"items": [valid, valid]} if "batch" in path else valid)
            headers = [*mutations.headers(), (b"x-number", str(number).encode())]
            answer = await service.client.post(path, content=body, headers=headers)
            assert answer.status_code < 500, (path, body[:500], headers, answer.text)
            if number % 50 == 0:
                query = {"trace_id": mutations.value("t"), "x": mutations.value("y")}
                identity = mutations.rng.choice(("f", "%00", "..%2f..", "%f0%9f%98%80", "x" * 300))
                gone = await service.client.delete(
                    f"/v1/feedback/{identity}",
                    params={name: json.dumps(value) for name, value in query.items()},
                )
                assert gone.status_code < 500, (identity, query, gone.text)
                assert (await service.post("/v1/feedback", GOOD)).status_code == 202


@pytest.mark.parametrize("count", RECORDS)
async def test_no_record_breaks_the_intake(count: int) -> None:
    mutations, bodies, log = Mutations(seed=10), submissions(), MemoryLog()
    metrics, clock = FeedbackMetrics(CollectorRegistry()), ManualClock(PUBLISHED)
    breaker = CircuitBreaker(max_waiting=1_000)
    publisher = FeedbackPublisher(log, breaker, metrics, clock, timeout_s=4.0)
    intake = Intake(publisher, metrics, redact=Redactor().text, clock=clock, quotas=UNLIMITED)
    kinds = [kind.encode() for kind in INTAKE_MODELS]
    taken = 0
    for offset in range(count):
        record = Record(
            topic="ratchet.feedback-intake.acme.v1",
            partition=0,
            offset=offset,
            key="k",
            value=mutations.body(mutations.rng.choice(bodies)),
            headers=(
                ("ce_type", mutations.rng.choice(kinds)),
                *((name.decode(), value) for name, value in mutations.headers()),
            ),
            timestamp_ms=mutations.rng.choice((1_700_000_000_000, 1_700_000_000_000, 0, 2**62)),
        )
        try:
            await intake.handle(decode(record.headers, record.value, INTAKE_MODELS), record)
        except (Reject, UnreadableRecord):
            continue
        taken += 1
    assert taken > count // 50, "the mutations let hardly anything through"
