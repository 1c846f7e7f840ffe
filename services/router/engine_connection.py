"""Connection pool of one engine: HTTP/1.1 on httptools, one request at a time on each connection.

Of a general client's work (redirects, cookies, proxies, decompression, tracing) a POST to an engine
needs nothing, and it costs more than all else that the router does (docs/decisions/0025).
"""

# pyright: basic, reportMissingTypeStubs=false
# httptools has no types.
from __future__ import annotations

import asyncio
import base64
import math
import ssl
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, cast
from urllib.parse import unquote, urlsplit

import httptools

CONNECT_TIMEOUT_S = 2.0
IDLE_CONNECTION_S = 3.0
"""Under the 5 s after which uvicorn, and with it vLLM, closes an idle connection: a connection
that closes as it is taken would look like a crash of the engine."""
CHECK_S = 1.0
"""A connection looks at its deadlines this often: a timer for each request would cost a microsecond
to set and another to cancel. A deadline that comes before the next look sets its own timer."""
READ_BYTES = 1024 * 1024
"""What an answer's reader may leave unread before the connection stops reading (backpressure)."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Of a body that is read whole."""
MAX_HEAD_BYTES = 64 * 1024
"""Of a response's head, and of what follows a body without being of it."""
PORTS = {"http": 80, "https": 443}
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))


class ConnectFailed(OSError):
    """The connection to an engine never came about, so the engine got nothing of the request."""


class ConnectionLost(OSError):
    """The connection ended, or said what is no HTTP, before the whole answer was there."""


class EngineAnswerTooLarge(OSError):
    """The engine sent more than MAX_ANSWER_BYTES for one whole answer, or MAX_HEAD_BYTES of head."""


class AttemptDeadlines(NamedTuple):
    """Seconds for one request: all of it, and each wait for a part of its answer (None: as long)."""

    total_s: float
    part_s: float | None = None


