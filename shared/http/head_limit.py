"""HTTP/1.1 protocol with a byte limit and a deadline for each request head.

uvicorn and httptools have neither: a head without end, or one header of 25 MB, is read and held
in memory before any key is looked at.
"""

# pyright: basic, reportMissingTypeStubs=false
from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from shared.http.keep_alive import KeepAliveProtocol

MAX_HEAD_BYTES = 32 * 1024
"""Request line and headers together."""
HEAD_TIMEOUT_S = 10.0
"""From a head's first byte to its last."""
TOO_LARGE = f"The request head is over {MAX_HEAD_BYTES} bytes; send fewer or shorter headers."


class HeadTooLarge(Exception):
    """A request head is over MAX_HEAD_BYTES."""


class HeadLimitProtocol(KeepAliveProtocol):
    """Answers 431 to a head that is too large and 408 to one that is too slow, and closes.

    A head that arrives in one piece of ordinary size pays for two comparisons and no timer.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._in_head = False
        self._head_bytes = 0
        self._refusal = 400
        self._late: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Parse bytes, and start the deadline of a head that they left incomplete."""
        # Counted before parsing: the parser's callbacks see what has arrived, this included.
        self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head:
            self._head_bytes = 0
        elif self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, TOO_LARGE)
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_TIMEOUT_S, self._too_late)

    def on_message_begin(self) -> None:
        """A request head begins."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request head is whole; a body behind it in the same piece does not count."""
        self._in_head = False
        self._no_deadline()
        if self._head_bytes > MAX_HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._refusal = 431
                raise HeadTooLarge
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline of a closed connection."""
        self._no_deadline()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Reply to a request that cannot be parsed; uvicorn calls it for a HeadTooLarge, too."""
        if self._refusal == 400:
            super().send_400_response(msg)
        else:
            self._refuse(self._refusal, TOO_LARGE)

    def _too_late(self) -> None:
        self._late = None
        self._refuse(
            408, f"The request head did not arrive within {HEAD_TIMEOUT_S:g} s; send it again."
        )

    def _no_deadline(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, status: int, message: str) -> None:
        self._no_deadline()
        if self.transport.is_closing():
            return
        body = message.encode()
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: text/plain; charset=utf-8\r\n"
            + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            + body
        )
        self.transport.close()
