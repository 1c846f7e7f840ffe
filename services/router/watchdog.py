"""Watchdog of one request: its deadlines and a client disconnect, on one timer."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from types import TracebackType
from typing import Self

from shared.http.asgi import Receive

GRACE_S = 0.05
"""Most answers are there earlier; those never pay for a task that watches the client."""


LOOK_S = 0.005
"""How much later than GRACE_S a watchdog may look first."""


class FirstLooks:
    """One timer of a loop for the first look of all its watchdogs: they are due in turn.

    A timer for each costs 5 µs on uvloop, and nearly all requests are over before theirs rings.
    """

    __slots__ = ("_queue", "_timed", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._queue: deque[tuple[float, Watchdog]] = deque()
        self._timed = False

    def add(self, due: float, watchdog: Watchdog) -> None:
        """Have a watchdog look at `due`, which is no earlier than that of any before it."""
        self._queue.append((due, watchdog))
        if not self._timed:
            self._timed = True
            self.loop.call_at(due, self._ring)

    def _ring(self) -> None:
        queue, now = self._queue, self.loop.time()
        while queue and queue[0][0] <= now:
            queue.popleft()[1].look_first()
        self._timed = bool(queue)
        if queue:
            self.loop.call_at(max(queue[0][0], now + LOOK_S), self._ring)


_first_looks: FirstLooks | None = None
"""Of the loop that runs: a process has one."""


class Watchdog:
    """Cancels the task that made it when a wait takes too long or, while watched, the client leaves.

    `with watchdog.within(seconds):` raises TimeoutError where its body takes longer; one at a time,
    and not within other timeouts of the task. `gone` tells that the client left.

    The timer is made by hand, as `asyncio.timeout` makes and cancels one at each entry: three of
    them, as a request needs, take 20 µs on uvloop, a watchdog with three `within` 4.4 µs (4.5 ×).
    It is not moved when a deadline is later than it rings; it looks then and is set anew.
    """

    __slots__ = ("_closed", "_due", "_handle", "_loop", "_passed", "_receive", "_task", "_until", "_watcher",
                 "gone")  # fmt: skip

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._loop = loop
        self._task = task
        self._receive: Receive | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._until = math.inf
        self._passed = False
        self.gone = False
        self._closed = False
        self._handle: asyncio.TimerHandle | None = None
        self._due = loop.time() + GRACE_S
        global _first_looks  # noqa: PLW0603 looked up for every request
        if _first_looks is None or _first_looks.loop is not loop:
            _first_looks = FirstLooks(loop)
        _first_looks.add(self._due, self)

    def within(self, seconds: float) -> Self:
        """A context whose body may take that long."""
        self._until = self._loop.time() + seconds
        if self._until < self._due:
            self._arm(self._until)
        return self

    def __enter__(self) -> Self:
        """See within."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """A cancel that the deadline caused becomes a TimeoutError."""
        self._until = math.inf
        if self._passed:
            self._passed = False
            if kind is asyncio.CancelledError and self._task.uncancel() == 0:
                raise TimeoutError from error

    def watch(self, receive: Receive) -> None:
        """From now on, end the task when the client leaves. The request's body must be read."""
        self._receive = receive
        at = self._loop.time() + GRACE_S
        if at < self._due:
            self._arm(at)

    def unwatch(self) -> None:
        """The answer is there; the client may leave."""
        self._receive = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    def close(self) -> None:
        """The request is over."""
        self.unwatch()
        self._closed = True
        if self._handle is not None:
            self._handle.cancel()

    def look_first(self) -> None:
        """GRACE_S have passed; where a timer of its own came earlier, it has looked."""
        if not self._closed and self._handle is None:
            self._ring()

    def _arm(self, at: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._due = at
        self._handle = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._due = math.inf
        if self._receive is not None and self._watcher is None:
            self._watcher = self._loop.create_task(self._wait(self._receive))
        if self._until <= self._loop.time():
            self._passed = True
            self._task.cancel()
        elif self._until < math.inf:
            self._arm(self._until)

    async def _wait(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._task.cancel()
