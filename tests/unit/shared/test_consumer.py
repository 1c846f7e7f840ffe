"""The consumer loop on a stand-in for aiokafka's consumer and a log in memory."""

# pyright: basic
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from aiokafka import ConsumerRecord, TopicPartition
from prometheus_client import CollectorRegistry

from shared.contracts.events.base import Event
from shared.contracts.events.quality import Tick
from shared.kafka import consumer
from shared.kafka.consumer import HANDLER_TRIES, ConsumerLoop, Handler
from shared.kafka.deadletters import DeadLetters, list_dead_letters
from shared.kafka.envelope import header, models_by_type
from shared.kafka.lag import ConsumerLag
from shared.kafka.log import LogUnavailable, Record, RecordRefused
from shared.kafka.security import KafkaConnection
from shared.redaction import Redactor
from shared.testing.clock import START, ManualClock
from shared.testing.log import MemoryLog

TOPIC = "ratchet.test.v1"
TICK = Tick(at=START, partition=0).to_json()


def message(
    offset: int, name: str, value: bytes = TICK, *more: tuple[str, bytes | None]
) -> ConsumerRecord[Any, Any]:
    headers = (("ce_type", Tick.ce_type.encode()), ("ce_id", name.encode()), *more)
    return ConsumerRecord(
        TOPIC,
        0,
        offset,
        0,
        0,
        None,
        value,
        None,
        0,
        len(value),
        headers,  # type: ignore[arg-type]
    )


class Brokers:
    """Hands out one batch, and then nothing until told to stop."""

    def __init__(self, *messages: ConsumerRecord[Any, Any], stop: asyncio.Event) -> None:
        self._batches = [{TopicPartition(TOPIC, 0): list(messages)}]
        self._stop = stop
        self.committed: list[dict[TopicPartition, int]] = []

    def __call__(self, **_: object) -> Brokers:
        return self

    def subscribe(self, topics: object) -> None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def getmany(self, **_: object) -> dict[TopicPartition, list[ConsumerRecord[Any, Any]]]:
        if self._batches:
            return self._batches.pop()
        self._stop.set()
        return {}

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        self.committed.append(offsets)


Run = Callable[..., Awaitable[Brokers]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, log: MemoryLog, clock: ManualClock) -> Run:
    """Run a loop over messages until all were handled; its waits take no time."""
    monkeypatch.setattr(consumer, "BACKOFF_FIRST_S", 0.0)

    async def run_over(handler: Handler, *messages: ConsumerRecord[Any, Any]) -> Brokers:
        stop = asyncio.Event()
        brokers = Brokers(*messages, stop=stop)
        monkeypatch.setattr(consumer, "AIOKafkaConsumer", brokers)
        loop = ConsumerLoop(
            KafkaConnection("nowhere"),
            group="test",
            topics=[TOPIC],
            handler=handler,
            models=models_by_type(Tick),
            dead_letters=DeadLetters(
                log, service="test", redact=str.lower, metrics=CollectorRegistry()
            ),
            clock=clock,
        )
        await loop.run(stop)
        return brokers

    return run_over


async def test_a_record_that_a_handler_never_manages_is_given_up(log: MemoryLog, run: Run) -> None:
    tried: list[str] = []

    async def handle(event: Event, record: Record) -> None:
        tried.append(header(record.headers, "ce_id"))
        if tried[-1] == "poison":
            raise ValueError("NOT THIS ONE")

    brokers = await run(handle, message(7, "poison"), message(8, "good"))
    assert tried == ["poison"] * HANDLER_TRIES + ["good"]
    (letter,) = await list_dead_letters(log)
    assert (letter.reason, letter.detail) == ("handler", "valueerror: not this one")
    assert letter.source_offset == 7
    assert brokers.committed == [{TopicPartition(TOPIC, 0): 9}]


async def test_a_record_that_the_brokers_refuse_for_good_is_given_up(
    log: MemoryLog, run: Run
) -> None:
    """Case oversized-traceparent: nor does the dead letter's own size hold anybody up."""
    tried: list[str] = []
    log.max_record_bytes = 1_000

    async def handle(event: Event, record: Record) -> None:
        tried.append(header(record.headers, "ce_id"))
        if tried[-1] == "large":
            raise RecordRefused("too large")

    long = message(7, "large", TICK, ("odd", b"x" * 1_900))
    brokers = await run(handle, long, message(8, "good"))
    assert tried == ["large"] * HANDLER_TRIES + ["good"]
    (letter,) = await list_dead_letters(log)
    assert (letter.source_offset, letter.reason, letter.headers) == (7, "handler", {})
    assert brokers.committed == [{TopicPartition(TOPIC, 0): 9}]


async def test_a_record_waits_for_the_log_however_long(log: MemoryLog, run: Run) -> None:
    tries = 0

    async def handle(event: Event, record: Record) -> None:
        nonlocal tries
        tries += 1
        if tries <= HANDLER_TRIES * 3:
            raise LogUnavailable("away")

    await run(handle, message(7, "waits"))
    assert tries == HANDLER_TRIES * 3 + 1
    assert await list_dead_letters(log) == []


async def test_a_null_header_is_read_as_an_empty_one(log: MemoryLog, run: Run) -> None:
    seen: list[tuple[tuple[str, bytes], ...]] = []

    async def handle(event: Event, record: Record) -> None:
        seen.append(record.headers[2:])

    await run(
        handle,
        message(7, "good", TICK, ("traceparent", None)),
        message(8, "bad", b"{}", ("traceparent", None)),
    )
    assert seen == [(("traceparent", b""),)]
    (letter,) = await list_dead_letters(log)
    assert letter.headers["traceparent"] == ""


