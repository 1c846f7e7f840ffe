"""Event log port: append with an acknowledgement, and follow topics from the beginning."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Literal, NamedTuple, Protocol, TypeVar, cast

from shared.clock import Clock
from shared.contracts.events.base import Event
from shared.kafka.envelope import Headers, UnreadableRecord, decode, encode, header, models_by_type

E = TypeVar("E", bound=Event)
APPEND_TIMEOUT_S = 5.0
"""Seconds an append waits for the brokers before it gives up."""
PER_TURN = 50
"""Records that a reading to the end takes before other tasks of the process get a turn."""


class LogUnavailable(Exception):
    """The brokers did not acknowledge in time; whether the record was stored is unknown."""


class RecordRefused(LogUnavailable):
    """The brokers or their client refuse a record for good: it is too large or malformed.

    No retry helps, and the brokers are well; of a batch it is not known which record it was.
    """


class TopicReplaced(Exception):
    """A topic is not the one that was read before: it was deleted and made anew, or cut back."""


class Position(NamedTuple):
    """Where a record is in the log."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read from the log."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes | None
    headers: Headers
    timestamp_ms: int


Positions = Mapping[tuple[str, int], int]
"""(topic, partition) -> offset of the next record to read."""


class NewRecord(NamedTuple):
    """One record to append. The partition follows from the key by murmur2, unless named."""

    topic: str
    key: str
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


def event_record(
    topic: str,
    event: Event,
    *,
    key: str,
    source: str,
    event_id: str,
    time: datetime,
    traceparent: str = "",
    partition: int | None = None,
) -> NewRecord:
    """An event as the record to append: a CloudEvent in binary mode, its JSON as the value."""
    headers = encode(event, source=source, event_id=event_id, time=time, traceparent=traceparent)
    return NewRecord(topic, key, event.to_json(), headers, partition)


def record_bytes(record: NewRecord) -> int:
    """Size of a record as brokers measure it: key, headers (ASCII names) and value together."""
    headers = sum(map(len, chain.from_iterable(record.headers)))
    key = record.key
    key_bytes = len(key) if key.isascii() else len(key.encode(errors="surrogatepass"))
    return key_bytes + headers + len(record.value or b"")


class Tail(Protocol):
    """All records of some topics in order per partition, then new ones as they come."""

    def __aiter__(self) -> AsyncIterator[Record]:
        """Iterate over records; ends only when closed."""
        ...

    async def caught_up(self, timeout_s: float) -> None:
        """Wait until all that was in the log when the tail began has been handed out.

        Raises:
            LogUnavailable: it took longer than `timeout_s` seconds.

        """
        ...

    def age_s(self) -> float:
        """Seconds since the log was last seen whole: read to its end. Infinite before that."""
        ...

    def positions(self) -> Positions:
        """Where reading of each partition goes on, so far as it is known.

        It falls where a topic was deleted and made anew, or cut back: it is read from its beginning.
        """
        ...

    async def close(self) -> None:
        """Stop; the iteration ends."""
        ...


class EventLog(Protocol):
    """Kafka or its twin in memory."""

    async def start(self) -> None:
        """Connect. Waits a bounded time and does not fail where the brokers are unavailable."""
        ...

    async def stop(self) -> None:
        """Flush for a bounded time and disconnect."""
        ...

    async def append(
        self,
        topic: str,
        *,
        key: str,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timeout_s: float = APPEND_TIMEOUT_S,
    ) -> Position:
        """Store one record and return once the brokers acknowledged it.

        The partition follows from the key by murmur2, unless named.

        Raises:
            RecordRefused: it can never be stored.
            LogUnavailable: no acknowledgement within `timeout_s` seconds.

        """
        ...

    async def append_many(
        self, records: Sequence[NewRecord], *, timeout_s: float = APPEND_TIMEOUT_S
    ) -> list[Position]:
        """Store records, in order per partition; return once all are acknowledged.

        Raises:
            RecordRefused: one of them, or together in one batch they, can never be stored.
            LogUnavailable: not all were acknowledged within `timeout_s` seconds; each of
                them may have been stored.

        """
        ...

    async def publish(
        self,
        topic: str,
        *,
        key: str,
        event: Event,
        event_id: str,
        traceparent: str = "",
        timeout_s: float = APPEND_TIMEOUT_S,
    ) -> Position:
        """Append an event as a CloudEvent from this log's source."""
        ...

    def tail(
        self,
        *topics: str,
        since: Literal["earliest", "latest"] = "earliest",
        positions: Positions | None = None,
        newest: int | None = None,
    ) -> Tail:
        """Follow topics without a consumer group, each partition from its position if it has one.

        A position that the log does not have is replaced by `since`. With `newest`, at most so many
        of the records that each partition has now are read.
        """
        ...


