"""Load balancing over engines: least in flight first, unreachable ones last.

With prefix affinity, conversations that begin alike go to one engine, which has their beginning in its
prefix cache, as long as it has no more than its share of the load: rendezvous hashing (Thaler and
Ravishankar, 1998) with the bound of consistent hashing with bounded loads (Mirrokni, Thorup and
Zadimoghaddam, 2018).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b
from ssl import SSLContext
from types import TracebackType
from typing import Self

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
"""How long an engine that refused a connection is asked last."""

_PATHS: dict[Endpoint, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
    "messages": "/v1/messages",
}


class Engine:
    """One engine and what runs on it."""

    __slots__ = ("down_until", "in_flight", "name", "pool")

    def __init__(self, base_url: str, pool: EnginePool) -> None:
        self.name = base_url
        self.pool = pool
        self.in_flight = 0
        self.down_until = 0.0


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
    ) -> None:
        """`headers` go with every request, such as the engines' key; `tls` is for https."""
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

    def order(self, prefix: bytes = b"") -> list[Engine]:
        """The engines as they are to be tried: reachable ones first, of those the least busy.

        With a `prefix`, the first is the one that its hash names of those with room by AFFINITY_LOAD.
        """
        if len(self._engines) == 1:
            return list(self._engines)
        now = self._clock.monotonic()
        order = sorted(self._engines, key=lambda one: (one.down_until > now, one.in_flight))
        reachable = [one for one in order if one.down_until <= now]
        if prefix and reachable:
            chosen = _by_prefix(reachable, prefix)
            order.remove(chosen)
            order.insert(0, chosen)
        return order

    def request(
        self,
        endpoint: Endpoint,
        body: bytes,
        headers: dict[str, str],
        deadlines: AttemptDeadlines,
        prefix: bytes = b"",
    ) -> EngineRequest:
        """A request, to be sent by `async with`; it counts as in flight while that lasts."""
        return EngineRequest(self, endpoint, body, headers, deadlines, prefix)

    def unreachable(self, engine: Engine) -> None:
        """Ask this engine last for a while."""
        engine.down_until = self._clock.monotonic() + DOWN_FOR_S


class EngineRequest:
    """Request in flight on one engine: an async context manager that yields the response.

    Entering sends it to the first engine that takes it and returns once the head is there. An
    engine that cannot be reached got nothing of the request, so the next one is asked. Leaving by
    an exception closes the connection; else it goes back to the pool once the body was read.

    Raises (on entering):
        ConnectFailed: no engine was reached.
        ConnectionLost: the connection ended.
        TimeoutError: a deadline passed.
    """

    __slots__ = (
        "_body",
        "_deadlines",
        "_endpoint",
        "_engine",
        "_engines",
        "_headers",
        "_prefix",
        "_response",
    )

    def __init__(
        self,
        engines: Engines,
        endpoint: Endpoint,
        body: bytes,
        headers: dict[str, str],
        deadlines: AttemptDeadlines,
        prefix: bytes,
    ) -> None:
        self._engines = engines
        self._endpoint: Endpoint = endpoint
        self._body = body
        self._headers = headers
        self._deadlines = deadlines
        self._prefix = prefix
        self._engine: Engine | None = None
        self._response: HttpResponse | None = None

    async def __aenter__(self) -> HttpResponse:
        """Send the request."""
        engines = self._engines.order(self._prefix)
        for engine in engines:
            engine.in_flight += 1
            try:
                self._response = await engine.pool.post(
                    _PATHS[self._endpoint], self._body, self._headers, self._deadlines
                )
            except ConnectFailed:
                engine.in_flight -= 1
                self._engines.unreachable(engine)
                if engine is engines[-1]:
                    raise
            except BaseException:
                engine.in_flight -= 1
                raise
            else:
                self._engine = engine
                return self._response
        raise AssertionError("there is at least one engine")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """The engine is done with it."""
        assert self._engine is not None
        assert self._response is not None
        self._engine.in_flight -= 1
        if kind is not None:
            self._response.close()


def _by_prefix(engines: list[Engine], prefix: bytes) -> Engine:
    """The engine of a prefix's highest hash, of those that one request more leaves in the bound."""
    running = 1 + sum(one.in_flight for one in engines)
    most = math.ceil(AFFINITY_LOAD * running / len(engines))
    room = [one for one in engines if one.in_flight < most]
    return max(room, key=lambda one: blake2b(prefix + one.name.encode(), digest_size=8).digest())
