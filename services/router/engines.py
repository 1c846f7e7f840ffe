"""Load balancing over engines: least in flight first, unreachable ones last."""

from __future__ import annotations

from collections.abc import Mapping
from ssl import SSLContext
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from services.router.fields import Endpoint
from shared.clock import Clock

CONNECT_TIMEOUT_S = 2.0
IDLE_CONNECTION_S = 3.0
"""Under the 5 s after which uvicorn, and with it vLLM, closes an idle connection: a connection
that closes as it is taken would look like a crash of the engine."""
DOWN_FOR_S = 1.0
"""How long an engine that refused a connection is asked last."""
READ_BYTES = 1024 * 1024

UNREACHABLE = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""Errors of a connection that never came about."""

_PATHS: dict[Endpoint, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
}


class Engine:
    """One engine and what runs on it."""

    __slots__ = ("down_until", "in_flight", "name", "urls")

    def __init__(self, base_url: str) -> None:
        self.name = base_url
        self.urls = {endpoint: URL(base_url + path) for endpoint, path in _PATHS.items()}
        self.in_flight = 0
        self.down_until = 0.0


class Engines:
    """The engines and the one HTTP client for all of them. Use as an async context manager."""

    def __init__(
        self,
        base_urls: tuple[str, ...],
        clock: Clock,
        *,
        headers: Mapping[str, str] | None = None,
        tls: SSLContext | None = None,
    ) -> None:
        """`headers` go with every request, such as the engines' key; `tls` is for https."""
        self._engines = tuple(Engine(url) for url in base_urls)
        self._clock = clock
        self._headers = headers
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the client."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=IDLE_CONNECTION_S,
                ttl_dns_cache=10,
                ssl=self._tls or True,
            ),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            auto_decompress=False,
            read_bufsize=READ_BYTES,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the client and its connections."""
        if self._session is not None:
            await self._session.close()

    @property
    def in_flight(self) -> int:
        """Requests that run on engines now."""
        return sum(engine.in_flight for engine in self._engines)

    def order(self) -> list[Engine]:
        """The engines as they are to be tried: reachable ones first, of those the least busy."""
        if len(self._engines) == 1:
            return list(self._engines)
        now = self._clock.monotonic()
        return sorted(self._engines, key=lambda one: (one.down_until > now, one.in_flight))

    def request(
        self,
        endpoint: Endpoint,
        body: bytes,
        headers: dict[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> EngineRequest:
        """A request, to be sent by `async with`; it counts as in flight while that lasts."""
        assert self._session is not None
        return EngineRequest(self, self._session, endpoint, body, headers, timeout)

    def unreachable(self, engine: Engine) -> None:
        """Ask this engine last for a while."""
        engine.down_until = self._clock.monotonic() + DOWN_FOR_S


class EngineRequest:
    """Request in flight on one engine: an async context manager that yields the response.

    Entering sends it to the first engine that takes it and returns once the head is there. An
    engine that cannot be reached got nothing of the request, so the next one is asked. Leaving by
    an exception closes the connection; else it goes back to the pool once the body was read.

    Raises (on entering):
        aiohttp.ClientError, OSError: no engine was reached, or the connection was lost.
        TimeoutError: a deadline passed.
    """

    __slots__ = (
        "_body",
        "_endpoint",
        "_engine",
        "_engines",
        "_headers",
        "_response",
        "_session",
        "_timeout",
    )

    def __init__(
        self,
        engines: Engines,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        body: bytes,
        headers: dict[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> None:
        self._engines = engines
        self._session = session
        self._endpoint: Endpoint = endpoint
        self._body = body
        self._headers = headers
        self._timeout = timeout
        self._engine: Engine | None = None
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        """Send the request."""
        engines = self._engines.order()
        for engine in engines:
            engine.in_flight += 1
            try:
                self._response = await self._session.post(
                    engine.urls[self._endpoint],
                    data=self._body,
                    headers=self._headers,
                    timeout=self._timeout,
                    allow_redirects=False,
                )
            except BaseException as error:
                engine.in_flight -= 1
                if not isinstance(error, UNREACHABLE):
                    raise
                self._engines.unreachable(engine)
                if engine is engines[-1]:
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
