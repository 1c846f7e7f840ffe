"""The crash marker, and a consumer loop whose processes are ended at records of its choice."""

# pyright: basic
from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from shared.contracts.events.base import Event
from shared.contracts.events.quality import Tick
from shared.kafka import consumer
from shared.kafka.consumer import ConsumerLoop
from shared.kafka.crash_marker import CrashMarker, MarkedPlace
from shared.kafka.deadletters import DeadLetters, list_dead_letters
from shared.kafka.envelope import models_by_type
from shared.kafka.log import Record
from shared.kafka.security import KafkaConnection
from shared.testing.clock import START
from shared.testing.log import MemoryLog

TOPIC = "ratchet.test.v1"
PLACE = TopicPartition(TOPIC, 0)
MANY = [MarkedPlace(TOPIC, number, 7) for number in (0, 1)]
ONE = MarkedPlace(TOPIC, 0, 7)


class ProcessKilled(BaseException):
    """The process is over: nothing after it runs."""


@dataclass
class Broker:
    """One partition in batches, and a consumer that dies where a record of a batch is `deadly`."""

    sizes: list[int]
    inflating: int = -1
    """A batch whose reading ends the process."""
    committed: int = 0
    position_now: int = 0
    taken: list[int] = field(default_factory=list)
    stop_event: asyncio.Event | None = None
    elsewhere: bool = False
    """Whether the group has given the partition to another replica."""

    def __call__(self, **_: object) -> Broker:
        self.position_now = self.committed
        return self

    def subscribe(self, topics: object) -> None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def assignment(self) -> set[TopicPartition]:
        return set() if self.elsewhere else {PLACE}

    async def position(self, _: TopicPartition) -> int:
        return self.position_now

    async def end_offsets(self, _: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {PLACE: sum(self.sizes)}

    def seek(self, _: TopicPartition, offset: int) -> None:
        self.position_now = offset

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        self.committed = offsets[PLACE]

    async def getmany(self, *_: object, max_records: int, **__: object) -> dict:
        if self.elsewhere:
            assert self.stop_event is not None
            self.stop_event.set()
            return {}
        first, end = self.position_now, min(self.position_now + max_records, sum(self.sizes))
        if first >= end:
            assert self.stop_event is not None
            self.stop_event.set()
            return {}
        inflates = range(self._start(self.inflating), self._start(self.inflating + 1))
        if self.inflating >= 0 and inflates.start < end and first < inflates.stop:
            raise ProcessKilled
        self.position_now = end
        return {PLACE: [_message(offset) for offset in range(first, end)]}

    def _start(self, batch: int) -> int:
        return sum(self.sizes[:batch])

    @property
    def _fetcher(self) -> SimpleNamespace:
        ends = iter([self._start(number + 1) for number in range(len(self.sizes))])
        batches = SimpleNamespace(
            next_batch=lambda: SimpleNamespace(next_offset=end) if (end := next(ends, 0)) else None
        )
        result = FetchResult(
            PLACE,
            assignment=None,
            partition_records=SimpleNamespace(_records=batches),
            backoff=0,
        )
        return SimpleNamespace(_records={PLACE: result})


def _message(offset: int) -> ConsumerRecord:
    headers = (("ce_type", Tick.ce_type.encode()),)
    value = Tick(at=START, partition=0).to_json()
    return ConsumerRecord(TOPIC, 0, offset, 0, 0, None, value, None, 0, len(value), headers)  # type: ignore[arg-type]


async def process(
    broker: Broker, log: MemoryLog, path: Path, monkeypatch: pytest.MonkeyPatch, deadly: int
) -> bool:
    """Whether a process comes to the end of what it is given, alive."""
    monkeypatch.setattr(consumer, "AIOKafkaConsumer", broker)

    async def handle(_: Event, record: Record) -> None:
        if record.offset == deadly:
            raise ProcessKilled
        broker.taken.append(record.offset)

    broker.stop_event = asyncio.Event()
    loop = ConsumerLoop(
        KafkaConnection("nowhere"),
        group="test",
        topics=[TOPIC],
        handler=handle,
        models=models_by_type(Tick),
        dead_letters=DeadLetters(log, service="test", redact=str, metrics=CollectorRegistry()),
        marker=CrashMarker(path),
    )
    try:
        await loop.run(broker.stop_event)
    except ProcessKilled:
        return False
    return True


async def lives(
    broker: Broker, log: MemoryLog, path: Path, monkeypatch: pytest.MonkeyPatch, deadly: int = -1
) -> int:
    """How many processes it takes until every record is behind."""
    for number in range(1, 10):
        if await process(broker, log, path, monkeypatch, deadly):
            return number
    raise AssertionError("it is ended again and again")


@pytest.mark.parametrize(
    ("inflating", "deadly", "letter", "lost"),
    [(1, -1, 3, {3, 4, 5, 6}), (-1, 4, 4, {4})],
    ids=["a batch that inflates", "a record that ends its handler"],
)
async def test_what_ends_the_process_twice_is_stepped_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inflating: int,
    deadly: int,
    letter: int,
    lost: set[int],
) -> None:
    broker, log, path = Broker([3, 4, 5], inflating), MemoryLog(), tmp_path / "at.json"
    assert await lives(broker, log, path, monkeypatch, deadly) <= 4
    assert set(range(12)) - set(broker.taken) == lost
    assert broker.committed == 12
    found = await list_dead_letters(log)
    assert [(one.source_offset, one.reason) for one in found] == [(letter, "handler")]
    assert "twice" in found[0].detail
    assert not path.exists()


