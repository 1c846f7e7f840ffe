"""Load balancing over engines: least in flight first, unreachable ones last; retries on others.

Engines need not serve the same: while a version on another base is rolled out, some have it and others
have its predecessor. One that answers 404 for a model is asked last for it for a while. The inference
services before them are chosen alike, for moderated generation.

With prefix affinity, conversations that begin alike go to one engine, which has their beginning in its
prefix cache, as long as it has no more than its share of the load: rendezvous hashing (Thaler and
Ravishankar, 1998) with the bound of consistent hashing with bounded loads (Mirrokni, Thorup and
Zadimoghaddam, 2018).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from hashlib import blake2b
from ssl import SSLContext
from types import TracebackType
from typing import Literal, Self

from services.router.engine_connection import (
    AttemptDeadlines,
    ConnectFailed,
    EnginePool,
    HttpResponse,
)
from services.router.fields import Endpoint
from shared.clock import Clock

AFFINITY_LOAD = 1.25
"""Most of the mean load that affinity gives an engine."""
DOWN_FOR_S = 1.0
"""How long an engine that refused a connection, or stops, is asked last."""
LACKS_FOR_S = 5.0
"""How long an engine that answered 404 for a model is asked last for it."""
MAX_LACKED = 64
"""Models that an engine is remembered to lack; the oldest is forgotten."""


class RetryReason(StrEnum):
    """Why another engine was asked in the same attempt."""

    unreachable = "unreachable"
    unavailable = "unavailable"
    """Status 503: it drains, or has too much to do."""
    missing = "missing"
    """Status 404: it has started and its adapters are not loaded yet, or serves another base."""
    given_up = "given_up"


_TURNED_AWAY = {503: RetryReason.unavailable, 404: RetryReason.missing}
_STOPS = frozenset((RetryReason.unavailable, RetryReason.given_up))

EnginePath = Endpoint | Literal["moderated"]

_PATHS: dict[EnginePath, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
    "messages": "/v1/messages",
    "moderated": "/v1/moderated",
}


class Engine:
    """One engine and what runs on it."""

    __slots__ = ("down_until", "in_flight", "lacks_until", "name", "pool")

    def __init__(self, base_url: str, pool: EnginePool) -> None:
        self.name = base_url
        self.pool = pool
        self.in_flight = 0
        self.down_until = 0.0
        self.lacks_until: dict[str, float] = {}
        """By model; the oldest first."""

    def lacks(self, model: str, now: float) -> bool:
        """Whether it was asked for the model a moment ago and did not have it."""
        return self.lacks_until.get(model, now) > now

    def note_lack(self, model: str, until: float) -> None:
        """Ask it last for the model until then."""
        self.lacks_until.pop(model, None)
        if len(self.lacks_until) == MAX_LACKED:
            del self.lacks_until[next(iter(self.lacks_until))]
        self.lacks_until[model] = until


class Engines:
    """The engines and the connections to them. Use as an async context manager."""

    def __init__(
        self,
        base_urls: tuple[str, ...],
        clock: Clock,
        *,
        headers: Mapping[str, str] | None = None,
        tls: SSLContext | None = None,
        affinity: bool = False,
        retried: Callable[[RetryReason], None] = lambda _reason: None,
    ) -> None:
        """`headers` go with every request, such as the engines' key; `tls` is for https.

        `retried` is called for each request that another engine is asked for.
        """
        self.retried = retried
        self.affinity = affinity and len(base_urls) > 1
        """Whether requests name their prefix."""
        self._engines = tuple(
            Engine(url, EnginePool(url, headers=headers, tls=tls)) for url in base_urls
        )
        self._clock = clock

    async def __aenter__(self) -> Self:
        """Connections are made as they are needed."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        for engine in self._engines:
            await engine.pool.close()

    @property
    def in_flight(self) -> int:
        """Requests that run on engines now."""
        return sum(engine.in_flight for engine in self._engines)

    def order(self, prefix: bytes = b"", model: str = "") -> list[Engine]:
        """The engines as they are to be tried: those that have the model first, of those the
        reachable ones, of those the least busy.

        With a `prefix`, the first is the one that its hash names of those with room by AFFINITY_LOAD.
        """
        if len(self._engines) == 1:
            return list(self._engines)
        now = self._clock.monotonic()
        order = sorted(
            self._engines,
            key=lambda one: (one.lacks(model, now), one.down_until > now, one.in_flight),
        )
        if not prefix:
            return order
        reachable = [one for one in order if one.down_until <= now and not one.lacks(model, now)]
        if reachable:
            chosen = _by_prefix(reachable, prefix)
            order.remove(chosen)
            order.insert(0, chosen)
        return order

    def request(
        self,
        endpoint: EnginePath,
        body: bytes,
        headers: dict[str, str],
        deadlines: AttemptDeadlines,
        *,
        model: str = "",
        prefix: bytes = b"",
    ) -> EngineRequest:
        """A request, to be sent by `async with`; it counts as in flight while that lasts.

        `model` is its name at the engines; the body has it, too.
        """
        return EngineRequest(self, endpoint, body, headers, deadlines, model, prefix)

    def unreachable(self, engine: Engine) -> None:
        """Ask this engine last for a while."""
        engine.down_until = self._clock.monotonic() + DOWN_FOR_S

    def missing(self, engine: Engine, model: str) -> None:
        """Ask this engine last for the model for a while."""
        engine.note_lack(model, self._clock.monotonic() + LACKS_FOR_S)


