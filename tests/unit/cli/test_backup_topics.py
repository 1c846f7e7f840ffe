"""What a backup of topics copies while services go on, and what a restore takes for whole."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from services.cli import backup_topics
from services.cli.backup_files import (
    BackupManifest,
    PartitionFile,
    StoredRecord,
    TopicFiles,
    encode,
    place,
)
from services.cli.backup_topics import restore, take, verify
from services.cli.errors import CliError
from shared.contracts.topics import (
    AGGREGATOR_CHANGELOG,
    FEEDBACK,
    PREFERENCES,
    TRAINING_RUNS,
    VERSIONS,
)
from shared.kafka.batches import MAX_RECORD_BYTES
from shared.kafka.security import KafkaConnection

CONNECTION = KafkaConnection("nowhere:9092")


class GrowingLog:
    """Topics of one empty partition each; each look at their ends finds one more record consumed."""

    def __init__(self) -> None:
        self.consumed = 0

    async def list_topics(self) -> list[str]:
        return [FEEDBACK, AGGREGATOR_CHANGELOG]

    async def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        return [{"topic": name, "partitions": [{"partition": 0}]} for name in names]

    async def describe_configs(self, resources: object) -> list[Any]:
        entries = [("cleanup.policy", "delete")]
        resource = [(0, "", 2, name, entries) for name in await self.list_topics()]
        return [type("Response", (), {"resources": resource})]

    async def list_consumer_group_offsets(self, group: str) -> dict[TopicPartition, Any]:
        committed = type("Committed", (), {"offset": self.consumed})
        return {TopicPartition(FEEDBACK, 0): committed}

    def assign(self, partitions: list[TopicPartition]) -> None:
        pass

    def seek(self, partition: TopicPartition, offset: int) -> None:
        pass

    async def position(self, partition: TopicPartition) -> int:
        return self.consumed

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> Mapping[Any, int]:
        return dict.fromkeys(partitions, self.consumed)

    async def end_offsets(self, partitions: list[TopicPartition]) -> Mapping[Any, int]:
        ends = dict.fromkeys(partitions, self.consumed)
        self.consumed += 1
        return ends


def use(
    monkeypatch: pytest.MonkeyPatch,
    log: GrowingLog,
    clients: Sequence[str] = ("_admin", "_consumer"),
) -> None:
    """Let the log stand for some of the broker's clients."""

    @asynccontextmanager
    async def client(connection: object) -> AsyncIterator[GrowingLog]:
        yield log

    for name in clients:
        monkeypatch.setattr(backup_topics, name, client)


async def test_no_consumer_group_is_ahead_of_the_copied_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, GrowingLog())
    manifest = await take(CONNECTION, tmp_path)
    (end,) = (one.end for one in manifest.topics[FEEDBACK].partitions)
    assert manifest.groups
    for group in manifest.groups.values():
        assert group[FEEDBACK][0] <= end


class DatasetLog(GrowingLog):
    """A log in which preferences grow, and versions name where they end."""

    async def list_topics(self) -> list[str]:
        return [PREFERENCES, TRAINING_RUNS, VERSIONS]


async def test_no_version_or_run_names_offsets_that_the_copy_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, DatasetLog())
    manifest = await take(CONNECTION, tmp_path)
    ends = {name: files.partitions[0].end for name, files in manifest.topics.items()}
    assert max(ends[VERSIONS], ends[TRAINING_RUNS]) < ends[PREFERENCES]


class ExpiringLog(GrowingLog):
    """A log of nine records, five of which expire before they are fetched."""

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> Mapping[Any, int]:
        return dict.fromkeys(partitions, 0)

    async def end_offsets(self, partitions: list[TopicPartition]) -> Mapping[Any, int]:
        return dict.fromkeys(partitions, 9)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.consumed = offset

    async def getmany(self, partition: TopicPartition, *, timeout_ms: int) -> Mapping[Any, Any]:
        self.consumed = 9
        fields = {"timestamp": 1, "key": b"k", "value": b"v", "headers": ()}
        records = [type("Record", (), {"offset": offset, **fields}) for offset in range(5, 9)]
        return {partition: records}


async def test_what_expires_while_it_is_copied_is_no_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, ExpiringLog())
    manifest = await take(CONNECTION, tmp_path)
    (partition,) = manifest.topics[FEEDBACK].partitions
    assert (partition.start, partition.end, partition.records) == (5, 9, 4)


