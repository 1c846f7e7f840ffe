"""In-memory event log with Kafka's guarantees, for fast tests."""

# pyright: basic, reportMissingTypeStubs=false
# aiokafka has no types.
from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal

from aiokafka.partitioner import murmur2

from shared.clock import Clock, SystemClock
from shared.kafka.log import (
    APPEND_TIMEOUT_S,
    LogUnavailable,
    NewRecord,
    Position,
    Positions,
    Record,
    RecordRefused,
    SingleAppends,
    record_bytes,
)

DEFAULT_PARTITIONS = 4
MAX_RECORD_BYTES = 1_048_588
"""The brokers' default of `message.max.bytes`: key, headers and value together."""


class MemoryLog(SingleAppends):
    """An EventLog whose brokers are a dict. `available = False` makes them unavailable."""

    def __init__(
        self,
        *,
        source: str = "/ratchet/test",
        partitions: Mapping[str, int] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.available = True
        self.max_record_bytes = MAX_RECORD_BYTES
        self.records: dict[str, list[list[Record]]] = {}
        self._source = source
        self._partitions = dict(partitions or {})
        self._clock = clock or SystemClock()
        self._grown = asyncio.Condition()

    async def start(self) -> None:
        """See EventLog.start."""

    async def stop(self) -> None:
        """See EventLog.stop."""

    async def append_many(
        self,
        records: Sequence[NewRecord],
        *,
        timeout_s: float = APPEND_TIMEOUT_S,
    ) -> list[Position]:
        """See EventLog.append_many."""
        await asyncio.sleep(0)
        if not self.available:
            raise LogUnavailable(f"no acknowledgement within {timeout_s:g} s")
        if any(record_bytes(record) > self.max_record_bytes for record in records):
            raise RecordRefused(f"a record is larger than {self.max_record_bytes} bytes")
        positions = [self._store(record) for record in records]
        async with self._grown:
            self._grown.notify_all()
        return positions

    def tail(
        self,
        *topics: str,
        since: Literal["earliest", "latest"] = "earliest",
        positions: Positions | None = None,
        newest: int | None = None,
    ) -> MemoryTail:
        """See EventLog.tail."""
        return MemoryTail(self, topics, since, positions or {}, newest)

    def all(self, topic: str) -> list[Record]:
        """Everything in a topic, by partition and offset."""
        return [record for partition in self._topic(topic) for record in partition]

    async def recreate(self, topic: str) -> None:
        """Delete a topic and make it anew."""
        self.records.pop(topic, None)
        async with self._grown:
            self._grown.notify_all()

    async def wait_growth(self) -> None:
        """Wait until the next append."""
        async with self._grown:
            await self._grown.wait()

    def partitions_of(self, topic: str) -> list[list[Record]]:
        """The topic's partitions, each a list of records in offset order."""
        return self._topic(topic)

    def _topic(self, topic: str) -> list[list[Record]]:
        if topic not in self.records:
            count = self._partitions.get(topic, DEFAULT_PARTITIONS)
            self.records[topic] = [[] for _ in range(count)]
        return self.records[topic]

    def _store(self, new: NewRecord) -> Position:
        partitions = self._topic(new.topic)
        number = new.partition
        if number is None:
            number = (murmur2(new.key.encode()) & 0x7FFFFFFF) % len(partitions)
        offset = len(partitions[number])
        partitions[number].append(
            Record(
                topic=new.topic,
                partition=number,
                offset=offset,
                key=new.key,
                value=new.value,
                headers=new.headers,
                timestamp_ms=int(self._clock.now().timestamp() * 1000),
            )
        )
        return Position(new.topic, number, offset)


class MemoryTail:
    """A Tail over a MemoryLog."""

    def __init__(
        self,
        log: MemoryLog,
        topics: tuple[str, ...],
        since: Literal["earliest", "latest"],
        positions: Positions,
        newest: int | None = None,
    ) -> None:
        self._log = log
        self._next = {
            (topic, number): 0 if since == "earliest" else len(records)
            for topic in topics
            for number, records in enumerate(log.partitions_of(topic))
        }
        for place, position in positions.items():
            if place in self._next and position <= len(log.partitions_of(place[0])[place[1]]):
                self._next[place] = position
        for (topic, number), position in self._next.items():
            if newest is not None:
                end = len(log.partitions_of(topic)[number])
                self._next[topic, number] = max(position, end - newest)
        self._target = {
            (topic, number): len(records)
            for topic in topics
            for number, records in enumerate(log.partitions_of(topic))
        }
        self._caught_up = asyncio.Event()
        self._closed = asyncio.Event()
        self._whole_at: float | None = None

    def __aiter__(self) -> AsyncIterator[Record]:
        """See Tail."""
        return self._records()

    async def caught_up(self, timeout_s: float) -> None:
        """See Tail.caught_up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._caught_up.wait()
        except TimeoutError:
            raise LogUnavailable(f"not read to the end within {timeout_s:g} s") from None

    def age_s(self) -> float:
        """See Tail.age_s."""
        if self._whole_at is None:
            return float("inf")
        if self._log.available:
            return 0.0
        return time.monotonic() - self._whole_at

    def positions(self) -> Positions:
        """See Tail.positions."""
        return dict(self._next)

    async def close(self) -> None:
        """See Tail.close."""
        self._closed.set()

    async def _records(self) -> AsyncIterator[Record]:
        while not self._closed.is_set():
            for place, position in list(self._next.items()):
                records = self._log.partitions_of(place[0])[place[1]]
                if position > len(records):
                    self._next[place] = 0
                for record in records[self._next[place] :]:
                    yield record
                    self._next[place] = record.offset + 1
            if all(self._next[place] >= end for place, end in self._target.items()):
                self._caught_up.set()
            self._whole_at = time.monotonic()
            await self._wait()

    async def _wait(self) -> None:
        waits: set[asyncio.Task[object]] = {
            asyncio.create_task(self._log.wait_growth()),
            asyncio.create_task(self._closed.wait()),
        }
        # Waiting must have begun before we look: an append between the two would wake nobody.
        await asyncio.sleep(0)
        behind = any(
            len(self._log.partitions_of(topic)[number]) != position
            for (topic, number), position in self._next.items()
        )
        if not behind:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
