"""Finished requests whose texts a detector of personal data is yet to check, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog

from services.router.call import Call

log = structlog.get_logger(__name__)

MAX_CALLS = 2_048
MAX_BYTES = 64 * 1024 * 1024
"""Requests that wait, and bytes of their bodies and answers."""
BATCH = 32
"""Requests whose texts are asked about at once; their events are built in one turn of the loop."""
WORKERS = 4


class UncheckedCall(NamedTuple):
    """A finished request, and how long it took in seconds."""

    call: Call
    duration_s: float

    @property
    def size(self) -> int:
        """Bytes that it keeps in memory, about."""
        return len(self.call.request.fields) + len(self.call.answer.completion)


class UncheckedCalls:
    """A bounded queue that no request waits for."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[UncheckedCall] = asyncio.Queue(MAX_CALLS)
        self._bytes = 0

    def offer(self, one: UncheckedCall) -> bool:
        """Queue a request; False where too many wait."""
        if self._queue.full() or self._bytes + one.size > MAX_BYTES:
            return False
        self._bytes += one.size
        self._queue.put_nowait(one)
        return True

    async def run(self, check: Callable[[list[UncheckedCall]], Awaitable[None]]) -> None:
        """Have what waits checked, several at a time, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._check(check))

    async def drain(self, timeout_s: float) -> list[UncheckedCall]:
        """Wait until nothing is left, for a bounded time; what then still waits leaves the queue."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._queue.join()
        except TimeoutError:
            log.warning("unchecked_calls.left", requests=self._queue.qsize())
        return self._taken(MAX_CALLS)

    async def _check(self, check: Callable[[list[UncheckedCall]], Awaitable[None]]) -> None:
        while True:
            waiting = [await self._queue.get()]
            waiting += self._taken(BATCH - 1)
            try:
                await check(waiting)
            finally:
                for one in waiting:
                    self._bytes -= one.size
                    self._queue.task_done()

    def _taken(self, most: int) -> list[UncheckedCall]:
        return [self._queue.get_nowait() for _ in range(min(most, self._queue.qsize()))]
