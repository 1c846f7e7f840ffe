"""Writes batches to Kafka: whole record batches per partition, confirmed by the brokers."""

# pyright: basic, reportMissingTypeStubs=false
# aiokafka has no types.
from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from services.aggregator.errors import WriteFailed
from services.aggregator.session_lease import SessionLease
from shared.kafka.envelope import Headers
from shared.kafka.log import NewRecord
from shared.kafka.partitions import partition_of
from shared.kafka.security import KafkaConnection

BATCH_BYTES = 512 * 1024
REQUEST_TIMEOUT_MS = 10_000
LEASE_POLL_S = 0.05
MAX_REQUEST_BYTES = 4 * 1024 * 1024
WRITE_TIMEOUT_S = 45.0
"""How long a write may wait for the brokers; longer than the 30 s that a failover may take."""


class Write(NamedTuple):
    """One record to write. Without a partition it follows from the key by murmur2."""

    topic: str
    partition: int | None
    key: bytes
    value: bytes | None
    headers: Headers = ()

    @classmethod
    def of(cls, record: NewRecord) -> Self:
        """An event's record, whose key is text."""
        return cls(
            record.topic, record.partition, record.key.encode(), record.value, record.headers
        )


Offsets: TypeAlias = Mapping[tuple[str, int], int]
"""(topic, partition) -> offset of the first record of the last batch written there."""


class Writer(Protocol):
    """Where the worker's writes go."""

    async def write(self, writes: Sequence[Write]) -> Offsets:
        """Store records, in order per partition; return once the brokers confirmed all.

        Raises:
            WriteFailed: they did not; some may be stored.
        """
        ...


class KafkaWriter:
    """Writer on an idempotent producer.

    Before each request, once its connection stands, it waits for a valid `lease` and calls `guard`.
    """

    def __init__(
        self, connection: KafkaConnection, *, guard: Callable[[], None], lease: SessionLease
    ) -> None:
        self._connection = connection
        self._guard = guard
        self._lease = lease
        self._producer: AIOKafkaProducer | None = None
        self._partitions: dict[str, int] = {}

    async def start(self) -> None:
        """Connect.

        Raises:
            WriteFailed: the brokers are unavailable.
        """
        producer: AIOKafkaProducer | None = None
        try:
            producer = AIOKafkaProducer(
                **self._connection.client_arguments(),
                client_id="ratchet-aggregator",
                acks="all",
                enable_idempotence=True,
                linger_ms=0,
                max_batch_size=BATCH_BYTES,
                max_request_size=MAX_REQUEST_BYTES,
                request_timeout_ms=REQUEST_TIMEOUT_MS,
                compression_type="lz4",
            )
            await self._connection.start(producer)
        except KafkaError as error:
            if producer is not None:
                await producer.stop()
            raise WriteFailed(f"{self._connection.bootstrap}: {error}") from error
        self._guard_requests(producer)
        self._producer = producer

    async def stop(self) -> None:
        """Disconnect."""
        if self._producer is not None:
            await self._producer.stop()

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has."""
        count = self._partitions.get(topic)
        if count is None:
            assert self._producer is not None
            count = self._partitions[topic] = len(await self._producer.partitions_for(topic))
        return count

    async def write(self, writes: Sequence[Write]) -> Offsets:
        """See Writer.write."""
        if not writes:
            return {}
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                return await self._write(writes)
        except TimeoutError:
            raise WriteFailed(f"no confirmation within {WRITE_TIMEOUT_S:g} s") from None
        except KafkaError as error:
            raise WriteFailed(f"{self._connection.bootstrap}: {error}") from error

    async def _write(self, writes: Sequence[Write]) -> Offsets:
        places: dict[tuple[str, int], list[Write]] = defaultdict(list)
        for write in writes:
            partition = write.partition
            if partition is None:
                count = await self.partitions(write.topic)
                partition = partition_of(write.key, count)
            places[write.topic, partition].append(write)
        offsets = await asyncio.gather(
            *(
                self._write_partition(topic, partition, records)
                for (topic, partition), records in places.items()
            )
        )
        return dict(zip(places, offsets, strict=True))

    async def _write_partition(self, topic: str, partition: int, records: list[Write]) -> int:
        producer = self._producer
        assert producer is not None
        confirmations: list[Awaitable[Any]] = []
        batch = producer.create_batch()
        for record in records:
            args = {"key": record.key, "value": record.value, "headers": list(record.headers)}
            if batch.append(timestamp=None, **args) is None:
                batch.close()
                confirmations.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
                batch.append(timestamp=None, **args)
        batch.close()
        confirmations.append(await producer.send_batch(batch, topic, partition=partition))
        written = [await confirmation for confirmation in confirmations]
        return written[-1].offset

    def _guard_requests(self, producer: AIOKafkaProducer) -> None:
        """Let the guard look at the clock where a request goes to its socket, not earlier."""
        client: Any = producer.client
        send = client.send

        async def guarded(node_id: int, request: Any, **kwargs: Any) -> Any:
            # `send` connects where it must, which takes time: connect first, then look at the clock.
            await client.ready(node_id, **kwargs)
            while not self._lease.valid():
                await asyncio.sleep(LEASE_POLL_S)
                await client.ready(node_id, **kwargs)
            self._guard()
            return await send(node_id, request, **kwargs)

        client.send = guarded