async def test_replicas_between_which_a_deadly_record_goes_step_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, log = Broker([3, 4, 5]), MemoryLog()
    replicas = [tmp_path / "one.json", tmp_path / "two.json"]
    for turn in range(12):
        # The one that died comes back while the other has the partition.
        broker.elsewhere = True
        await process(broker, log, replicas[turn % 2], monkeypatch, deadly=4)
        broker.elsewhere = False
        if await process(broker, log, replicas[turn % 2], monkeypatch, deadly=4):
            break
    assert (broker.committed, set(range(12)) - set(broker.taken)) == (12, {4})
    assert [one.source_offset for one in await list_dead_letters(log)] == [4]


async def test_a_stop_while_brokers_take_no_commit_is_no_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, log, path = Broker([3]), MemoryLog(), tmp_path / "at.json"

    async def refuse(_: object) -> None:
        assert broker.stop_event is not None
        broker.stop_event.set()
        raise KafkaError

    monkeypatch.setattr(broker, "commit", refuse)
    for _ in range(4):
        assert await lives(broker, log, path, monkeypatch) == 1
        assert not path.exists()
    assert not await list_dead_letters(log)


def test_a_single_place_is_blamed_at_its_second_death_and_many_are_not(tmp_path: Path) -> None:
    path = tmp_path / "at.json"
    for expected in (False, False, True):
        marker = CrashMarker(path)
        assert marker.ends_processes("read", ONE) is expected
        assert not marker.ends_processes("handle", ONE)
        marker.mark("read", [ONE])
    path.unlink()
    for _ in range(3):
        CrashMarker(path).mark("read", MANY)
    marker = CrashMarker(path)
    for place in MANY:
        assert marker.suspects(*place[:2])
        assert not marker.ends_processes("read", place)


def test_what_passes_elsewhere_forgets_no_death_in_a_partition_that_another_replica_has(
    tmp_path: Path,
) -> None:
    path, elsewhere = tmp_path / "at.json", MANY[1]
    CrashMarker(path).mark("handle", [ONE])
    marker = CrashMarker(path)
    marker.mark("handle", [elsewhere])
    marker.passed(*elsewhere[:2])
    marker.clear()
    CrashMarker(path).mark("handle", [ONE])  # the group gave the partition back
    marker = CrashMarker(path)
    assert marker.ends_processes("handle", ONE)
    marker.passed(*ONE[:2])
    marker.clear()
    assert not path.exists()


def test_an_orderly_end_or_a_torn_file_blames_nobody(tmp_path: Path) -> None:
    path = tmp_path / "at.json"
    marker = CrashMarker(path)
    marker.mark("read", [ONE])
    marker.clear()
    assert not CrashMarker(path).suspects(*ONE[:2])
    path.write_bytes(b'{"step": "read", "pl')
    assert not CrashMarker(path).suspects(*ONE[:2])


def test_a_disk_that_refuses_stops_no_consumer(tmp_path: Path) -> None:
    marker = CrashMarker(tmp_path / "absent" / "at.json")
    marker.mark("read", [ONE])
    marker.clear()
