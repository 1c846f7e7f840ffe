"""Webhooks: signed, retried within bounds, and never in the way of who posts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter
from structlog.testing import capture_logs

from shared.clock import SystemClock
from shared.http import webhooks as module
from shared.http.webhooks import MAX_WAITING, TRIES, Webhooks
from shared.testing.clock import START
from shared.webhook_message import WebhookMessage
from tests.support.waiting import eventually
from tests.support.webhooks import SECRET, WebhookReceiver, is_signed


class Deliveries:
    """Webhooks to one receiver, with their counter."""

    def __init__(self, receiver: WebhookReceiver, session: aiohttp.ClientSession) -> None:
        self.receiver = receiver
        self.registry = CollectorRegistry()
        counter = Counter("deliveries", "by outcome", ("outcome",), registry=self.registry)
        self.webhooks = Webhooks(session, (receiver.url,), lambda: SECRET, SystemClock(), counter)

    def post(self, number: int = 0) -> None:
        self.webhooks.post(WebhookMessage("t", f"d:{number}", START, "said", {"number": number}))

    def counted(self, outcome: str) -> float | None:
        return self.registry.get_sample_value("deliveries_total", {"outcome": outcome})

    async def ended(self, outcome: str, count: int = 1) -> None:
        await eventually(lambda: self.counted(outcome) == count, f"{count} {outcome}")


@pytest.fixture
async def sent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Deliveries]:
    monkeypatch.setattr(module, "BACKOFF_FIRST_S", 0.001)
    receiver = WebhookReceiver()
    async with receiver.listening(), aiohttp.ClientSession() as session:
        made = Deliveries(receiver, session)
        running = asyncio.create_task(made.webhooks.run())
        yield made
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_delivery_is_signed_and_has_its_id(sent: Deliveries) -> None:
    sent.post(4)
    await sent.ended("delivered")
    ((headers, body),) = sent.receiver.got
    assert is_signed(headers, body)
    assert headers["webhook-id"] == "d:4"
    assert json.loads(body) == {
        "type": "t",
        "id": "d:4",
        "timestamp": START.isoformat(),
        "text": "said",
        "data": {"number": 4},
    }


async def test_a_failing_receiver_is_asked_again_in_order(sent: Deliveries) -> None:
    sent.receiver.statuses = [500, 503, 429]
    for number in (0, 1):
        sent.post(number)
    await sent.ended("delivered", 2)
    assert [headers["webhook-id"] for headers, _ in sent.receiver.got] == ["d:0"] * 4 + ["d:1"]


@pytest.mark.parametrize(
    ("statuses", "outcome", "tries"),
    [
        ([404], "refused", 1),
        ([500] * TRIES, "failed", TRIES),
        pytest.param([307] * TRIES, "failed", TRIES, id="a redirect is not followed"),
    ],
)
async def test_retries_are_bounded_and_the_outcome_is_counted(
    sent: Deliveries, statuses: list[int], outcome: str, tries: int
) -> None:
    sent.receiver.statuses = statuses
    sent.post()
    await sent.ended(outcome)
    assert len(sent.receiver.got) == tries
    sent.post(1)
    await sent.ended("delivered")


async def test_a_receiver_that_never_answers_is_given_up_by_the_deadline(
    sent: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    sent.receiver.silent = True
    sent.post()
    await sent.ended("failed")
    assert len(sent.receiver.got) == TRIES


async def test_what_waits_is_bounded_and_the_newest_stay(sent: Deliveries) -> None:
    for number in range(MAX_WAITING + 5):
        sent.post(number)
    assert sent.counted("dropped") == 5
    await sent.ended("delivered", MAX_WAITING)
    assert sent.receiver.got[-1][0]["webhook-id"] == f"d:{MAX_WAITING + 4}"


async def test_the_log_has_the_host_of_an_address_and_not_its_path(sent: Deliveries) -> None:
    with capture_logs() as logs:
        sent.receiver.statuses = [404]
        sent.post()
        await sent.ended("refused")
    (ended,) = [entry for entry in logs if entry["event"] == "webhook.ended"]
    assert ended["host"] == "127.0.0.1"
    assert "/hook" not in str(logs)
