"""Produce batches of one append: its records by partition, and the acknowledgements they wait for."""

# pyright: basic, reportMissingTypeStubs=false
# aiokafka has no types.
from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer

from shared.kafka.log import PER_TURN, NewRecord, Position, RecordRefused
from shared.kafka.partitions import partitions_of

MAX_RECORD_BYTES = 4 * 1024 * 1024
UNKNOWN = -1
"""A partition that follows from the key once the brokers have named the topic's partitions."""


@dataclass(slots=True, eq=False)
class _Batch:
    """Records for one partition, and what says that they are stored."""

    topic: str
    partition: int
    builder: Any
    acknowledged: asyncio.Future[Any] | None = None

    def add(self, key: bytes, record: NewRecord) -> int | None:
        """The record's place in the batch; None where that is full, which an empty one never is."""
        added = self.builder.append(
            timestamp=None, key=key, value=record.value, headers=list(record.headers)
        )
        if added is None:
            return None
        if added.size > MAX_RECORD_BYTES:
            raise RecordRefused(f"the record takes {added.size} bytes, over {MAX_RECORD_BYTES}")
        return added.offset


class ProduceBatches:
    """The batches of one append, in order per partition.

    A batch that is built here costs one future and one round of the producer's bookkeeping,
    instead of one for each record, and leaves at once: it waits for no other append's records.
    """

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer
        self._batches: list[_Batch] = []
        self._places: list[tuple[_Batch, int]] = []

    async def append(self, records: Sequence[NewRecord]) -> list[Position]:
        """Store records; their positions, in the order in which they were given.

        Raises:
            RecordRefused: a record is too large. KafkaError: not all were acknowledged.

        """
        try:
            await self._send_batches(records)
            # Cancelled itself, aiokafka's future would leave the error of its batch unread.
            first = {
                batch: (await asyncio.shield(batch.acknowledged)).offset  # type: ignore[arg-type]
                for batch in self._batches
            }
        except BaseException:
            self._forget()
            raise
        return [
            Position(batch.topic, batch.partition, first[batch] + place)
            for batch, place in self._places
        ]

    async def _send_batches(self, records: Sequence[NewRecord]) -> None:
        keys = [record.key.encode() for record in records]
        partitions = await self._partitions_of(records, keys)
        filling: dict[tuple[str, int], _Batch] = {}
        placed = zip(records, keys, partitions, strict=True)
        for turn, (record, key, partition) in enumerate(placed, start=1):
            lane = (record.topic, partition)
            batch = filling.get(lane)
            place = None if batch is None else batch.add(key, record)
            if batch is None or place is None:
                if batch is not None:
                    await self._send_batch(batch)
                batch = filling[lane] = _Batch(*lane, self._producer.create_batch())
                place = batch.add(key, record)
                assert place is not None
            self._places.append((batch, place))
            if turn % PER_TURN == 0:  # a router ships a megabyte at a time
                await asyncio.sleep(0)
        for turn, batch in enumerate(filling.values()):
            if turn:  # closing one compresses up to its whole size
                await asyncio.sleep(0)
            await self._send_batch(batch)

    async def _send_batch(self, batch: _Batch) -> None:
        batch.builder.close()
        batch.acknowledged = await self._producer.send_batch(
            batch.builder, batch.topic, partition=batch.partition
        )
        self._batches.append(batch)

    async def _partitions_of(
        self, records: Sequence[NewRecord], keys: Sequence[bytes]
    ) -> list[int]:
        """The partition of each record: the one that it names, else that of its key."""
        found = [UNKNOWN if one.partition is None else one.partition for one in records]
        open_: dict[str, list[int]] = {}
        for place, (record, partition) in enumerate(zip(records, found, strict=True)):
            if partition == UNKNOWN:
                open_.setdefault(record.topic, []).append(place)
        for topic, places in open_.items():
            count = len(await self._producer.partitions_for(topic))
            of_keys = partitions_of([keys[place] for place in places], count)
            for place, partition in zip(places, of_keys, strict=True):
                found[place] = partition
        return found

    def _forget(self) -> None:
        """Keep abandoned futures from warning of an unread error."""
        for batch in self._batches:
            assert batch.acknowledged is not None
            batch.acknowledged.add_done_callback(lambda done: done.cancelled() or done.exception())