async def test_a_full_disk_is_said_and_not_taken_for_an_unreachable_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, ExpiringLog())
    monkeypatch.setattr(backup_topics, "place", lambda *_: Path("/dev/full"))
    with pytest.raises(CliError, match="larger disk"):
        await take(CONNECTION, tmp_path)


class PartitionBounds:
    """One partition with offsets [start, end)."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> Mapping[Any, int]:
        return dict.fromkeys(partitions, self.start)

    async def end_offsets(self, partitions: list[TopicPartition]) -> Mapping[Any, int]:
        return dict.fromkeys(partitions, self.end)


@pytest.mark.parametrize(
    ("start", "end", "whole"),
    [(5, 9, True), (7, 9, True), (9, 9, True), (4, 9, False), (5, 10, False), (5, 8, False)],
)
async def test_a_restore_may_lose_old_records_to_retention_and_nothing_else(
    start: int, end: int, *, whole: bool
) -> None:
    partition = PartitionFile(start=5, end=9, records=4, sha256="")
    files = TopicFiles(compacted=False, partitions=(partition,))
    manifest = BackupManifest(topics={FEEDBACK: files}, groups={})
    consumer = cast("AIOKafkaConsumer", PartitionBounds(start, end))
    if whole:
        await verify(consumer, manifest)
    else:
        with pytest.raises(CliError, match="begin again with empty topics"):
            await verify(consumer, manifest)


async def test_whatever_a_service_may_write_can_be_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: dict[str, Any] = {}

    class Producer:
        def __init__(self, **arguments: Any) -> None:
            made.update(arguments)

        async def start(self) -> None:
            pass

        async def stop(self) -> None:
            pass

    monkeypatch.setattr(backup_topics, "AIOKafkaProducer", Producer)
    empty = BackupManifest(topics={}, groups={})
    use(monkeypatch, GrowingLog())
    await backup_topics.restore(CONNECTION, Path(), empty)
    assert made["max_request_size"] >= MAX_RECORD_BYTES


class EmptyLog(GrowingLog):
    """One empty partition to restore into, whose batches take three records."""

    def __init__(self) -> None:
        super().__init__()
        self.start = self.end = self.held = self.batches = 0

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> Mapping[Any, int]:
        return dict.fromkeys(partitions, self.start)

    async def end_offsets(self, partitions: list[TopicPartition]) -> Mapping[Any, int]:
        return dict.fromkeys(partitions, self.end)

    def create_batch(self) -> SimpleNamespace:
        records: list[object] = []

        def append(**record: object) -> bool:
            if len(records) == 3:
                return False
            records.append(record)
            return True

        return SimpleNamespace(records=records, append=append, close=lambda: None)

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> asyncio.Future[None]:
        self.batches += 1
        return self._stored(len(batch.records))

    async def send(self, topic: str, *_: object, **__: object) -> asyncio.Future[None]:
        return self._stored(1)

    def _stored(self, records: int) -> asyncio.Future[None]:
        self.end += records
        self.held = max(self.held, self.end - self.start)
        stored = asyncio.get_running_loop().create_future()
        stored.set_result(None)
        return stored

    async def delete_records(self, until: Mapping[TopicPartition, Any]) -> None:
        (self.start,) = (one.before_offset for one in until.values())


async def test_offsets_that_had_expired_are_skipped_by_batches_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EmptyLog()
    use(monkeypatch, log, ("_admin", "_consumer", "_producer"))
    monkeypatch.setattr(backup_topics, "DELETED_AT_ONCE", 6)
    file = PartitionFile(start=20, end=22, records=2, sha256="")
    with gzip.open(place(tmp_path, FEEDBACK, 0), "wb") as lines:
        for offset in (20, 21):
            lines.write(encode(StoredRecord(offset, 1, b"k", b"v")))
    topics = {FEEDBACK: TopicFiles(compacted=False, partitions=(file,))}
    await restore(CONNECTION, tmp_path, BackupManifest(topics=topics, groups={}))
    assert (log.start, log.end) == (20, 22)
    assert (log.batches, log.held) == (7, 6)


async def test_a_topic_whose_settings_are_refused_is_not_taken_for_one_that_is_not_compacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SecretLog(GrowingLog):
        async def describe_configs(self, resources: object) -> list[Any]:
            refused = (29, "", 2, AGGREGATOR_CHANGELOG, [])
            return [SimpleNamespace(resources=[refused])]

    use(monkeypatch, SecretLog())
    with pytest.raises(CliError, match=r"changelog: its settings.*TOPIC_AUTHORIZATION"):
        await take(CONNECTION, tmp_path)
