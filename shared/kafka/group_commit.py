"""Group commit: appends of single records that wait at one moment share a batch of their partition."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import NamedTuple

from shared.kafka.log import LogUnavailable, NewRecord, Position, RecordRefused, record_bytes

SPREAD_S = 0.1
"""Deadlines of a group that lie so close take its latest; an earlier one has a timer of its own."""
FRAMING_BYTES = 64
"""What a batch holds of a record beside its key, headers and value: lengths, offset and time."""
OVERDUE = "no acknowledgement before its deadline"

Append = Callable[[Sequence[NewRecord], float], Awaitable[list[Position]]]
"""Stores records together within so many seconds; see EventLog.append_many."""
Lane = tuple[str, int]
"""Topic and partition."""


class _Waiting(NamedTuple):
    """One record, and the append that waits for its position."""

    record: NewRecord
    stored: asyncio.Future[Position]
    deadline: float

    def fail(self, error: Exception) -> None:
        if not self.stored.done():
            self.stored.set_exception(error)

    def fail_at_deadline(self) -> asyncio.TimerHandle:
        return self.stored.get_loop().call_at(self.deadline, self.fail, LogUnavailable(OVERDUE))


class GroupCommit:
    """Groups single records by partition; each partition has one group on its way at a time.

    What comes in the meantime is the next group, so groups grow with the load, and a slow partition
    holds up nobody else. A record alone waits `linger_s` seconds for company. The callers bound how
    many wait.
    """

    def __init__(self, append: Append, *, linger_s: float, batch_bytes: int) -> None:
        """Take how to store records, and the size up to which they are one batch."""
        self._append = append
        self._linger_s = linger_s
        self._batch_bytes = batch_bytes
        self._waiting: dict[Lane, list[_Waiting]] = {}
        self._sending: dict[Lane, asyncio.Task[None]] = {}
        self._busy_until: dict[Lane, float] = {}
        """Latest deadline of the group that is on its way."""
        self._timer: asyncio.TimerHandle | None = None

    def append(self, record: NewRecord, timeout_s: float) -> asyncio.Future[Position]:
        """Store a record whose partition is named (a negative one is unknown yet) with others.

        The future fails with RecordRefused for this record's own fault alone, and with
        LogUnavailable where it was not acknowledged within `timeout_s` seconds. Cancelling it
        withdraws a record that is not on its way yet, and does not concern the others.
        """
        loop = asyncio.get_running_loop()
        stored: asyncio.Future[Position] = loop.create_future()
        waiting = _Waiting(record, stored, loop.time() + timeout_s)
        assert record.partition is not None
        lane = (record.topic, record.partition)
        if waiting.deadline < self._busy_until.get(lane, 0.0) - SPREAD_S:
            waiting.fail_at_deadline()
        group = self._waiting.get(lane)
        if group is None:
            self._waiting[lane] = [waiting]
            if self._timer is None:
                self._timer = loop.call_later(self._linger_s, self._begin)
        else:
            group.append(waiting)
        return stored

    async def flush(self) -> None:
        """Return once all that waits now is stored or has failed."""
        if self._timer is not None:
            self._timer.cancel()
        self._begin()
        if self._sending:
            await asyncio.wait(tuple(self._sending.values()))

    def _begin(self) -> None:
        self._timer = None
        for lane in self._waiting:
            if lane not in self._sending:
                self._sending[lane] = asyncio.create_task(self._send(lane))

    async def _send(self, lane: Lane) -> None:
        try:
            while group := self._waiting.pop(lane, None):
                self._busy_until[lane] = max(one.deadline for one in group)
                await self._store(group)
        finally:
            del self._sending[lane]
            self._busy_until.pop(lane, None)

    async def _store(self, group: Sequence[_Waiting]) -> None:
        """Store a group; where a record of it is refused, its halves, so that it is found alone.

        Of a group of several batches some may be stored when another is refused, and its halves would
        store them again. So one that is too large for a batch is halved first.
        """
        group = [one for one in group if not one.stored.done()]
        if not group:
            return
        loop, latest = asyncio.get_running_loop(), max(one.deadline for one in group)
        timers = [one.fail_at_deadline() for one in group if one.deadline < latest - SPREAD_S]
        try:
            if len(group) > 1 and _bytes(group) > self._batch_bytes:
                await self._store_halves(group)
                return
            if (left_s := latest - loop.time()) <= 0:
                raise LogUnavailable(OVERDUE)
            positions = await self._append([one.record for one in group], max(left_s, SPREAD_S))
        except RecordRefused as error:
            if len(group) == 1:
                group[0].fail(error)
            else:
                await self._store_halves(group)
        except Exception as error:  # noqa: BLE001 those who wait raise it
            for one in group:
                one.fail(copy(error))  # each raises its own, so that no traceback grows
        else:
            for one, position in zip(group, positions, strict=True):
                if not one.stored.done():
                    one.stored.set_result(position)
        finally:
            for timer in timers:
                timer.cancel()

    async def _store_halves(self, group: Sequence[_Waiting]) -> None:
        middle = len(group) // 2
        await self._store(group[:middle])
        await self._store(group[middle:])


def _bytes(group: Sequence[_Waiting]) -> int:
    return sum(record_bytes(one.record) + FRAMING_BYTES for one in group)
