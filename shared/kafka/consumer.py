"""Consumer loop: read, handle, commit, at least once; unreadable records become dead letters."""

# pyright: basic, reportMissingTypeStubs=false
# aiokafka has no types.
from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from shared.backoff import Backoff
from shared.clock import Clock, SystemClock
from shared.contracts.events.base import Event
from shared.contracts.events.dead_letters import DeadLetterReason
from shared.kafka.crash_marker import CrashMarker, MarkedPlace
from shared.kafka.deadletters import DeadLetters
from shared.kafka.envelope import UnreadableRecord, decode
from shared.kafka.lag import read_position
from shared.kafka.log import LogUnavailable, Record, RecordRefused
from shared.kafka.security import KafkaConnection, stop_consumer
from shared.kafka.tail import as_record
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

POLL_MS = 500
SESSION_TIMEOUT_MS = 10_000
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
HANDLER_TRIES = 7
"""Times a record is handed to a handler that fails for no known reason, over about 13 seconds."""
CONNECT_TIMEOUT_S = 15.0
SINGLE_POLL_MS = 2 * POLL_MS
"""A read of one record may have to wait for a fetch on its way, which brokers hold for POLL_MS."""
UNPARSABLE = (
    "the record cannot be taken apart: a header name of it, or of a record before it in the same "
    "batch, is not UTF-8; send it again with header names in UTF-8"
)

Handler = Callable[[Event, Record], Awaitable[None]]
Opened = Callable[[Record], Awaitable[Record]]


