"""Webhooks: each transition as a signed POST to some addresses, retried within bounds.

Signed as Standard Webhooks (standardwebhooks.com) says: `webhook-signature` is `v1,` and the Base64
of HMAC-SHA256 over `id.timestamp.body`. The controller never waits for one.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter

from services.rollout.views import sentence
from shared.backoff import PASSING_REFUSALS, Backoff
from shared.clock import Clock
from shared.contracts.events.rollouts import Decision, DecisionKind
from shared.credentials import CredentialsUnreadable

log = structlog.get_logger(__name__)

MAX_WAITING = 200
"""Transitions that wait for one address; of more the oldest are dropped and counted."""
TRIES = 5
TIMEOUT_S = 5.0
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0
DELIVERED, REFUSED, FAILED, DROPPED = OUTCOMES = ("delivered", "refused", "failed", "dropped")


class Webhooks:
    """Delivers transitions to each address in order, apart from the other addresses."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        urls: Sequence[str],
        secret: Callable[[], str],
        clock: Clock,
        registry: CollectorRegistry,
    ) -> None:
        """`secret` reads the shared secret anew for each delivery, so that it can be rotated."""
        self._session = session
        self._secret = secret
        self._clock = clock
        self._waiting: dict[str, deque[Decision]] = {url: deque() for url in urls}
        self._grown = {url: asyncio.Event() for url in urls}
        self._deliveries = Counter(
            "ratchet_rollout_webhooks",
            "Transitions for webhooks, by what became of them",
            ("outcome",),
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._deliveries.labels(outcome)

    def announce(self, decision: Decision) -> None:
        """Have a transition delivered; a hold is none."""
        if decision.kind is DecisionKind.hold:
            return
        for url, waiting in self._waiting.items():
            if len(waiting) == MAX_WAITING:
                waiting.popleft()
                self._count(DROPPED, url, decision)
            waiting.append(decision)
            self._grown[url].set()

    async def run(self) -> None:
        """Deliver what is announced, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for url in self._waiting:
                group.create_task(self._deliver_to(url))

    async def _deliver_to(self, url: str) -> None:
        waiting, grown = self._waiting[url], self._grown[url]
        while True:
            await grown.wait()
            grown.clear()
            while waiting:
                decision = waiting.popleft()
                self._count(await self._deliver(url, decision), url, decision)

    async def _deliver(self, url: str, decision: Decision) -> str:
        body = orjson.dumps(payload(decision))
        backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S)
        for left in reversed(range(TRIES)):
            status = await self._post(url, decision.decision_id, body)
            if 200 <= status < 300:
                return DELIVERED
            if 400 <= status < 500 and status not in PASSING_REFUSALS:
                return REFUSED
            if left:
                await self._clock.sleep(backoff.next_s())
        return FAILED

    async def _post(self, url: str, delivery: str, body: bytes) -> int:
        """The receiver's status; 0 where there was none."""
        try:
            timestamp = str(int(self._clock.now().timestamp()))
            async with self._session.post(
                url,
                data=body,
                headers={
                    "content-type": "application/json",
                    "webhook-id": delivery,
                    "webhook-timestamp": timestamp,
                    "webhook-signature": signature(self._secret(), delivery, timestamp, body),
                },
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                allow_redirects=False,
            ) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError, CredentialsUnreadable) as error:
            log.warning(
                "webhook.no_answer", host=_host(url), error=f"{type(error).__name__}: {error}"
            )
            return 0

    def _count(self, outcome: str, url: str, decision: Decision) -> None:
        self._deliveries.labels(outcome).inc()
        say = log.info if outcome == DELIVERED else log.warning
        say("webhook.ended", outcome=outcome, host=_host(url), decision=decision.decision_id)


def _host(url: str) -> str:
    """What the log has of an address: the path of a chat's webhook is its secret."""
    return urlsplit(url).hostname or ""


def payload(decision: Decision) -> dict[str, Any]:
    """What a receiver gets: the transition without its evidence, which the API has."""
    shown = decision.model_dump(mode="json", exclude={"evidence", "strategy"})
    return {
        "type": f"rollout.{decision.kind.value}",
        "id": decision.decision_id,
        "sentence": sentence(decision),
        "data": shown,
    }


def signature(secret: str, delivery: str, timestamp: str, body: bytes) -> str:
    """The value of `webhook-signature`."""
    signed = b".".join((delivery.encode(), timestamp.encode(), body))
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
