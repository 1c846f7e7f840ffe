"""Write coalescing of one response: its head leaves with the first piece of its body.

uvicorn writes both one after the other, and uvloop makes a system call of each write: a tenth of
what a request costs the router. ASGI lets a server hold the head until a body is there.
"""

# pyright: basic, reportMissingTypeStubs=false
from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class CoalescingTransport:
    """The transport as a response's cycle uses it; not for HEAD, which has no write for a body."""

    __slots__ = ("_cycle", "_head", "_started", "_transport")

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._cycle = cycle
        self._head = b""
        self._started = False

    def write(self, data: bytes) -> None:
        """Hold the head, send all else; `100 Continue` comes before the response has started."""
        if self._head:
            self._flush(data)
        elif self._started or not self._cycle.response_started:
            self._transport.write(data)
        else:
            self._started = True
            self._head = data

    def close(self) -> None:
        """Send what is held, and close."""
        if self._head:
            self._flush(b"")
        self._transport.close()

    def is_closing(self) -> bool:
        """See asyncio.BaseTransport."""
        return self._transport.is_closing()

    def _flush(self, data: bytes) -> None:
        head, self._head = self._head, b""
        self._transport.write(head + data)
