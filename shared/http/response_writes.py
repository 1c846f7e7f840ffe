"""Response cycle with write coalescing: a response's head leaves with the first piece of its body.

uvicorn writes both one after the other, and uvloop makes a system call of each write: a tenth of
what a request costs the router. ASGI lets a server hold the head until a body is there. uvicorn also
checks the name and the value of each header by a pattern of its own, for each response anew.
"""

# pyright: basic, reportMissingTypeStubs=false
from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import lru_cache

from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)

START, BODY = "http.response.start", "http.response.body"
NAMES_CACHED = 256
"""Names of headers whose check is remembered."""
UNFRAMED = frozenset((204, 304))
"""Statuses without a body."""


class CoalescingCycle(RequestResponseCycle):
    """One request and its response. HEAD has no write for a body, so its head is not held."""

    _held = b""
    """The response's head, until something leaves."""

    async def run_asgi(self, app: ASGI3Application) -> None:
        """Run the application; what it left unfinished ends with a 500, or with the connection."""
        try:
            await app(self.scope, self.receive, self.send)  # type: ignore[arg-type]
        except BaseException:
            self.logger.exception("Exception in ASGI application")
            await self._break_off()
        else:
            if not self.response_complete and not self.disconnected:
                self.logger.error("ASGI callable returned without completing response.")
                await self._break_off()
        finally:
            self.on_response = _nothing

    async def send(self, message: ASGISendEvent) -> None:
        """ASGI's send.

        Raises:
            RuntimeError: the message does not fit what was sent before, or a header is malformed.

        """
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            # A stream that waits for nothing else would never let itself be cancelled.
            await asyncio.sleep(0)
            return
        expected = BODY if self.response_started else START
        if message["type"] != expected or self.response_complete:
            raise RuntimeError(
                f"ASGI message {message['type']!r} where {expected!r} or none was to come"
            )
        if expected == START:
            self._start(message["status"], message.get("headers", ()))  # type: ignore[typeddict-item]
        else:
            self._piece(message.get("body", b""), more=message.get("more_body", False))  # type: ignore[arg-type]

    async def _break_off(self) -> None:
        if not self.response_started:
            await self.send_500_response()
            return
        if self._held:
            self.transport.write(self._held)
        self.transport.close()

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        content = [STATUS_LINE[status]]
        values: list[bytes] = []
        closes = False
        for name, value in (*self.default_headers, *headers):
            line = _line(name)
            if line == b"content-length: " and self.chunked_encoding is None:
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif line == b"transfer-encoding: " and value.lower() == b"chunked":
                self.expected_content_length = 0
                self.chunked_encoding = True
            elif line == b"connection: " and b"close" in _tokens(value):
                self.keep_alive = False
                closes = True
            content += (line, value, b"\r\n")
            values.append(value)
        if HEADER_VALUE_RE.search(b"".join(values)):
            raise RuntimeError("Invalid HTTP header value.")
        if not self.keep_alive and not closes:
            content.append(b"connection: close\r\n")
        is_head = self.scope["method"] == "HEAD"
        if self.chunked_encoding is None and not is_head and status not in UNFRAMED:
            self.chunked_encoding = True
            content.append(b"transfer-encoding: chunked\r\n")
        content.append(b"\r\n")
        if is_head:
            self.transport.write(b"".join(content))
        else:
            self._held = b"".join(content)

    def _piece(self, body: bytes, *, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            body = b""
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                body += b"0\r\n\r\n"
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("Response content longer than Content-Length")
        if data := self._held + body:
            self._held = b""
            self.transport.write(data)
        if more:
            return
        if self.expected_content_length:
            raise RuntimeError("Response content shorter than Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


@lru_cache(maxsize=NAMES_CACHED)
def _line(name: bytes) -> bytes:
    """The beginning of a header's line.

    Raises:
        RuntimeError: the name is malformed.

    """
    if HEADER_RE.search(name):
        raise RuntimeError("Invalid HTTP header name.")
    return name.lower() + b": "


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip() for token in value.lower().split(b",")]


def _nothing() -> None:
    """In the place of the connection's callback, which would keep both alive."""
