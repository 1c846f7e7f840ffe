"""Request bodies with a byte limit and a deadline.

The router's hot path has a reader of its own (services/router/app.py): its watchdog already keeps
a timer for each request, and a second one would cost more than the reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shared.errors import RatchetError
from shared.http.asgi import AsgiApp, Message, Receive, Scope, Send
from shared.http.problems import problem


class BodyTooLarge(RatchetError):
    """The request's body is over the limit."""

    status = 413
    code = "too_large"
    title = "Too large"


class BodyTooSlow(RatchetError):
    """The request's body did not arrive before its deadline."""

    status = 408
    code = "too_slow"
    title = "Body too slow"


class ClientDisconnected(Exception):
    """The client closed the connection before its body was complete; a response has no reader."""


async def read_body(
    scope: Scope, receive: Receive, *, limit: int, timeout_s: float, discard: int = 0
) -> bytes:
    """Read the whole body, of at most `limit` bytes, within `timeout_s` seconds.

    Up to `discard` bytes of a longer one are read and discarded, so that its sender, who writes
    before it reads, gets to see the refusal.

    Raises:
        BodyTooLarge: more bytes were announced, or arrived.
        BodyTooSlow: the body was not complete in time.
        ClientDisconnected: the connection ended first.

    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(scope, receive, limit, max(limit, discard))
    except TimeoutError:
        raise BodyTooSlow(f"the body took longer than {timeout_s:g} s; send it again") from None


async def _read(scope: Scope, receive: Receive, limit: int, stop_at: int) -> bytes:
    announced = dict(scope["headers"]).get(b"content-length", b"")
    parts: list[bytes] = []
    size = 0
    more = not (announced.isdigit() and int(announced) > stop_at)
    if not more:
        size = int(announced)
    while more and size <= stop_at:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        part: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(part)
        if size <= limit:
            parts.append(part)
    if size > limit:
        raise BodyTooLarge(f"the body is larger than {limit} bytes; send a shorter one")
    return b"".join(parts)


class GuardedApp:
    """ASGI middleware: authenticates a request, then reads its body, then calls the application.

    A framework that parses bodies reads them before any of its own checks, so a caller without a
    key could make it read; here `authorize` comes first and may raise a RatchetError.
    """

    def __init__(
        self,
        app: AsgiApp,
        *,
        authorize: Callable[[Scope], object],
        limit: int,
        timeout_s: float,
        discard: int = 0,
    ) -> None:
        self._app = app
        self._authorize = authorize
        self._limit = limit
        self._timeout_s = timeout_s
        self._discard = discard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; what is refused is a problem, and the connection is closed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._authorize(scope)
            body = await read_body(
                scope,
                receive,
                limit=self._limit,
                timeout_s=self._timeout_s,
                discard=self._discard,
            )
        except ClientDisconnected:
            return
        except RatchetError as error:
            await problem(error, close=True)(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)
