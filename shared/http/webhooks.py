"""Webhooks: signed POSTs of JSON to some addresses, queued and retried within bounds.

Signed as Standard Webhooks (standardwebhooks.com) says: `webhook-signature` is `v1,` and the Base64
of HMAC-SHA256 over `id.timestamp.body`. Who posts never waits for a receiver.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
import orjson
import structlog
from prometheus_client import Counter

from shared.backoff import PASSING_REFUSALS, Backoff
from shared.clock import Clock
from shared.credentials import CredentialsUnreadable
from shared.http.client import request_within
from shared.webhook_message import WebhookMessage

log = structlog.get_logger(__name__)

MAX_WAITING = 200
"""Deliveries that wait for one address; of more the oldest are dropped and counted."""
TRIES = 5
TIMEOUT_S = 5.0
"""Of one try, from connecting to the end of the answer's head."""
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0
DELIVERED, REFUSED, FAILED, DROPPED = OUTCOMES = ("delivered", "refused", "failed", "dropped")


class _Delivery(NamedTuple):
    """One body for one address, by the id that a receiver drops repeats by."""

    delivery_id: str
    body: bytes


class Webhooks:
    """Delivers JSON to each address in order, apart from the other addresses."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        urls: Sequence[str],
        secret: Callable[[], str],
        clock: Clock,
        deliveries: Counter,
    ) -> None:
        """Deliver to `urls`.

        Args:
            session: Client; redirects are not followed.
            urls: Addresses, http or https.
            secret: Reads the shared secret anew for each try, so that it can be rotated.
            clock: Times signatures and pauses.
            deliveries: Counter with the one label `outcome`, a value of OUTCOMES.

        """
        self._session = session
        self._secret = secret
        self._clock = clock
        self._waiting: dict[str, deque[_Delivery]] = {url: deque() for url in urls}
        self._grown = {url: asyncio.Event() for url in urls}
        self._deliveries = deliveries
        for outcome in OUTCOMES:
            self._deliveries.labels(outcome)

    def post(self, message: WebhookMessage) -> None:
        """Have a message delivered to each address; its id is the `webhook-id`."""
        delivery = _Delivery(message.id, orjson.dumps(message.body()))
        for url, waiting in self._waiting.items():
            if len(waiting) == MAX_WAITING:
                self._count(DROPPED, url, waiting.popleft())
            waiting.append(delivery)
            self._grown[url].set()

    async def run(self) -> None:
        """Deliver what is posted, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for url in self._waiting:
                group.create_task(self._deliver_to(url))

    async def _deliver_to(self, url: str) -> None:
        waiting, grown = self._waiting[url], self._grown[url]
        while True:
            await grown.wait()
            grown.clear()
            while waiting:
                delivery = waiting.popleft()
                self._count(await self._deliver(url, delivery), url, delivery)

    async def _deliver(self, url: str, delivery: _Delivery) -> str:
        backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S)
        for left in reversed(range(TRIES)):
            status = await self._send(url, delivery)
            if 200 <= status < 300:
                return DELIVERED
            if 400 <= status < 500 and status not in PASSING_REFUSALS:
                return REFUSED
            if left:
                await self._clock.sleep(backoff.next_s())
        return FAILED

    async def _send(self, url: str, delivery: _Delivery) -> int:
        """The receiver's status; 0 where there was none."""
        name, body = delivery
        try:
            timestamp = str(int(self._clock.now().timestamp()))
            async with request_within(
                TIMEOUT_S,
                self._session,
                "POST",
                url,
                data=body,
                headers={
                    "content-type": "application/json",
                    "webhook-id": name,
                    "webhook-timestamp": timestamp,
                    "webhook-signature": signature(self._secret(), name, timestamp, body),
                },
                allow_redirects=False,
            ) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError, CredentialsUnreadable) as error:
            log.warning(
                "webhook.no_answer", host=_host(url), error=f"{type(error).__name__}: {error}"
            )
            return 0

    def _count(self, outcome: str, url: str, delivery: _Delivery) -> None:
        self._deliveries.labels(outcome).inc()
        say = log.info if outcome == DELIVERED else log.warning
        say("webhook.ended", outcome=outcome, host=_host(url), delivery=delivery.delivery_id)


def _host(url: str) -> str:
    """What the log has of an address: the path of a chat's webhook is its secret."""
    return urlsplit(url).hostname or ""


def signature(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """The value of `webhook-signature`."""
    signed = b".".join((delivery_id.encode(), timestamp.encode(), body))
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
