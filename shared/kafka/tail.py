"""Topic tail: follows Kafka topics from the beginning, without a consumer group."""

# pyright: basic, reportMissingTypeStubs=false
# aiokafka has no types.
from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from typing import Literal

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from shared.backoff import Backoff
from shared.kafka.envelope import headers_of
from shared.kafka.log import LogUnavailable, Positions, Record
from shared.kafka.security import KafkaConnection, stop_consumer
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

POLL_MS = 500
CONNECT_TIMEOUT_S = 10.0
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 5.0


class KafkaTail:
    """A Tail on real brokers: connects when iterated, tries again while brokers are unavailable."""

    def __init__(
        self,
        connection: KafkaConnection,
        topics: tuple[str, ...],
        *,
        since: Literal["earliest", "latest"],
        client_id: str,
        positions: Positions | None = None,
        newest: int | None = None,
    ) -> None:
        self._connection = connection
        self._topics = topics
        self._since: Literal["earliest", "latest"] = since
        self._client_id = client_id
        self._positions = positions or {}
        self._newest = newest
        self._consumer: AIOKafkaConsumer | None = None
        self._targets: dict[TopicPartition, int] = {}
        self._caught_up = asyncio.Event()
        self._closed = asyncio.Event()
        self._reached: dict[tuple[str, int], int] = {}
        self._whole_at = -math.inf

    def __aiter__(self) -> AsyncIterator[Record]:
        """See Tail."""
        return self._records()

    async def caught_up(self, timeout_s: float) -> None:
        """See Tail.caught_up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._caught_up.wait()
        except TimeoutError:
            raise LogUnavailable(
                f"{', '.join(self._topics)} not read to the end within {timeout_s:g} s"
            ) from None

    def age_s(self) -> float:
        """See Tail.age_s."""
        return time.monotonic() - self._whole_at

    def positions(self) -> Positions:
        """See Tail.positions."""
        return dict(self._reached)

    async def close(self) -> None:
        """See Tail.close."""
        self._closed.set()
        consumer, self._consumer = self._consumer, None
        await stop_consumer(consumer, CONNECT_TIMEOUT_S)

    async def _records(self) -> AsyncIterator[Record]:
        consumer = await self._connect()
        while consumer is not None and not self._closed.is_set():
            try:
                batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=1000)
            except KafkaError as error:
                log.warning(Unavailable.kafka, during="poll", topics=self._topics, error=str(error))
                await self._pause(BACKOFF_FIRST_S)
                continue
            for messages in batches.values():
                for message in messages:
                    yield as_record(message)
            await self._look_for_end(consumer)

    async def _connect(self) -> AIOKafkaConsumer | None:
        backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S)
        while not self._closed.is_set():
            consumer: AIOKafkaConsumer | None = None
            try:
                consumer = AIOKafkaConsumer(
                    *self._topics,
                    **self._connection.client_arguments(),
                    client_id=self._client_id,
                    group_id=None,
                    enable_auto_commit=False,
                    auto_offset_reset=self._since,
                    isolation_level="read_committed",
                    fetch_max_wait_ms=POLL_MS,
                )
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await self._connection.start(consumer)
                    self._targets = await self._ends(consumer)
            except (TimeoutError, KafkaError, LogUnavailable) as error:
                log.warning(
                    Unavailable.kafka,
                    during="connect",
                    topics=self._topics,
                    error=str(error) or "timed out",
                )
                await stop_consumer(consumer, CONNECT_TIMEOUT_S)
                await self._pause(backoff.next_s())
                continue
            except BaseException:
                await stop_consumer(consumer, CONNECT_TIMEOUT_S)
                raise
            self._consumer = consumer
            return consumer
        return None

    async def _ends(self, consumer: AIOKafkaConsumer) -> dict[TopicPartition, int]:
        """The offsets to reach before all is read that is there now."""
        missing = set(self._topics) - await consumer.topics()
        if missing:
            raise LogUnavailable(
                f"topic {', '.join(sorted(missing))} does not exist; run: ratchet topics apply"
            )
        partitions = consumer.assignment()
        begins = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        for place in partitions:
            position = self._positions.get((place.topic, place.partition), -1)
            if not begins[place] <= position <= ends[place]:
                position = (begins if self._since == "earliest" else ends)[place]
            if self._newest is not None:
                position = max(position, ends[place] - self._newest)
            consumer.seek(place, position)
        return {partition: end for partition, end in ends.items() if end > begins[partition]}

    async def _look_for_end(self, consumer: AIOKafkaConsumer) -> None:
        """Note whether all was handed out that the brokers have."""
        at_end = True
        polled_ms = math.inf
        for partition in consumer.assignment():
            position = await consumer.position(partition)
            self._reached[partition.topic, partition.partition] = position
            if position >= self._targets.get(partition, math.inf):
                del self._targets[partition]
            highwater = consumer.highwater(partition)
            at_end = at_end and highwater is not None and position >= highwater
            polled_ms = min(polled_ms, consumer.last_poll_timestamp(partition) or 0)
        if not self._targets:
            self._caught_up.set()
        if at_end and math.isfinite(polled_ms) and polled_ms > 0:
            since_poll_s = max(0.0, time.time() - polled_ms / 1000)
            self._whole_at = time.monotonic() - since_poll_s

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()


def as_record(message: ConsumerRecord[bytes, bytes]) -> Record:
    """A Record from what aiokafka read."""
    return Record(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        key=(message.key or b"").decode("utf-8", "replace"),
        value=message.value,
        headers=headers_of(message.headers),
        timestamp_ms=message.timestamp,
    )