class Reject(Exception):
    """Raised by a handler for a record that can never be handled; it becomes a dead letter."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: DeadLetterReason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Unparsable(Record):
    """The place of a record that the Kafka client cannot take apart; key and value are unknown."""


class ConsumerLoop:
    """Hands each record of some topics to a handler at least once, in order per partition.

    Offsets are committed after a batch whose every record was handled or is in the dead
    letters. Where Kafka is unavailable the record is tried again with back-off, however long, and
    nothing behind it is committed. So it is after a handler's any other exception, but
    HANDLER_TRIES times at most: then it is a dead letter with the reason `handler`, for one
    record must not hold up all that come after it.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        group: str,
        handler: Handler,
        models: Mapping[str, type[Event]],
        dead_letters: DeadLetters,
        topics: Sequence[str] = (),
        pattern: str = "",
        max_records: int = 500,
        concurrency: int = 1,
        default_type: str = "",
        marker: CrashMarker | None = None,
        clock: Clock | None = None,
        opened: Opened | None = None,
    ) -> None:
        """`concurrency` above 1 hands out that many records of a batch at the same time.

        `default_type` is the ce_type of records that carry none (products that send plain JSON).
        With a `marker`, a record that ends the process twice becomes a dead letter. `opened` gives a
        record its texts, where people's are encrypted; a dead letter has the record as it came.
        """
        self._connection = connection
        self._group = group
        self._handler = handler
        self._models = models
        self._dead_letters = dead_letters
        self._topics = tuple(topics)
        self._pattern = pattern
        self._max_records = max_records
        self._slots = asyncio.Semaphore(concurrency)
        self._sequential = concurrency == 1
        self._default_type = default_type
        self._marker = marker
        self._clock = clock or SystemClock()
        self._opened = opened
        self._beat = self._clock.monotonic()
        self._consumer: AIOKafkaConsumer | None = None
        self._in_hand: dict[TopicPartition, int] = {}
        """Offset of the first record that is handled now, by partition."""

    def behind(self) -> dict[tuple[str, str], int]:
        """Records that are not handled yet, by group and topic, of the partitions assigned."""
        found = Counter[tuple[str, str]]()
        consumer = self._consumer
        if consumer is None:
            return {}
        for partition in consumer.assignment():
            # Revoked meanwhile, or without a position yet.
            with contextlib.suppress(AssertionError, AttributeError, IllegalStateError):
                end = consumer.highwater(partition)
                at = self._in_hand.get(partition, read_position(consumer, partition))
                if end is not None:
                    found[self._group, partition.topic] += max(0, end - at)
        return dict(found)

    def idle_s(self) -> float:
        """Seconds since the loop last polled, handled a record, or found Kafka unavailable.

        It grows while a handler is stuck, and while a record can neither be handled nor given up.
        """
        return self._clock.monotonic() - self._beat

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set; unavailable brokers are tried again."""
        backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S)
        while not stop.is_set():
            consumer: AIOKafkaConsumer | None = None
            try:
                consumer = self._client()
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await self._connection.start(consumer)
                backoff.reset()
                self._consumer = consumer
                await self._consume(consumer, stop)
                self._clear()
            except (TimeoutError, KafkaError) as error:
                self._clear()  # it lives: a stop during an outage is no death
                log.warning(
                    Unavailable.kafka,
                    during="consume",
                    group=self._group,
                    error=str(error) or "timed out",
                )
                self._beat = self._clock.monotonic()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(backoff.next_s()):
                        await stop.wait()
            finally:
                self._consumer = None
                await stop_consumer(consumer, CONNECT_TIMEOUT_S)

    def _client(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **self._connection.client_arguments(),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=SESSION_TIMEOUT_MS // 4,
        )
        if self._pattern:
            consumer.subscribe(pattern=re.compile(self._pattern).pattern)
        else:
            consumer.subscribe(self._topics)
        return consumer

    async def _consume(self, consumer: AIOKafkaConsumer, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._beat = self._clock.monotonic()
            self._in_hand = {}
            places = await self._marked(consumer, stop)
            if stop.is_set():
                return
            try:
                batches = await _read(
                    consumer, *places, timeout_ms=POLL_MS, max_records=self._max_records
                )
            except UnicodeDecodeError:
                batches = await self._read_singly(consumer)
            records = [record for batch in batches.values() for record in batch]
            self._in_hand = {
                TopicPartition(*place): batch[0].offset for place, batch in batches.items() if batch
            }
            if not records:
                self._clear()
                continue
            if self._sequential:
                for record in records:
                    if not await self._handle(record, stop):
                        return
            else:
                done = await asyncio.gather(*(self._handle_slotted(r, stop) for r in records))
                if not all(done):
                    return
            offsets = {
                TopicPartition(partition.topic, partition.partition): batch[-1].offset + 1
                for partition, batch in batches.items()
                if batch
            }
            await self._commit(consumer, offsets)
            self._clear()

    async def _commit(self, consumer: AIOKafkaConsumer, offsets: dict[TopicPartition, int]) -> None:
        try:
            await consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            log.info("consumer.commit_lost", group=self._group, error=str(error))

    def _clear(self) -> None:
        if self._marker is not None:
            self._marker.clear()

    async def _marked(
        self, consumer: AIOKafkaConsumer, stop: asyncio.Event
    ) -> list[TopicPartition]:
        """The partitions to read from, marked; without a marker none, which means all.

        Those that a killed process may have been at are passed record by record before, whenever
        the group assigns them.
        """
        marker = self._marker
        if marker is None:
            return []
        for partition in sorted(consumer.assignment()):
            # A rebalance may take the partition away meanwhile: it stays suspected.
            with contextlib.suppress(IllegalStateError):
                if marker.suspects(*partition):
                    await self._pass_singly(consumer, marker, partition, stop)
        places = [place for place in await _places(consumer) if not marker.suspects(*place[:2])]
        marker.mark("read", places)
        return [TopicPartition(*place[:2]) for place in places]

    async def _pass_singly(
        self,
        consumer: AIOKafkaConsumer,
        marker: CrashMarker,
        partition: TopicPartition,
        stop: asyncio.Event,
    ) -> None:
        """Read and handle record by record what a killed process may have been at."""
        log.warning(
            "consumer.reads_singly",
            group=self._group,
            topic=partition.topic,
            partition=partition.partition,
            reason="a process was killed before",
        )
        end = (await consumer.end_offsets([partition]))[partition]
        for _ in range(self._max_records):
            offset = await consumer.position(partition)
            if offset >= end:
                break
            if not await self._pass(consumer, marker, MarkedPlace(*partition, offset), stop):
                return
        marker.passed(*partition)
        marker.clear()

    async def _pass(
        self,
        consumer: AIOKafkaConsumer,
        marker: CrashMarker,
        place: MarkedPlace,
        stop: asyncio.Event,
    ) -> bool:
        """Handle the record at a place, or step over what ends processes; False on `stop`."""
        partition = TopicPartition(place.topic, place.partition)
        if marker.ends_processes("read", place):
            end = await batch_end(consumer, partition)
            record: Record = Unparsable(*place, "", None, (), 0)
            await self._dead_letters.put(record, "handler", _ends_processes(place, end))
            consumer.seek(partition, end)
        else:
            marker.mark("read", [place])
            read = await self._read_one(consumer, partition)
            if read is None:
                return True
            record, end = read, read.offset + 1
            found = MarkedPlace(record.topic, record.partition, record.offset)
            if marker.ends_processes("handle", found):
                await self._dead_letters.put(record, "handler", _ends_processes(found, end))
            else:
                marker.mark("handle", [found])
                if not await self._handle(record, stop):
                    return False
        self._beat = self._clock.monotonic()
        await self._commit(consumer, {partition: end})
        return True

    async def _read_one(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition
    ) -> Record | None:
        """The next record of a partition, an Unparsable one where it cannot be taken apart."""
        try:
            found = await _read(consumer, partition, timeout_ms=SINGLE_POLL_MS, max_records=1)
        except UnicodeDecodeError:
            offset = await consumer.position(partition)
            consumer.seek(partition, offset + 1)
            return Unparsable(*partition, offset, "", None, (), 0)
        return found[partition][0] if found else None

    async def _read_singly(self, consumer: AIOKafkaConsumer) -> dict[TopicPartition, list[Record]]:
        """Read on from what was committed, record by record, with the Unparsable ones between.

        aiokafka has raised over one record without saying where it is, and has dropped what it
        had read of other partitions before.
        """
        batches: dict[TopicPartition, list[Record]] = {}
        for partition in consumer.assignment():
            committed = await consumer.committed(partition)
            if committed is None:
                await consumer.seek_to_beginning(partition)
            else:
                consumer.seek(partition, committed)
            batch = batches[partition] = []
            while len(batch) < self._max_records:
                found = await self._read_one(consumer, partition)
                if found is None:
                    break
                batch.append(found)
                self._beat = self._clock.monotonic()
        return batches

    async def _handle_slotted(self, record: Record, stop: asyncio.Event) -> bool:
        async with self._slots:
            return await self._handle(record, stop)

    async def _handle(self, record: Record, stop: asyncio.Event) -> bool:
        """Handle one record or give it up, however long it takes; False where `stop` came first."""
        backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S)
        failures = 0
        fault = ""
        while True:
            try:
                if failures < HANDLER_TRIES:
                    await self._once(record)
                else:
                    await self._dead_letters.put(record, "handler", fault)
            except Exception as error:
                refused = isinstance(error, RecordRefused)
                unavailable = isinstance(error, LogUnavailable) and not refused
                if unavailable:
                    self._beat = self._clock.monotonic()
                else:
                    failures += 1
                    fault = f"{type(error).__name__}: {error}"
                log.warning(
                    Unavailable.kafka if unavailable else "consumer.handler_failed",
                    during="handle",
                    group=self._group,
                    topic=record.topic,
                    partition=record.partition,
                    offset=record.offset,
                    error=str(error) or type(error).__name__,
                    exc_info=not unavailable,
                )
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(backoff.next_s()):
                        await stop.wait()
                if stop.is_set():
                    return False
            else:
                self._beat = self._clock.monotonic()
                return True

    async def _once(self, record: Record) -> None:
        if isinstance(record, Unparsable):
            await self._dead_letters.put(record, "schema", UNPARSABLE)
            return
        opened = record if self._opened is None else await self._opened(record)
        headers = opened.headers
        if self._default_type and not any(name == "ce_type" for name, _ in headers):
            headers = (*headers, ("ce_type", self._default_type.encode()))
        try:
            await self._handler(decode(headers, opened.value, self._models), opened)
        except (UnreadableRecord, Reject) as error:
            await self._dead_letters.put(record, error.reason, error.detail)


async def batch_end(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int:
    """The offset after the batch at a consumer's position, from its header: nothing is inflated.

    Raises:
        TimeoutError: the brokers did not hand it over.

    """
    position = await consumer.position(partition)
    fetcher = consumer._fetcher
    assert fetcher is not None, "the consumer is not started"
    # aiokafka offers no batches, so this looks into what its fetcher holds.
    held = fetcher._records
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        while not isinstance(result := held.get(partition), FetchResult):  # noqa: ASYNC110
            await asyncio.sleep(POLL_MS / 10_000)
    unread = result._partition_records
    assert unread is not None, "read to its end"
    batches = unread._records
    while (batch := batches.next_batch()) is not None:
        if batch.next_offset > position:
            return batch.next_offset
    return position + 1


def _ends_processes(place: MarkedPlace, end: int) -> str:
    what = (
        f"offset {place.offset}" if end == place.offset + 1 else f"a batch up to offset {end - 1}"
    )
    return f"{what} ended the process twice, as one that inflates without bound; it is stepped over"


async def _places(consumer: AIOKafkaConsumer) -> list[MarkedPlace]:
    places: list[MarkedPlace] = []
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        for partition in consumer.assignment():
            # A rebalance may take the partition away meanwhile.
            with contextlib.suppress(IllegalStateError):
                places.append(MarkedPlace(*partition, await consumer.position(partition)))
    return places


async def _read(
    consumer: AIOKafkaConsumer, *partitions: TopicPartition, timeout_ms: int, max_records: int
) -> dict[TopicPartition, list[Record]]:
    batches = await consumer.getmany(*partitions, timeout_ms=timeout_ms, max_records=max_records)
    return {partition: [as_record(one) for one in batch] for partition, batch in batches.items()}
