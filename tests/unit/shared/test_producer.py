"""KafkaLog over a producer without brokers: what shares a batch, and what a refusal concerns."""

from __future__ import annotations

import asyncio
import gc
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import MessageSizeTooLargeError, ProducerClosed
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch

from shared.kafka import producer
from shared.kafka.log import PER_TURN, LogUnavailable, NewRecord, Position, RecordRefused
from shared.kafka.partitions import partition_of
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection

PARTITIONS = 3
TOO_LARGE = b"x" * 5_000


class ProducerDouble:
    """aiokafka's producer up to the batch that it sends; brokers take batches of 4,000 bytes."""

    def __init__(self, **settings: Any) -> None:
        self.batches: list[tuple[int, list[bytes]]] = []
        self.ends = [0] * PARTITIONS
        self.known: set[int] | None = None
        self.batch_bytes = 16_000
        self.client = SimpleNamespace(
            cluster=SimpleNamespace(partitions_for_topic=lambda topic: self.known)
        )

    async def start(self) -> None:
        pass

    async def partitions_for(self, topic: str) -> set[int]:
        self.known = set(range(PARTITIONS))
        return self.known

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(self.batch_bytes, 0)

    async def send_batch(
        self, builder: BatchBuilder, topic: str, *, partition: int
    ) -> asyncio.Future[Any]:
        values = [record.value or b"" for record in DefaultRecordBatch(bytes(builder._build()))]
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if sum(map(len, values)) > 4_000:
            done.set_exception(MessageSizeTooLargeError("too large"))
            return done
        self.batches.append((partition, values))
        done.set_result(SimpleNamespace(offset=self.ends[partition]))
        self.ends[partition] += len(values)
        return done


@pytest.fixture
async def double(monkeypatch: pytest.MonkeyPatch) -> ProducerDouble:
    made = ProducerDouble()
    monkeypatch.setattr(producer, "AIOKafkaProducer", lambda **_: made)
    return made


async def started() -> KafkaLog:
    log = KafkaLog(KafkaConnection("nowhere:1"), source="/test", linger_ms=1)
    await log.start()
    return log


async def appended(log: KafkaLog, records: list[NewRecord]) -> list[Any]:
    """What single appends of one moment gave, each its position or its error."""
    appends = (log.append_many((record,)) for record in records)
    return await asyncio.gather(*appends, return_exceptions=True)


async def test_single_appends_share_a_batch_of_their_partition_and_keep_order(
    double: ProducerDouble,
) -> None:
    log = await started()
    records = [NewRecord("t", f"key-{n % 5}", b"%d" % n) for n in range(40)]
    for _ in range(2):  # before the partitions are known, and after
        double.batches.clear()
        ends = list(double.ends)
        results = await appended(log, records)
        assert len(double.batches) <= PARTITIONS
        stored = dict(double.batches)
        for record, ((topic, partition, offset),) in zip(records, results, strict=True):
            assert (topic, partition) == ("t", partition_of(record.key.encode(), PARTITIONS))
            assert stored[partition][offset - ends[partition]] == record.value
        assert all(values == sorted(values, key=int) for values in stored.values())


async def test_a_large_append_is_built_in_turns_with_others(
    double: ProducerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, seen = 0, [0]
    append = BatchBuilder.append

    def counting(builder: BatchBuilder, **record: Any) -> Any:
        nonlocal built
        built += 1
        return append(builder, **record)

    async def others() -> None:
        while True:
            seen.append(built)
            await asyncio.sleep(0)

    log = await started()
    monkeypatch.setattr(BatchBuilder, "append", counting)
    turns = asyncio.create_task(others())
    records = [NewRecord("t", f"key-{n}", b"%d" % n) for n in range(20 * PER_TURN)]
    positions = await log.append_many(records)
    turns.cancel()
    assert len({(one.partition, one.offset) for one in positions}) == len(records)
    assert max(after - before for before, after in pairwise(seen)) <= PER_TURN


async def test_a_refused_record_fails_alone(double: ProducerDouble) -> None:
    log = await started()
    records = [NewRecord("t", "key", b"%d" % n) for n in range(9)]
    records[4] = records[4]._replace(value=TOO_LARGE)
    results = await appended(log, records)
    assert [n for n, one in enumerate(results) if isinstance(one, RecordRefused)] == [4]
    values = [value for _, values in double.batches for value in values]
    assert values == [record.value for record in records if record.value != TOO_LARGE]


async def test_a_refusal_doubles_nothing_of_a_group_over_a_batch_s_size(
    double: ProducerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.batch_bytes = 2_000
    monkeypatch.setattr(producer, "BATCH_BYTES", double.batch_bytes)
    log = await started()
    records = [NewRecord("t", "key", b"%d" % n * 300) for n in range(10)]
    records[7] = records[7]._replace(value=TOO_LARGE)
    results = await appended(log, records)
    assert [n for n, one in enumerate(results) if isinstance(one, RecordRefused)] == [7]
    values = [value for _, values in double.batches for value in values]
    assert values == [record.value for record in records if record.value != TOO_LARGE]


@pytest.mark.parametrize("known", [False, True])
async def test_a_key_that_is_no_utf_8_is_refused_and_its_neighbour_is_stored(
    double: ProducerDouble, known: bool
) -> None:
    log = await started()
    if known:
        await double.partitions_for("t")
    results = await appended(log, [NewRecord("t", "\ud800", b"bad"), NewRecord("t", "k", b"good")])
    assert isinstance(results[0], RecordRefused)
    assert isinstance(results[1][0], Position)


async def test_an_append_that_is_given_up_leaves_no_error_unread(
    double: ProducerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[asyncio.Future[Any]] = []

    async def send_batch(*_: Any, **__: Any) -> asyncio.Future[Any]:
        batches.append(asyncio.get_running_loop().create_future())
        return asyncio.shield(batches[0])  # as aiokafka does

    monkeypatch.setattr(double, "send_batch", send_batch)
    log = await started()
    with pytest.raises(LogUnavailable):
        await log.append("t", key="k", value=b"v", timeout_s=0.5)
    unread: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unread.append(context))
    batches.pop().set_exception(ProducerClosed())
    await asyncio.sleep(0)
    gc.collect()
    assert not unread
