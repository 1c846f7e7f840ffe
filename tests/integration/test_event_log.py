"""One suite for the event log, run against the twin in memory and against real Kafka."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from prometheus_client import CollectorRegistry

from shared.contracts.events.base import Event
from shared.contracts.events.quality import Tick
from shared.contracts.topics import load_topics
from shared.kafka import producer
from shared.kafka.consumer import ConsumerLoop, Reject
from shared.kafka.deadletters import DeadLetters, list_dead_letters, replay
from shared.kafka.envelope import decode, header, models_by_type
from shared.kafka.log import EventLog, LogUnavailable, NewRecord, Record, read_to_end
from shared.kafka.producer import BATCH_BYTES, KafkaLog
from shared.kafka.security import KafkaConnection
from shared.kafka.topics import apply_topics
from shared.testing.clock import START
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually

PARTITIONS = 3


async def make_topic(bootstrap: str, name: str) -> str:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    created: Any = await admin.create_topics(
        [NewTopic(name, num_partitions=PARTITIONS, replication_factor=1)]
    )
    assert not any(code for _, code, *_ in created.topic_errors), created
    await admin.close()
    return name


@pytest.fixture(params=["memory", "kafka"])
async def log(request: pytest.FixtureRequest, unique: str) -> AsyncIterator[tuple[EventLog, str]]:
    if request.param == "memory":
        yield MemoryLog(partitions={unique: PARTITIONS}), unique
        return
    bootstrap = request.getfixturevalue("kafka")
    await make_topic(bootstrap, unique)
    real = KafkaLog(KafkaConnection(bootstrap), source="/ratchet/test")
    await real.start()
    yield real, unique
    await real.stop()


async def test_appended_is_read_back_in_order_per_partition(log: tuple[EventLog, str]) -> None:
    event_log, topic = log
    sent = [NewRecord(topic, f"key-{n % 7}", str(n).encode(), (("n", b"1"),)) for n in range(200)]
    positions = await event_log.append_many(sent)
    records = await read_to_end(event_log, topic, timeout_s=60)
    assert sorted(int(record.value or b"") for record in records) == list(range(200))
    assert {(r.partition, r.offset) for r in records} == {
        (p.partition, p.offset) for p in positions
    }
    for partition in range(PARTITIONS):
        numbers = [int(r.value or b"") for r in records if r.partition == partition]
        assert numbers == sorted(numbers)
    assert records[0].headers == (("n", b"1"),)


async def test_batches_larger_than_the_producers_keep_order_and_places(
    log: tuple[EventLog, str],
) -> None:
    event_log, topic = log
    size = BATCH_BYTES // 10
    sent = [
        NewRecord(topic, f"key-{n}", f"{n} ".encode() + b"x" * size, partition=0) for n in range(40)
    ]
    sent += [NewRecord(topic, "few", f"few {n}".encode(), partition=1) for n in range(3)]
    sent.insert(7, NewRecord(topic, "large", b"large " + b"x" * 2 * BATCH_BYTES, partition=0))
    positions = await event_log.append_many(sent)
    stored = {
        (record.partition, record.offset): record
        for record in await read_to_end(event_log, topic, timeout_s=60)
    }
    assert len(stored) == len(sent)
    for wanted, position in zip(sent, positions, strict=True):
        found = stored[position.partition, position.offset]
        assert (found.key, found.value) == (wanted.key, wanted.value)
    for partition in (0, 1):
        offsets = [p.offset for p in positions if p.partition == partition]
        assert offsets == list(range(len(offsets)))


async def test_single_appends_of_one_moment_are_stored_in_order(
    log: tuple[EventLog, str],
) -> None:
    event_log, topic = log
    sent = [NewRecord(topic, f"key-{n % 7}", str(n).encode()) for n in range(100)]
    results = await asyncio.gather(*(event_log.append_many((record,)) for record in sent))
    found = await read_to_end(event_log, topic, timeout_s=60)
    stored = {(record.partition, record.offset): record.value for record in found}
    for record, ((_, partition, offset),) in zip(sent, results, strict=True):
        assert stored[partition, offset] == record.value
    for key in {record.key for record in found}:
        numbers = [int(record.value or b"") for record in found if record.key == key]
        assert numbers == sorted(numbers)


async def test_keys_meet_by_murmur2_in_both(log: tuple[EventLog, str]) -> None:
    event_log, topic = log
    twin = MemoryLog(partitions={topic: PARTITIONS})
    for key in ("a", "trace-1", "ä" * 9, "0" * 32):
        real = await event_log.append(topic, key=key, value=b"1")
        expected = await twin.append(topic, key=key, value=b"1")
        assert real.partition == expected.partition


async def test_a_named_partition_is_taken(log: tuple[EventLog, str]) -> None:
    event_log, topic = log
    positions = [
        await event_log.append(topic, key="same", value=b"", partition=number)
        for number in range(PARTITIONS)
    ]
    assert [position.partition for position in positions] == list(range(PARTITIONS))


async def test_an_event_travels_as_a_cloud_event(log: tuple[EventLog, str]) -> None:
    event_log, topic = log
    tick = Tick(at=START, partition=1)
    await event_log.publish(topic, key="1", event=tick, event_id="tick-1", traceparent="00-a-b-01")
    (record,) = await read_to_end(event_log, topic, timeout_s=60)
    assert decode(record.headers, record.value, models_by_type(Tick)) == tick
    assert header(record.headers, "ce_id") == "tick-1"
    assert header(record.headers, "ce_source") == "/ratchet/test"
    assert header(record.headers, "traceparent") == "00-a-b-01"


async def test_a_tail_catches_up_then_follows(log: tuple[EventLog, str]) -> None:
    event_log, topic = log
    await event_log.append(topic, key="a", value=b"before")
    tail = event_log.tail(topic)
    seen: list[bytes | None] = []

    async def follow() -> None:
        async for record in tail:
            seen.append(record.value)  # noqa: PERF401 seen while it goes on

    following = asyncio.create_task(follow())
    await tail.caught_up(10)
    assert seen == [b"before"]
    await event_log.append(topic, key="a", value=b"after")
    await eventually(lambda: seen == [b"before", b"after"], "the new record is seen")
    await eventually(lambda: tail.age_s() < 5, "the tail is fresh")
    await tail.close()
    await asyncio.wait_for(following, 60)


@pytest.mark.parametrize(("since", "whole"), [("earliest", [b"first", b"second"]), ("latest", [])])
async def test_a_tail_begins_at_the_positions_it_is_given(
    log: tuple[EventLog, str], since: Literal["earliest", "latest"], whole: list[bytes]
) -> None:
    event_log, topic = log
    for partition in (0, 1, 2):
        for value in (b"first", b"second"):
            await event_log.append(topic, key="a", value=value, partition=partition)
    # Partition 1 goes on after its first record; the log has no offset 7, so 2 is read from `since`.
    begins = {(topic, 0): 2, (topic, 1): 1, (topic, 2): 7}
    tail = event_log.tail(topic, since=since, positions=begins)
    seen: list[tuple[int, bytes | None]] = []

    async def follow() -> None:
        async for record in tail:
            seen.append((record.partition, record.value))  # noqa: PERF401 seen while it goes on

    following = asyncio.create_task(follow())
    await tail.caught_up(10)
    assert sorted(seen) == [(1, b"second"), *((2, value) for value in whole)]
    await tail.close()
    await asyncio.wait_for(following, 60)


async def test_a_tail_of_an_empty_topic_has_caught_up(log: tuple[EventLog, str]) -> None:
    event_log, topic = log
    assert await read_to_end(event_log, topic, timeout_s=60) == []


async def test_unreachable_brokers_fail_in_bounded_time() -> None:
    event_log = KafkaLog(KafkaConnection("127.0.0.1:1"), source="/ratchet/test")
    with pytest.raises(LogUnavailable):
        await event_log.append("any", key="a", value=b"", timeout_s=0.5)
    tail = event_log.tail("any")
    with pytest.raises(LogUnavailable):
        await tail.caught_up(0.2)
    assert tail.age_s() == float("inf")
    await event_log.stop()


async def test_a_producer_that_is_given_up_ends_and_delivers_nothing_more(
    kafka: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[AIOKafkaProducer] = []

    def make(**settings: Any) -> AIOKafkaProducer:
        made.append(AIOKafkaProducer(**settings))
        return made[-1]

    monkeypatch.setattr(producer, "AIOKafkaProducer", make)
    await make_topic(kafka, unique)
    event_log = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
    await event_log.append(unique, key="a", value=b"before")
    tasks = asyncio.all_tasks()
    for connection in made[0].client._conns.values():
        monkeypatch.setattr(connection._writer, "write", lambda data: None)
    for _ in range(producer.TIMEOUTS_BEFORE_REBUILD):
        with pytest.raises(LogUnavailable):
            await event_log.append(unique, key="a", value=b"given up", timeout_s=0.2)
    await event_log.append(unique, key="a", value=b"after")
    sender: Any = made[0]._sender.sender_task
    await eventually(sender.done, "the first producer's sender has ended")
    await event_log.stop()
    assert not any(connection.connected() for connection in made[0].client._conns.values())
    assert {task for task in asyncio.all_tasks() if not task.done()} <= tasks
    records = await read_to_end(event_log, unique, timeout_s=60)
    assert [record.value for record in records] == [b"before", b"after"]


async def test_consumer_commits_dead_letters_and_retries(kafka: str, unique: str) -> None:
    await make_topic(kafka, unique)
    event_log = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
    await event_log.start()
    tick = Tick(at=START, partition=0)
    for event_id in ("good", "refused", "flaky"):
        await event_log.publish(unique, key=event_id, event=tick, event_id=event_id)
    await event_log.append(unique, key="plain", value=b'{"at": 1, "mail": "a@b.example"}')
    await event_log.append(
        unique,
        key="bad",
        value=b'{"mail": "a@b.example"}',
        headers=(("ce_type", b"ratchet.tick.v1"),),
    )
    seen: list[str] = []
    failures = 0

    async def handle(event: Event, record: Record) -> None:
        nonlocal failures
        name = header(record.headers, "ce_id")
        if name == "refused":
            raise Reject("policy", "not today")
        if name == "flaky" and failures < 2:
            failures += 1
            raise RuntimeError("passing fault")
        seen.append(name)

    letters = DeadLetters(
        event_log,
        service="test",
        redact=lambda text: text.replace("a@b.example", "[EMAIL]"),
        metrics=CollectorRegistry(),
    )

    def loop() -> ConsumerLoop:
        return ConsumerLoop(
            KafkaConnection(kafka),
            group=unique,
            topics=[unique],
            handler=handle,
            models=models_by_type(Tick),
            dead_letters=letters,
        )

    async def run_until(condition: str, done: list[str]) -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(loop().run(stop))
        await eventually(lambda: sorted(seen) == done, condition)
        stop.set()
        await asyncio.wait_for(running, 60)

    await run_until("the two good ones are handled", ["flaky", "good"])
    assert failures == 2
    found = {
        letter.source_key: letter
        for letter in await list_dead_letters(event_log, source_topic=unique)
    }
    assert {key: letter.reason for key, letter in found.items()} == {
        "refused": "policy",
        "plain": "unknown_type",
        "bad": "schema",
    }
    assert "at: Field required" in found["bad"].detail
    assert json.loads(found["bad"].body) == {"mail": "[EMAIL]"}
    await event_log.publish(unique, key="more", event=tick, event_id="more")
    await run_until("only the new one is handled after a restart", ["flaky", "good", "more"])
    assert await replay(event_log, await list_dead_letters(event_log, source_topic=unique)) == 3
    await event_log.stop()


async def test_a_record_that_no_client_can_take_apart_holds_nothing_up(
    kafka: str, unique: str
) -> None:
    await make_topic(kafka, unique)
    event_log = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
    await event_log.start()
    tick = Tick(at=START, partition=0)
    elsewhere = [f"elsewhere-{n}" for n in range(20)]
    for event_id in elsewhere:
        await event_log.publish(unique, key=event_id, event=tick, event_id=event_id)
    producing = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.odd_headers", kafka, unique),
        env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"},
    )
    assert await asyncio.wait_for(producing.wait(), 60) == 0
    seen: list[str] = []

    async def handle(event: Event, record: Record) -> None:
        seen.append(header(record.headers, "ce_id"))

    async def run_until(done: list[str]) -> None:
        stop = asyncio.Event()
        loop = ConsumerLoop(
            KafkaConnection(kafka),
            group=unique,
            topics=[unique],
            handler=handle,
            models=models_by_type(Tick),
            dead_letters=DeadLetters(
                event_log, service="test", redact=str, metrics=CollectorRegistry()
            ),
        )
        running = asyncio.create_task(loop.run(stop))
        await eventually(lambda: sorted(seen) == sorted(done), f"{done} are handled")
        stop.set()
        await asyncio.wait_for(running, 60)

    await run_until(["before", "behind", *elsewhere])
    (letter,) = await list_dead_letters(event_log, source_topic=unique)
    assert letter.reason == "schema"
    assert "header name" in letter.detail
    assert await replay(event_log, await list_dead_letters(event_log, source_topic=unique)) == 0
    await event_log.publish(unique, key="more", event=tick, event_id="more")
    await run_until(["before", "behind", "more", *elsewhere])
    await event_log.stop()


async def test_topics_are_applied_once_and_drift_is_reported(kafka: str) -> None:
    first = await apply_topics(
        KafkaConnection(kafka), tenants=("default",), partitions=4, replication=1
    )
    assert not first.created
    assert not first.drift
    assert len(first.unchanged) == len(load_topics())
    other = await apply_topics(
        KafkaConnection(kafka), tenants=("default",), partitions=7, replication=1, dry_run=True
    )
    assert any("4 partitions, declared 7" in line for line in other.drift)
    replicated = await apply_topics(
        KafkaConnection(kafka), tenants=("default",), partitions=4, replication=3, dry_run=True
    )
    insync = [
        line for line in replicated.drift if "min.insync.replicas is '1', declared '2'" in line
    ]
    copies = [line for line in replicated.drift if line not in insync]
    assert len(insync) == len(copies) == len(load_topics())
    assert all("declared 3" in line for line in copies)
    assert not other.created
