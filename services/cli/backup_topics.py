"""Topics to files and back, with the offsets that checkpoints, fencing tokens and datasets name."""

# pyright: basic, reportMissingTypeStubs=false
# aiokafka has no types.
from __future__ import annotations

import errno
import gzip
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import for_code
from aiokafka.structs import OffsetAndMetadata

from services.cli.backup_files import (
    BackupManifest,
    PartitionFile,
    StoredRecord,
    TopicFiles,
    encode,
    file_hash,
    place,
    read,
)
from services.cli.errors import CliError, Exit
from shared.contracts.topics import TRAINING_RUNS, VERSIONS
from shared.kafka.acls import ALL_TOPICS, CONSUMER_GROUPS
from shared.kafka.batches import MAX_RECORD_BYTES
from shared.kafka.security import KafkaConnection

CLIENT = "ratchet-backup"
CHANGELOG = "-changelog"
"""How Faust ends the name of a table's changelog."""
NAME_OFFSETS = (VERSIONS, TRAINING_RUNS)
FETCH_MS = 1000
IDLE_FETCHES = 60
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
IN_FLIGHT = 2000
"""Records sent before the oldest is awaited."""
DELETED_AT_ONCE = 1_000_000
"""Placeholders after which those so far are deleted again, so that a disk holds few of them."""


class Bounds(NamedTuple):
    """Offsets [start, end) that a partition has."""

    start: int
    end: int


async def take(connection: KafkaConnection, folder: Path) -> BackupManifest:
    """Copy every topic of Ratchet, and where its consumer groups are, into an empty folder.

    Groups, then the changelog, then records of versions and runs come first: the offsets that they
    name may lag behind the topics that they cover, as after a crash, and never be ahead of them. A
    group ahead would skip what is written after a restore, and a dataset could not be rebuilt.

    Raises:
        CliError: a log has a hole in its middle, so that no copy could keep its offsets; the folder's
            disk is full.
    """
    async with _admin(connection) as admin, _consumer(connection) as consumer:
        names = [name for name in await admin.list_topics() if name.startswith(ALL_TOPICS)]
        policies = await _compacted(admin, names)
        places = await _partitions(admin, names)
        groups = {
            group: await _committed(admin, group)
            for service in CONSUMER_GROUPS.values()
            for group in service
        }
        topics = {
            name: await _copy_topic(consumer, folder, places[name], compacted=policies[name])
            for name in sorted(names, key=_turn)
        }
    manifest = BackupManifest(topics=topics, groups=groups)
    manifest.save(folder)
    return manifest


def _turn(topic: str) -> tuple[bool, bool, str]:
    """Sorts topics that name others' offsets before those."""
    return not topic.endswith(CHANGELOG), topic not in NAME_OFFSETS, topic


async def _copy_topic(
    consumer: AIOKafkaConsumer, folder: Path, partitions: list[TopicPartition], *, compacted: bool
) -> TopicFiles:
    files = []
    for one in partitions:
        try:
            files.append(last := await _copy_partition(consumer, folder, one))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise CliError(
                f"{folder}: {error.strerror}; take the backup into a new folder on a larger disk",
                Exit.failed,
            ) from error
        if not compacted and last.records != last.end - last.start:
            raise CliError(
                f"{one.topic}: partition {one.partition} has {last.records} records from {last.start} to "
                f"{last.end}; with a hole its offsets cannot be kept: copy the brokers' volumes",
                Exit.failed,
            )
    return TopicFiles(compacted=compacted, partitions=tuple(files))


async def _copy_partition(
    consumer: AIOKafkaConsumer, folder: Path, partition: TopicPartition
) -> PartitionFile:
    consumer.assign([partition])
    start, end = (await bounds(consumer, [partition]))[partition]
    consumer.seek(partition, start)
    path, records, idle = place(folder, partition.topic, partition.partition), 0, 0
    with gzip.open(path, "wb", compresslevel=1) as file:
        while await consumer.position(partition) < end:
            fetched = await consumer.getmany(partition, timeout_ms=FETCH_MS)
            found = [one for one in fetched.get(partition, ()) if one.offset < end]
            for one in found:
                headers = tuple(one.headers)
                record = StoredRecord(one.offset, one.timestamp, one.key, one.value, headers)
                file.write(encode(record))
            if found and not records:
                start = found[0].offset  # retention may have taken what was before
            records += len(found)
            idle = 0 if found else idle + 1
            if idle == IDLE_FETCHES:
                raise CliError(
                    f"{partition.topic}: partition {partition.partition} sends nothing after "
                    f"{records} records; see the brokers' logs and take another backup",
                    Exit.unreachable,
                )
    if not records:
        start = end
    return PartitionFile(start=start, end=end, records=records, sha256=file_hash(path))


async def restore(connection: KafkaConnection, folder: Path, manifest: BackupManifest) -> None:
    """Write a backup's records into topics that exist and are empty, under the offsets they had.

    Compacted topics are written without the holes that compaction left: nothing names their offsets.

    Raises:
        CliError: a topic is missing, has other partitions, or is not empty; nothing was written.
    """
    async with _admin(connection) as admin:
        places = await _partitions(admin, list(manifest.topics))
    _require_same_partitions(places, manifest)
    async with _consumer(connection) as consumer:
        await _require_empty(consumer, places)
    async with _admin(connection) as admin, _producer(connection) as producer:
        for topic, files in manifest.topics.items():
            for number, partition in enumerate(files.partitions):
                if not files.compacted:
                    await _skip(admin, producer, TopicPartition(topic, number), partition.start)
                await _send(producer, topic, number, read(place(folder, topic, number)))
    async with _consumer(connection) as consumer:
        await verify(consumer, manifest)
    for group, topics in manifest.groups.items():
        await _commit(connection, group, topics)


