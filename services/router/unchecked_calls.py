"""Finished requests whose texts a detector of personal data is yet to check, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

import structlog

from services.router.call import Call
from services.router.unchecked_journal import JournalEntry, UncheckedJournal
from shared.kafka.log import NewRecord
from shared.redaction import TextDetector

log = structlog.get_logger(__name__)

MAX_CALLS = 2_048
MAX_BYTES = 64 * 1024 * 1024
"""Requests that wait, and bytes of their bodies and answers."""
BATCH = 32
"""Requests whose texts are asked about at once; their events are built in one turn of the loop."""
WORKERS = 4


class UncheckedCall(NamedTuple):
    """A finished request, how long it took in seconds, and its event in the journal."""

    call: Call
    duration_s: float
    entry: JournalEntry


class UncheckedCalls:
    """A bounded queue that no request waits for."""

    def __init__(self, detector: TextDetector, journal: UncheckedJournal) -> None:
        self.detector = detector
        self._journal = journal
        self._queue: asyncio.Queue[UncheckedCall] = asyncio.Queue(MAX_CALLS)
        self._bytes = 0

    def has_room(self, call: Call) -> bool:
        """Whether a request may wait beside those that do."""
        return not self._queue.full() and self._bytes + _size(call) <= MAX_BYTES

    def put(self, call: Call, duration_s: float, withheld: NewRecord) -> None:
        """Queue a request for which there is room, and journal its event with the texts withheld."""
        self._bytes += _size(call)
        self._queue.put_nowait(UncheckedCall(call, duration_s, self._journal.note(withheld)))

    def settle(self, done: Iterable[UncheckedCall]) -> None:
        """Take note that the events of some requests are in the spool."""
        self._journal.settle(one.entry for one in done)

    async def run(self, check: Callable[[list[UncheckedCall]], Awaitable[None]]) -> None:
        """Have what waits checked and appended, several at a time, until cancelled."""
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
                self.settle(waiting)
                for one in waiting:
                    self._bytes -= _size(one.call)
                    self._queue.task_done()

    def _taken(self, most: int) -> list[UncheckedCall]:
        return [self._queue.get_nowait() for _ in range(min(most, self._queue.qsize()))]


def _size(call: Call) -> int:
    """Bytes that a request keeps in memory, about."""
    return len(call.request.fields) + len(call.answer.completion)