class HttpResponse:
    """An engine's response; its head is there once `EnginePool.post` returns it.

    Reading it to its end gives the connection back to the pool; what is not read has to be closed.
    """

    __slots__ = ("_chunks", "_complete", "_connection", "_error", "_limit", "_size", "_waiter",
                 "content_type", "status")  # fmt: skip

    def __init__(self, connection: EngineConnection) -> None:
        self.status = 0
        self.content_type = b""
        self._connection = connection
        self._chunks: list[bytes] = []
        self._size = 0
        self._limit = READ_BYTES
        self._complete = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def head(self) -> None:
        """Wait for the head.

        Raises:
            ConnectionLost: the connection ended. TimeoutError: a deadline passed.
            EngineAnswerTooLarge: it is over MAX_HEAD_BYTES.

        """
        while not self.status:
            await self._more()

    async def read(self, limit: int | None = None) -> bytes:
        """The whole rest of the body, up to `limit` bytes, else MAX_ANSWER_BYTES. Raises as `head` does.

        Raises:
            EngineAnswerTooLarge: it is over the limit.

        """
        self._limit = limit or MAX_ANSWER_BYTES
        self._connection.resume_reading()
        while not self._complete and self._size <= self._limit:
            await self._more()
        if self._size > self._limit:
            raise EngineAnswerTooLarge(f"the answer is larger than {self._limit} bytes")
        return self._take()

    async def readany(self) -> bytes:
        """What is there of the body, or comes next; empty at its end. Raises as `head` does."""
        while not self._chunks and not self._complete:
            await self._more()
        return self._take()

    def close(self) -> None:
        """Read no more of it; a response that is not complete takes its connection with it."""
        if not self._complete:
            self._connection.close()

    def begin(self, status: int) -> None:
        """The head has come."""
        self.status = status
        self._wake()

    def feed(self, data: bytes) -> bool:
        """A piece of the body has come; False where the reader should catch up first."""
        self._chunks.append(data)
        self._size += len(data)
        self._wake()
        return self._size <= self._limit

    def end(self) -> None:
        """The body is whole."""
        self._complete = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """No more will come."""
        self._error = error
        self._wake()

    def _take(self) -> bytes:
        chunks, self._chunks = self._chunks, []
        self._size = 0
        self._connection.resume_reading()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineConnection(asyncio.Protocol):
    """A connection to an engine, for one request at a time; closes itself when it was idle."""

    def __init__(self, pool: EnginePool) -> None:
        self._pool = pool
        self.loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._response: HttpResponse | None = None
        self._framed = self._keep_alive = self._ended = self._paused = False
        self._no_body = 0
        """Bytes since the last that were of a body."""
        self._total_until = self._until = math.inf
        self._part_s: float | None = None
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def send(self, request: bytes, deadlines: AttemptDeadlines) -> HttpResponse:
        """Send a request; the connection must be idle."""
        assert self._transport is not None
        response = self._response = HttpResponse(self)
        self._framed = False
        self._no_body = 0
        now = self.loop.time()
        self._total_until, self._part_s = now + deadlines.total_s, deadlines.part_s
        self._wait_until(self._next_until(now))
        self._transport.write(request)
        return response

    def close(self) -> None:
        """End the connection, whatever is on it."""
        # At once: a request in the same step of the loop must not take it from the pool.
        self._pool.remove(self)
        if self._transport is not None:
            self._transport.abort()

    def resume_reading(self) -> None:
        """The reader has caught up."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._wait_until(self._next_until(self.loop.time()))
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to keep deadlines."""
        self._transport = cast("asyncio.Transport", transport)
        self._pool.begun(self)
        self._wait_until(self.loop.time() + IDLE_CONNECTION_S)

    def eof_received(self) -> None:
        """Leave the pool; the transport closes itself.

        `connection_lost` comes a step of the loop later, and a request that took the connection
        between the two would be counted as a crash.
        """
        self._pool.remove(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits; a body whose end is the connection's end is complete."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._pool.remove(self)
        self._pool.ended(self)
        response, self._response = self._response, None
        if response is None:
            return
        if response.status and not self._framed and exc is None:
            response.end()
        else:
            response.fail(ConnectionLost(str(exc or "the engine closed the connection")))

    def data_received(self, data: bytes) -> None:
        """Parse a part of the answer."""
        # Counted before parsing: what is of a body sets it back.
        self._no_body += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(ConnectionLost(f"the engine's answer is no HTTP: {error}"))
            return
        if self._ended:
            self._finish()
        elif self._no_body > MAX_HEAD_BYTES:
            # The parser holds a header until its end, however long that is.
            self._fail(EngineAnswerTooLarge(f"a head or trailer is over {MAX_HEAD_BYTES} bytes"))
        elif self._part_s is not None:
            self._until = self._next_until(self.loop.time())

    def on_message_begin(self) -> None:
        """A head begins; one that nobody asked for makes the connection useless."""
        if self._response is None or self._ended:
            raise ConnectionLost("an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take note of a body's type, and of its length or framing."""
        name = name.lower()
        if name in _FRAMING:
            self._framed = True
        elif name == b"content-type" and self._response is not None:
            self._response.content_type = value

    def on_headers_complete(self) -> None:
        """The head is whole; those with a status of 1xx have another one behind them."""
        status = self._parser.get_status_code()
        if status >= 200 and self._response is not None:
            self._keep_alive = self._parser.should_keep_alive()
            self._response.begin(status)

    def on_body(self, body: bytes) -> None:
        """A piece of the body, without its framing."""
        assert self._response is not None
        self._no_body = 0
        if not self._response.feed(body) and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer is whole, if it was the answer."""
        self._ended = self._response is not None and bool(self._response.status)

    def _finish(self) -> None:
        response, self._response = self._response, None
        self._ended = False
        assert response is not None
        response.end()
        self._total_until = self._until = math.inf
        self._part_s = None
        self.resume_reading()
        if self._keep_alive:
            self._wait_until(self.loop.time() + IDLE_CONNECTION_S)
            self._pool.put(self)
        else:
            self.close()

    def _fail(self, error: Exception) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.fail(error)
        self.close()

    def _next_until(self, now: float) -> float:
        # While nobody reads, the engine cannot send: its silence is not its own.
        if self._part_s is None or self._paused:
            return self._total_until
        return min(self._total_until, now + self._part_s)

    def _wait_until(self, until: float) -> None:
        self._until = until
        if until < self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer(until)

    def _set_timer(self, at: float) -> None:
        self._due = at
        self._timer = self.loop.call_at(at, self._look)

    def _look(self) -> None:
        now = self.loop.time()
        if self._until <= now:
            self._fail(TimeoutError("the engine did not answer in time"))
        else:
            self._set_timer(min(self._until, now + CHECK_S))


class EnginePool:
    """The connections to one engine. They are as many as requests run at once, and idle ones few
    seconds longer.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`headers` go with every request; `tls` is for https."""
        url = urlsplit(base_url)
        userinfo, _, place = url.netloc.rpartition("@")
        self._host = url.hostname or ""
        self._port = url.port or PORTS[url.scheme]
        self._tls = (tls or ssl.create_default_context()) if url.scheme == "https" else None
        fixed = {"Host": place.encode("idna").decode(), "Content-Type": "application/json"}
        if userinfo:
            credentials = base64.b64encode(unquote(userinfo).encode()).decode()
            fixed["Authorization"] = f"Basic {credentials}"
        self._path = url.path
        self._fixed = header_lines({**fixed, **(headers or {})})
        self._heads: dict[str, bytes] = {}
        self._idle: deque[EngineConnection] = deque()
        self._open: set[EngineConnection] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    async def post(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        deadlines: AttemptDeadlines,
        *,
        anew: bool = False,
    ) -> HttpResponse:
        """Send a JSON body, `anew` over a new connection, and wait for the head of its answer.

        Raises:
            ConnectFailed: the engine was not reached.
            ConnectionLost: the connection ended. TimeoutError: a deadline passed.

        """
        head = self._heads.get(path)
        if head is None:
            line = f"POST {self._path}{path} HTTP/1.1\r\n"
            head = self._heads[path] = line.encode() + self._fixed
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        request = b"".join((head, header_lines(headers), length, body))
        reuse = self._idle and not anew
        connection = self._idle.pop() if reuse else await self._connect(deadlines)
        response = connection.send(request, deadlines)
        try:
            await response.head()
        except BaseException:
            connection.close()
            raise
        return response

    def begun(self, connection: EngineConnection) -> None:
        """Take note of a new connection, which is about to be used."""
        self._open.add(connection)
        self._empty.clear()

    def put(self, connection: EngineConnection) -> None:
        """Take back a connection that is idle again."""
        self._idle.append(connection)

    def remove(self, connection: EngineConnection) -> None:
        """Give this connection to nobody any more."""
        if connection in self._idle:
            self._idle.remove(connection)

    def ended(self, connection: EngineConnection) -> None:
        """Take note that a connection is no more."""
        self._open.discard(connection)
        if not self._open:
            self._empty.set()

    async def close(self) -> None:
        """Close all connections, and wait until their sockets are closed."""
        for connection in tuple(self._open):
            connection.close()
        await self._empty.wait()

    async def _connect(self, deadlines: AttemptDeadlines) -> EngineConnection:
        where = f"{self._host}:{self._port}"
        try:
            async with asyncio.timeout(min(CONNECT_TIMEOUT_S, deadlines.total_s)):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: EngineConnection(self), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise ConnectFailed(f"{where}: no connection within {CONNECT_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise ConnectFailed(f"{where}: {error}") from error
        return connection


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Headers as they stand in a request's head.

    Raises:
        ValueError: one has a line break.

    """
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError(f"a header has a line break: {', '.join(headers)}")
    return lines.encode("latin-1")