async def _skip(
    admin: AIOKafkaAdminClient, producer: AIOKafkaProducer, partition: TopicPartition, start: int
) -> None:
    """Let an empty partition begin at `start`, as where retention had deleted what was before.

    A broker gives no offset away: each gets a placeholder, by batches as large as it takes, and those
    are deleted.
    """
    written = 0
    while written < start:
        until = min(start, written + DELETED_AT_ONCE)
        while written < until:
            batch = producer.create_batch()
            while written < until and batch.append(key=None, value=b"", timestamp=None):
                written += 1
            batch.close()
            await (await producer.send_batch(batch, partition.topic, partition=partition.partition))
        await admin.delete_records({partition: RecordsToDelete(until)})


async def _send(
    producer: AIOKafkaProducer, topic: str, partition: int, records: Iterable[StoredRecord]
) -> None:
    sent: list[Any] = []
    for record in records:
        sent.append(
            await producer.send(
                topic,
                record.value,
                record.key,
                partition=partition,
                timestamp_ms=record.timestamp_ms or None,
                headers=list(record.headers),
            )
        )
        if len(sent) == IN_FLIGHT:
            for future in sent:
                await future
            sent.clear()
    for future in sent:
        await future


def _require_same_partitions(
    places: Mapping[str, list[TopicPartition]], manifest: BackupManifest
) -> None:
    for topic, files in manifest.topics.items():
        if len(places[topic]) != len(files.partitions):
            raise CliError(
                f"{topic}: {len(places[topic])} partitions, the backup has "
                f"{len(files.partitions)}; run ratchet topics apply with the same RATCHET_TENANTS "
                "and RATCHET_KAFKA_JOIN_PARTITIONS",
                Exit.usage,
            )


async def _require_empty(
    consumer: AIOKafkaConsumer, places: Mapping[str, list[TopicPartition]]
) -> None:
    for topic, partitions in places.items():
        if any(end for _, end in (await bounds(consumer, partitions)).values()):
            raise CliError(
                f"{topic}: has records; a backup is restored into empty topics only, while no "
                "service runs",
                Exit.usage,
            )


async def verify(consumer: AIOKafkaConsumer, manifest: BackupManifest) -> None:
    """Check that every restored partition ends where the backup does.

    It may begin later: retention takes old records while the restore runs.

    Raises:
        CliError: a partition has other offsets.
    """
    for topic, files in manifest.topics.items():
        places = [TopicPartition(topic, number) for number in range(len(files.partitions))]
        found = await bounds(consumer, places)
        for where, partition in zip(places, files.partitions, strict=True):
            expected = Bounds(partition.start, partition.end)
            if files.compacted:
                expected = Bounds(0, partition.records)
            start, end = found[where]
            if end != expected.end or not expected.start <= start <= end:
                raise CliError(
                    f"{topic}: partition {where.partition} has offsets {found[where]} and not "
                    f"{expected}: something else wrote to it; begin again with empty topics",
                    Exit.failed,
                )


async def bounds(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition]
) -> Mapping[TopicPartition, Bounds]:
    """First and next offset of some partitions."""
    starts = await consumer.beginning_offsets(partitions)
    ends = await consumer.end_offsets(partitions)
    return {one: Bounds(starts[one], ends[one]) for one in partitions}


async def _partitions(
    admin: AIOKafkaAdminClient, names: list[str]
) -> dict[str, list[TopicPartition]]:
    """The partitions of some topics, none of one that does not exist."""
    return {
        topic["topic"]: sorted(
            TopicPartition(topic["topic"], one["partition"]) for one in topic["partitions"]
        )
        for topic in await admin.describe_topics(names)
    }


async def _compacted(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, bool]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found: dict[str, bool] = {}
    for response in await admin.describe_configs(resources):
        for resource in response.resources:  # pyright: ignore[reportAttributeAccessIssue]
            if resource[0]:
                raise CliError(
                    f"{resource[3]}: its settings cannot be read: {for_code(resource[0]).message}",
                    Exit.refused,
                )
            policy = {entry[0]: entry[1] for entry in resource[4]}.get("cleanup.policy", "")
            found[resource[3]] = "compact" in policy
    return found


async def _committed(admin: AIOKafkaAdminClient, group: str) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    for partition, committed in (await admin.list_consumer_group_offsets(group)).items():
        found.setdefault(partition.topic, {})[partition.partition] = committed.offset
    return found


async def _commit(
    connection: KafkaConnection, group: str, topics: Mapping[str, Mapping[int, int]]
) -> None:
    offsets = {
        TopicPartition(topic, partition): OffsetAndMetadata(offset, "")
        for topic, partitions in topics.items()
        for partition, offset in partitions.items()
        if offset >= 0
    }
    if not offsets:
        return
    async with _consumer(connection, group=group) as consumer:
        consumer.assign(list(offsets))
        await consumer.commit(offsets)


@asynccontextmanager
async def _admin(connection: KafkaConnection) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**connection.client_arguments(), client_id=CLIENT)
    await connection.start(admin)
    try:
        yield admin
    finally:
        await admin.close()


@asynccontextmanager
async def _consumer(
    connection: KafkaConnection, *, group: str | None = None
) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        **connection.client_arguments(),
        client_id=CLIENT,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await connection.start(consumer)
    try:
        yield consumer
    finally:
        await consumer.stop()


@asynccontextmanager
async def _producer(connection: KafkaConnection) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        **connection.client_arguments(),
        client_id=CLIENT,
        acks="all",
        enable_idempotence=True,
        compression_type="gzip",
        max_request_size=MAX_RECORD_BYTES,
        linger_ms=5,
    )
    await connection.start(producer)
    try:
        yield producer
    finally:
        await producer.stop()