@pytest.mark.parametrize(
    ("fault", "idle_s"),
    [(ValueError("odd"), 30 * (HANDLER_TRIES - 1)), (LogUnavailable("away"), 0)],
)
async def test_what_is_stuck_shows_and_what_waits_for_the_log_does_not(
    monkeypatch: pytest.MonkeyPatch,
    log: MemoryLog,
    clock: ManualClock,
    fault: Exception,
    idle_s: int,
) -> None:
    monkeypatch.setattr(consumer, "BACKOFF_FIRST_S", 0.0)
    stop = asyncio.Event()
    tries = 0

    async def handle(event: Event, record: Record) -> None:
        nonlocal tries
        tries += 1
        if tries == HANDLER_TRIES:
            stop.set()
        else:
            clock.advance(30)
        raise fault

    monkeypatch.setattr(consumer, "AIOKafkaConsumer", Brokers(message(7, "stuck"), stop=stop))
    loop = ConsumerLoop(
        KafkaConnection("nowhere"),
        group="test",
        topics=[TOPIC],
        handler=handle,
        models=models_by_type(Tick),
        dead_letters=DeadLetters(log, service="test", redact=str, metrics=CollectorRegistry()),
        clock=clock,
    )
    await loop.run(stop)
    assert loop.idle_s() == idle_s


async def test_any_record_makes_a_letter_that_brokers_take() -> None:
    log = MemoryLog()
    letters = DeadLetters(log, service="test", redact=str, metrics=CollectorRegistry())
    longest = "\x01" * 1_000_000
    record = Record(
        TOPIC,
        0,
        7,
        key=longest,
        value=longest.encode(),
        headers=tuple((f"{n}{longest}", longest.encode()) for n in range(100)),
        timestamp_ms=0,
    )
    await letters.put(record, "schema", longest)
    ((stored,),) = [part for part in log.records["ratchet.dead-letters.v1"] if part]
    assert stored.value is not None
    assert len(stored.value) <= 900_000
    (letter,) = await list_dead_letters(log)
    assert len(letter.body) == 100_000


@pytest.mark.parametrize("tenant", ["", "a\nb", "\x00", "a" * 201, 7, None, ["acme"]])
async def test_a_letter_names_no_tenant_that_none_can_have(tenant: object) -> None:
    log = MemoryLog()
    letters = DeadLetters(log, service="test", redact=str, metrics=CollectorRegistry())
    value = orjson.dumps({"tenant": tenant, "user_id": "ann"})
    await letters.put(Record(TOPIC, 0, 7, "t1", value, (), 0), "schema", "tenant: is wrong")
    (letter,) = await list_dead_letters(log)
    assert (letter.tenant, letter.subjects, letter.body) == ("", (), value.decode())


async def test_a_dead_letter_keeps_identifiers_and_no_personal_data() -> None:
    log, trace = MemoryLog(), "4111111111111111a0b1c2d3e4f50617"
    letters = DeadLetters(log, service="test", redact=Redactor().text, metrics=CollectorRegistry())
    traceparent = f"00-{trace}-4111111111111111-01"
    body = f'{{"trace_id":"{trace}","value":"joe@example.com"}}'
    record = Record(
        topic="ratchet.feedback-intake.acme.v1",
        partition=0,
        offset=7,
        key=trace,
        value=body.encode(),
        headers=(("traceparent", traceparent.encode()), ("x-from", b"joe@example.com")),
        timestamp_ms=0,
    )
    await letters.put(record, "schema", "value: joe@example.com is none")
    (letter,) = await list_dead_letters(log)
    assert (letter.source_key, letter.headers["traceparent"]) == (trace, traceparent)
    assert letter.body == body.replace("joe@example.com", "[EMAIL]")
    assert "joe" not in letter.to_json().decode()


async def test_the_lag_is_what_is_not_handled_of_the_partitions_assigned(
    monkeypatch: pytest.MonkeyPatch, log: MemoryLog
) -> None:
    here, unknown = TopicPartition(TOPIC, 0), TopicPartition("ratchet.other.v1", 1)
    at = {here: 7}

    class Assigned(Brokers):
        def assignment(self) -> set[TopicPartition]:
            return {here, unknown}

        def highwater(self, partition: TopicPartition) -> int | None:
            return 20 if partition == here else None

        async def getmany(self, **given: object) -> dict[TopicPartition, list[ConsumerRecord]]:
            lags.append(samples())
            found = await super().getmany(**given)
            at.update({place: batch[-1].offset + 1 for place, batch in found.items()})
            return found

    def position(_: object, partition: TopicPartition) -> int:
        assert partition in at, "none while the group assigns"
        return at[partition]

    stop = asyncio.Event()
    lags: list[dict[str, float]] = []
    brokers = Assigned(message(7, "a"), message(8, "b"), stop=stop)
    monkeypatch.setattr(consumer, "AIOKafkaConsumer", brokers)
    monkeypatch.setattr(consumer, "read_position", position)

    async def handle(event: Event, record: Record) -> None:
        lags.append(samples())

    registry = CollectorRegistry()
    loop = ConsumerLoop(
        KafkaConnection("nowhere"),
        group="test",
        topics=[TOPIC],
        handler=handle,
        models=models_by_type(Tick),
        dead_letters=DeadLetters(log, service="test", redact=str, metrics=CollectorRegistry()),
    )
    registry.register(ConsumerLag(loop.behind))

    def samples() -> dict[str, float]:
        (family,) = registry.collect()
        return {one.labels["topic"]: one.value for one in family.samples}

    assert samples() == {}
    await loop.run(stop)
    assert lags == [{TOPIC: 13}, {TOPIC: 13}, {TOPIC: 13}, {TOPIC: 11}]
    assert samples() == {}
