"""HTTP/1.1 protocol with one idle timer per connection, and responses in one write.

uvicorn sets a timer at the end of each response and cancels it at the next request, which costs 5 µs
on uvloop. Here the one timer of a connection looks, when it rings, at how long it has been idle. A
second one watches while the write buffer is full: a client that reads nothing is disconnected.
"""

# pyright: basic, reportMissingTypeStubs=false
from __future__ import annotations

import asyncio
import math
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from shared.http.response_writes import CoalescingCycle

TARGETS_CACHED = 256
"""Request targets whose parts are remembered."""
MAX_TARGET_CACHED = 128
"""Bytes of such a target."""
STALLED_S = 60.0
"""How long a client may take nothing from a full write buffer; then its connection is aborted."""
MAX_PIPELINED = 64
"""Requests that may wait behind the one that is answered; a read brings thousands of small ones."""


class TooManyPipelined(Exception):
    """A client sent more than MAX_PIPELINED requests ahead."""


class KeepAliveProtocol(HttpToolsProtocol):
    """uvicorn's protocol; no WebSockets, and no limit on concurrency, which applications have."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._idle_since = math.inf
        self._idle_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._answered: RequestResponseCycle | None = None
        """The request that is answered now, or was last; `cycle` is the one that came last."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection that sends nothing at all is closed as an idle one is."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._look_in(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers of a closed connection, and tell the application that answers on it."""
        self._no_stall_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The write buffer is over its high-water mark: watch whether the client takes from it.

        The application, which may hold a turn or a transaction while it sends, then gets to its end;
        and an answer that was written whole does not stay in memory with nobody to read it.
        """
        super().pause_writing()
        self._no_stall_timer()
        self._watch_buffer()

    def resume_writing(self) -> None:
        """The client has read on."""
        self._no_stall_timer()
        super().resume_writing()

    def on_headers_complete(self) -> None:
        """Start the application, or queue the request behind the one before.

        Raises:
            TooManyPipelined: as many wait already; the parser makes a 400 of it, which ends the connection.

        """
        self._idle_since = math.inf
        parser, scope, app = self.parser, self.scope, cast("ASGI3Application", self.app)
        assert parser is not None
        version = parser.get_http_version()
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        path, raw_path, query = (
            _cached_target(self.url) if len(self.url) <= MAX_TARGET_CACHED else _target(self.url)
        )
        scope["path"] = self.root_path + path
        scope["raw_path"] = self.root_path.encode("ascii") + raw_path
        scope["query_string"] = query
        before = self.cycle
        cycle = self.cycle = CoalescingCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, app)
        elif len(self.pipeline) == MAX_PIPELINED:
            raise TooManyPipelined
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))

    def on_response_complete(self) -> None:
        """Begin with the next request of a pipeline, or be idle."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle_since = self.loop.time()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _unset_keepalive_if_required(self) -> None:
        """uvicorn calls it for all that arrives: an idle connection begins to be so anew.

        What arrives may be no request, as line ends are not, nor the rest of a body that was
        refused: a connection that then falls silent is closed, too.
        """
        if self._idle_since < math.inf:
            self._idle_since = self.loop.time()

    def _watch_buffer(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(STALLED_S, self._look_at_buffer, unread)

    def _look_at_buffer(self, unread: int) -> None:
        if self.transport.get_write_buffer_size() < unread:
            self._watch_buffer()
        else:
            self.transport.abort()

    def _no_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _look_in(self, seconds: float) -> None:
        self._idle_timer = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        idle_s = self.loop.time() - self._idle_since
        if idle_s >= self.timeout_keep_alive:
            self.timeout_keep_alive_handler()
        else:
            self._look_in(self.timeout_keep_alive - max(idle_s, 0.0))


def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, raw path and query of a request's target.

    Raises:
        httptools.HttpParserInvalidURLError: it is none.

    """
    parsed = httptools.parse_url(url)
    path = parsed.path.decode("ascii")
    return unquote(path) if "%" in path else path, parsed.path, parsed.query or b""


_cached_target = lru_cache(maxsize=TARGETS_CACHED)(_target)