class EngineRequest:
    """Request in flight on one engine: an async context manager that yields the response.

    Entering sends it to the first engine that takes it and returns once the head is there. One that
    cannot be reached, or answers 503 or 404, did nothing for the request, so the next is asked, each
    once and all within the request's deadlines; the last one's 503 or 404 is the response. An only
    URL may have several engines behind it (a Service of Kubernetes): it is asked a second time, over
    a new connection, where one of them is about to stop. Leaving by an exception closes the
    connection; else it goes back to the pool once the body was read.

    Raises (on entering):
        ConnectFailed: no engine was reached.
        ConnectionLost: the connection ended.
        TimeoutError: a deadline passed.
    """

    __slots__ = (
        "_anew",
        "_body",
        "_deadlines",
        "_endpoint",
        "_engine",
        "_engines",
        "_headers",
        "_model",
        "_only",
        "_response",
        "_until",
        "_untried",
    )

    def __init__(
        self,
        engines: Engines,
        endpoint: EnginePath,
        body: bytes,
        headers: dict[str, str],
        deadlines: AttemptDeadlines,
        model: str,
        prefix: bytes,
    ) -> None:
        self._engines = engines
        self._endpoint: EnginePath = endpoint
        self._body = body
        self._headers = headers
        self._deadlines = deadlines
        self._model = model
        self._until = asyncio.get_running_loop().time() + deadlines.total_s
        self._untried = engines.order(prefix, model)
        self._engine = self._untried.pop(0)
        self._only = not self._untried
        self._anew = False
        self._response: HttpResponse | None = None

    async def __aenter__(self) -> HttpResponse:
        """Send the request."""
        while True:
            self._engine.in_flight += 1
            try:
                response = await self._engine.pool.post(
                    _PATHS[self._endpoint],
                    self._body,
                    self._headers,
                    self._deadlines,
                    anew=self._anew,
                )
            except ConnectFailed:
                self._engine.in_flight -= 1
                if not self._next(RetryReason.unreachable):
                    raise
                continue
            except BaseException:
                self._engine.in_flight -= 1
                raise
            reason = _TURNED_AWAY.get(response.status)
            engine = self._engine
            if reason is None or not self._next(reason):
                self._response = response
                return response
            engine.in_flight -= 1
            response.close()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """The engine is done with it."""
        assert self._response is not None
        self._engine.in_flight -= 1
        if kind is not None:
            self._response.close()

    def given_up(self) -> bool:
        """Take note that the engine gave its answer up; whether another can be entered for."""
        return self._next(RetryReason.given_up)

    def _next(self, reason: RetryReason) -> bool:
        """Go on to the next engine, if there is one that may have the answer."""
        if reason is RetryReason.missing:
            self._engines.missing(self._engine, self._model)
        else:
            self._engines.unreachable(self._engine)
        if self._untried:
            self._engine = self._untried.pop(0)
        elif self._only and not self._anew and reason in _STOPS:
            self._anew = True
        else:
            return False
        left_s = self._until - asyncio.get_running_loop().time()
        self._deadlines = self._deadlines._replace(total_s=left_s)
        self._engines.retried(reason)
        return True


def _by_prefix(engines: list[Engine], prefix: bytes) -> Engine:
    """The engine of a prefix's highest hash, of those that one request more leaves in the bound."""
    running = 1 + sum(one.in_flight for one in engines)
    most = math.ceil(AFFINITY_LOAD * running / len(engines))
    room = [one for one in engines if one.in_flight < most]
    return max(room, key=lambda one: blake2b(prefix + one.name.encode(), digest_size=8).digest())
