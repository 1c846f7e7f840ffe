"""Idempotent Kafka producer with bounded waits: the EventLog on real brokers."""

# pyright: basic, reportMissingTypeStubs=false
# aiokafka has no types.
from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from typing import Literal

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    ProducerClosed,
    RecordListTooLargeError,
    RecordTooLargeError,
)

from shared.clock import Clock, SystemClock
from shared.kafka.batches import MAX_RECORD_BYTES, UNKNOWN, ProduceBatches
from shared.kafka.group_commit import GroupCommit
from shared.kafka.log import (
    APPEND_TIMEOUT_S,
    LogUnavailable,
    NewRecord,
    Position,
    Positions,
    RecordRefused,
    SingleAppends,
)
from shared.kafka.partitions import partition_of
from shared.kafka.security import KafkaConnection
from shared.kafka.tail import KafkaTail
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

LINGER_MS = 5
BATCH_BYTES = 256 * 1024
REQUEST_TIMEOUT_MS = 10_000
STOP_TIMEOUT_S = 10.0
REFUSED = (MessageSizeTooLargeError, RecordListTooLargeError, RecordTooLargeError)
"""Errors of the record, not of the brokers."""
TIMEOUTS_BEFORE_REBUILD = 3
"""Appends that ran out of time one after another before the producer is made anew."""


class KafkaLog(SingleAppends):
    """An EventLog on real brokers.

    An idempotent send has no timeout of its own, and a producer whose sequence numbers went
    astray never recovers; so every append is bounded, and a broken producer is replaced.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        source: str,
        client_id: str = "ratchet",
        clock: Clock | None = None,
        linger_ms: int = LINGER_MS,
    ) -> None:
        self._connection = connection
        self._source = source
        self._client_id = client_id
        self._clock = clock or SystemClock()
        self._linger_ms = linger_ms
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()
        self._timeouts = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._groups = GroupCommit(
            self._append_together, linger_s=linger_ms / 1000, batch_bytes=BATCH_BYTES
        )

    async def start(self) -> None:
        """Connect; unavailable brokers are tried again at the next append."""
        try:
            async with asyncio.timeout(APPEND_TIMEOUT_S):
                await self._connected()
        except (TimeoutError, LogUnavailable) as error:
            log.warning(
                Unavailable.kafka,
                during="connect",
                bootstrap=self._connection.bootstrap,
                error=str(error) or "timed out",
            )

    async def stop(self) -> None:
        """Flush for at most STOP_TIMEOUT_S seconds and disconnect."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._groups.flush()
        producer, self._producer = self._producer, None
        if producer is not None:
            await _close(producer, flush=True)
        if self._closing:
            await asyncio.wait(self._closing, timeout=STOP_TIMEOUT_S)

    async def append_many(
        self, records: Sequence[NewRecord], *, timeout_s: float = APPEND_TIMEOUT_S
    ) -> list[Position]:
        """See EventLog.append_many. A single record shares a batch with those of other appends."""
        if len(records) == 1:
            record = records[0]
            if record.partition is None:
                record = record._replace(partition=self._partition(record))
            return [await self._groups.append(record, timeout_s)]
        return await self._append_together(records, timeout_s)

    async def _append_together(
        self, records: Sequence[NewRecord], timeout_s: float
    ) -> list[Position]:
        producer: AIOKafkaProducer | None = None
        try:
            async with asyncio.timeout(timeout_s):
                producer = await self._connected()
                positions = await ProduceBatches(producer).append(records)
        except TimeoutError:
            self._timeouts += 1
            if self._timeouts >= TIMEOUTS_BEFORE_REBUILD:
                self._replace(producer, flush=False)
            raise LogUnavailable(
                f"no acknowledgement from {self._connection.bootstrap} within {timeout_s:g} s"
            ) from None
        except KafkaError as error:
            if not error.retriable:
                self._replace(producer, flush=True)
            refused = isinstance(error, REFUSED)
            kind = RecordRefused if refused else LogUnavailable
            raise kind(f"{self._connection.bootstrap}: {error}") from error
        except UnicodeError as error:
            raise RecordRefused(f"a key or header name is no UTF-8: {error}") from error
        self._timeouts = 0
        return positions

    def tail(
        self,
        *topics: str,
        since: Literal["earliest", "latest"] = "earliest",
        positions: Positions | None = None,
        newest: int | None = None,
    ) -> KafkaTail:
        """See EventLog.tail."""
        return KafkaTail(
            self._connection,
            topics,
            since=since,
            positions=positions or {},
            newest=newest,
            client_id=self._client_id,
        )

    def _partition(self, record: NewRecord) -> int:
        """A record's partition; UNKNOWN before the brokers named the topic's."""
        producer = self._producer
        known = producer and producer.client.cluster.partitions_for_topic(record.topic)
        # A key that is no UTF-8 is refused when its batch is built.
        key = record.key.encode(errors="surrogatepass")
        return partition_of(key, len(known)) if known else UNKNOWN

    async def _connected(self) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        async with self._connecting:
            if self._producer is None:
                producer: AIOKafkaProducer | None = None
                try:
                    producer = AIOKafkaProducer(
                        **self._connection.client_arguments(),
                        client_id=self._client_id,
                        acks="all",
                        enable_idempotence=True,
                        linger_ms=self._linger_ms,
                        max_batch_size=BATCH_BYTES,
                        max_request_size=MAX_RECORD_BYTES,
                        request_timeout_ms=REQUEST_TIMEOUT_MS,
                        compression_type="lz4",
                    )
                    await self._connection.start(producer)
                except BaseException as error:
                    if producer is not None:
                        self._close_later(producer, flush=False)
                    if isinstance(error, KafkaError):
                        raise LogUnavailable(f"{self._connection.bootstrap}: {error}") from error
                    raise
                self._producer = producer
        return self._producer

    def _replace(self, producer: AIOKafkaProducer | None, *, flush: bool) -> None:
        """Give up a producer; the next append makes another.

        Without `flush` what it has not delivered is given up too: who appended that was told so, and
        it must not arrive behind what the next producer sends.
        """
        if producer is None or producer is not self._producer:
            return
        log.warning("log.producer_replaced", bootstrap=self._connection.bootstrap)
        self._producer = None
        self._timeouts = 0
        self._close_later(producer, flush=flush)

    def _close_later(self, producer: AIOKafkaProducer, *, flush: bool) -> None:
        task = asyncio.get_running_loop().create_task(_close(producer, flush=flush))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _close(producer: AIOKafkaProducer, *, flush: bool) -> None:
    """End a producer for good, after STOP_TIMEOUT_S seconds for delivering what it has if `flush`.

    aiokafka's own `stop` waits until all is delivered, and cut short leaves its sender and its
    sockets behind. So the sender is ended first. It waits for the requests on their way, which the
    end of their connections concludes; where not, a second round cancels what it waits for.
    """
    if flush:
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await producer.flush()
    sender = producer._sender.sender_task
    while sender is not None and not sender.done():
        sender.cancel()
        for connection in producer.client._conns.values():
            connection.close()
        await asyncio.wait((sender,), timeout=STOP_TIMEOUT_S)
    undelivered = producer._message_accumulator
    for batch in itertools.chain.from_iterable(undelivered._batches.values()):
        batch.drain_ready()  # else its failure is logged as a never-retrieved exception
    undelivered.fail_all(ProducerClosed())
    with contextlib.suppress(TimeoutError, KafkaError):
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await producer.stop()
