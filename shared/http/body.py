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


class _Reading:
    """One body that is read, by this task."""

    __slots__ = ("due", "late", "task")

    def __init__(self, due: float, task: asyncio.Task[object]) -> None:
        self.due = due
        self.task = task
        self.late = False


class _Deadlines:
    """One timer of a loop for all readings that may take equally long: they are due in turn.

    `asyncio.timeout` makes and cancels a timer for each, which takes 6 µs on uvloop, and nearly all
    bodies come with their heads.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self.loop = loop
        self._timeout_s = timeout_s
        self._readings: dict[_Reading, None] = {}
        self._timed = False

    def begin(self) -> _Reading:
        """Cancel the task that runs now at its deadline, unless its reading ends before."""
        task = asyncio.current_task(self.loop)
        assert task is not None
        reading = _Reading(self.loop.time() + self._timeout_s, task)
        self._readings[reading] = None
        if not self._timed:
            self._timed = True
            self.loop.call_at(reading.due, self._ring)
        return reading

    def end(self, reading: _Reading) -> None:
        """The reading is over."""
        self._readings.pop(reading, None)

    def _ring(self) -> None:
        now = self.loop.time()
        while self._readings:
            first = next(iter(self._readings))
            if first.due > now:
                self.loop.call_at(first.due, self._ring)
                return
            del self._readings[first]
            first.late = True
            first.task.cancel()
        self._timed = False


_deadlines: dict[float, _Deadlines] = {}
"""By their length, of the loop that runs: a process has one, and two or three lengths."""


def _deadlines_of(timeout_s: float) -> _Deadlines:
    loop = asyncio.get_running_loop()
    found = _deadlines.get(timeout_s)
    if found is None or found.loop is not loop:
        found = _deadlines[timeout_s] = _Deadlines(loop, timeout_s)
    return found


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
    deadlines = _deadlines_of(timeout_s)
    reading = deadlines.begin()
    try:
        return await _read(scope, receive, limit, max(limit, discard))
    except asyncio.CancelledError:
        if reading.late and reading.task.uncancel() == 0:
            raise BodyTooSlow(f"the body took longer than {timeout_s:g} s; send it again") from None
        raise
    finally:
        deadlines.end(reading)


async def _read(scope: Scope, receive: Receive, limit: int, stop_at: int) -> bytes:
    parts: list[bytes] = []
    size = _announced(scope)
    more = size <= stop_at
    if more:
        size = 0
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
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _announced(scope: Scope) -> int:
    """The body's length as its head says it; 0 where it says none."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


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
