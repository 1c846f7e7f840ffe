"""Webhooks: signed, retried within bounds, and never in the controller's way."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.rollout import webhooks as module
from services.rollout.webhooks import MAX_WAITING, TRIES, Webhooks
from shared.clock import SystemClock
from shared.contracts.events.rollouts import Decision, DecisionKind, Phase
from shared.testing.clock import START
from tests.support.waiting import eventually

SECRET = "the shared secret"


def decision(seq: int = 0, kind: DecisionKind = DecisionKind.weight) -> Decision:
    return Decision(
        token=1,
        seq=seq,
        kind=kind,
        model="m",
        rollout_id="r",
        stable="v1",
        candidate="v2",
        phase=Phase.progressing,
        weight=500,
        actor="controller",
        reason="setWeight 5 %",
        evidence={"judge": {"much": "more"}},
        at=START,
    )


class Receiver:
    """A receiver that keeps what it got and answers with the statuses it was given, then 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.url = ""
        self.registry = CollectorRegistry()
        self.webhooks: Webhooks

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)

    def counted(self, outcome: str) -> float | None:
        labels = {"outcome": outcome}
        return self.registry.get_sample_value("ratchet_rollout_webhooks_total", labels)

    async def ended(self, outcome: str, count: int = 1) -> None:
        await eventually(lambda: self.counted(outcome) == count, f"{count} {outcome}")


@pytest.fixture
async def receiver(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    monkeypatch.setattr(module, "BACKOFF_FIRST_S", 0.001)
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hook", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    made.url = f"http://{host}:{port}/hook"
    async with aiohttp.ClientSession() as session:
        made.webhooks = Webhooks(session, (made.url,), lambda: SECRET, SystemClock(), made.registry)
        running = asyncio.create_task(made.webhooks.run())
        yield made
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await runner.cleanup()


async def test_a_transition_is_posted_signed_and_without_its_evidence(receiver: Receiver) -> None:
    receiver.webhooks.announce(decision(kind=DecisionKind.hold))
    receiver.webhooks.announce(decision(seq=4))
    await receiver.ended("delivered")
    ((headers, body),) = receiver.got
    signed = f"1:4.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert headers["webhook-id"] == "1:4"
    said: dict[str, Any] = orjson.loads(body)
    assert (said["type"], said["data"]["weight"]) == ("rollout.weight", 500)
    assert "v2 went from 0 % to 5 %" in said["sentence"]
    assert "evidence" not in said["data"]


async def test_a_failing_receiver_is_asked_again_in_order(receiver: Receiver) -> None:
    receiver.statuses = [500, 503, 429]
    for seq in (0, 1):
        receiver.webhooks.announce(decision(seq))
    await receiver.ended("delivered", 2)
    assert [headers["webhook-id"] for headers, _ in receiver.got] == ["1:0"] * 4 + ["1:1"]


@pytest.mark.parametrize(
    ("statuses", "outcome", "tries"), [([404], "refused", 1), ([500] * TRIES, "failed", TRIES)]
)
async def test_retries_are_bounded_and_the_outcome_is_counted(
    receiver: Receiver, statuses: list[int], outcome: str, tries: int
) -> None:
    receiver.statuses = statuses
    receiver.webhooks.announce(decision())
    await receiver.ended(outcome)
    assert len(receiver.got) == tries
    receiver.webhooks.announce(decision(1))
    await receiver.ended("delivered")


async def test_what_waits_is_bounded_and_the_newest_stay(receiver: Receiver) -> None:
    for seq in range(MAX_WAITING + 5):
        receiver.webhooks.announce(decision(seq))
    assert receiver.counted("dropped") == 5
    await receiver.ended("delivered", MAX_WAITING)
    assert receiver.got[-1][0]["webhook-id"] == f"1:{MAX_WAITING + 4}"


async def test_the_log_has_the_host_of_an_address_and_not_its_path(receiver: Receiver) -> None:
    with capture_logs() as logs:
        receiver.statuses = [404]
        receiver.webhooks.announce(decision())
        await receiver.ended("refused")
    (ended,) = [entry for entry in logs if entry["event"] == "webhook.ended"]
    assert ended["host"] == "127.0.0.1"
    assert "/hook" not in str(logs)