class SingleAppends(ABC):
    """`append` and `publish` of an EventLog, which appends by many."""

    _source: str
    _clock: Clock

    @abstractmethod
    async def append_many(
        self, records: Sequence[NewRecord], *, timeout_s: float = APPEND_TIMEOUT_S
    ) -> list[Position]:
        """See EventLog.append_many."""

    async def append(
        self,
        topic: str,
        *,
        key: str,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timeout_s: float = APPEND_TIMEOUT_S,
    ) -> Position:
        """See EventLog.append."""
        record = NewRecord(topic, key, value, headers, partition)
        return (await self.append_many((record,), timeout_s=timeout_s))[0]

    async def publish(
        self,
        topic: str,
        *,
        key: str,
        event: Event,
        event_id: str,
        traceparent: str = "",
        timeout_s: float = APPEND_TIMEOUT_S,
    ) -> Position:
        """See EventLog.publish."""
        record = event_record(
            topic,
            event,
            key=key,
            source=self._source,
            event_id=event_id,
            time=self._clock.now(),
            traceparent=traceparent,
        )
        return (await self.append_many((record,), timeout_s=timeout_s))[0]


async def read_to_end(
    log: EventLog,
    *topics: str,
    timeout_s: float,
    keep: Callable[[Record], bool] = lambda _: True,
    newest: int | None = None,
) -> list[Record]:
    """All of `records_to_end` at once."""
    found = records_to_end(log, *topics, timeout_s=timeout_s, keep=keep, newest=newest)
    return [record async for record in found]


async def records_to_end(
    log: EventLog,
    *topics: str,
    timeout_s: float,
    keep: Callable[[Record], bool] = lambda _: True,
    since: Literal["earliest", "latest"] = "earliest",
    positions: Positions | None = None,
    newest: int | None = None,
) -> AsyncGenerator[Record]:
    """Everything that is in some topics now and is to `keep`, in order per partition.

    It begins where `EventLog.tail` does with `since`, `positions` and `newest`. Few records are in
    memory at a time.

    Raises:
        LogUnavailable: the end was not reached within `timeout_s` seconds.

    """
    tail = log.tail(*topics, since=since, positions=positions, newest=newest)
    found = asyncio.Queue[Record | None](PER_TURN)

    async def collect() -> None:
        read = 0
        async for record in tail:
            if keep(record):
                await found.put(record)
            # A tail hands out what it has fetched, megabytes at a time, without a pause.
            read += 1
            if read % PER_TURN == 0:
                await asyncio.sleep(0)

    async def end() -> None:
        await asyncio.wait((collecting, waiting), return_when=asyncio.FIRST_COMPLETED)
        await found.put(None)

    collecting = asyncio.create_task(collect())
    waiting = asyncio.create_task(tail.caught_up(timeout_s))
    ending = asyncio.create_task(end())
    try:
        while (record := await found.get()) is not None:
            yield record
        if collecting.done():
            collecting.result()  # what `keep` raised: the end will not be reached
        await waiting
    finally:
        await tail.close()
        for task in (collecting, waiting, ending):
            task.cancel()
        await asyncio.gather(collecting, waiting, ending, return_exceptions=True)


async def read_events(
    log: EventLog,
    topics: Sequence[str],
    *models: type[E],
    timeout_s: float,
    newest: int | None = None,
) -> list[E]:
    """The events of these types on some topics, as they came; none that cannot be read.

    What is of another type is not kept in memory; what is unreadable is in the dead letters. With
    `newest`, at most so many records of each partition are read.

    Raises:
        LogUnavailable: the topics' end was not reached in time.

    """
    by_type = models_by_type(*models)

    def wanted(record: Record) -> bool:
        return header(record.headers, "ce_type") in by_type

    found: list[E] = []
    records = await read_to_end(log, *topics, timeout_s=timeout_s, keep=wanted, newest=newest)
    for record in records:
        try:
            found.append(cast("E", decode(record.headers, record.value, by_type)))
        except UnreadableRecord:
            continue
    return found
