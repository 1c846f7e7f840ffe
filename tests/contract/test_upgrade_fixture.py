"""What the previous release wrote is read by the present code: records, rows, checkpoints, spools.

The upgrade itself is tests/chaos/test_upgrade.py.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.aggregator.aggregates import Aggregates
from services.aggregator.disk_rows import INDEX_FORMAT, DiskRows
from services.aggregator.fold import FoldRules
from services.aggregator.row_database import RowDatabase
from services.aggregator.rows import checkpoint_key, decode_row
from services.cli.backup_files import BackupManifest, StoredRecord, load, place, read
from services.router.spool import Spool
from shared.contracts.catalogue import events_of
from shared.contracts.events.base import Event
from shared.contracts.topics import (
    AGGREGATOR_CHANGELOG,
    API_KEYS,
    FEEDBACK,
    INTERACTIONS,
    PREFERENCES,
    ROLLOUTS,
    VERSIONS,
    intake_topic,
    load_topics,
)
from shared.kafka.envelope import decode, models_by_type
from shared.testing.clock import ManualClock
from tests.support.upgrade.make import FIXTURE

MIB = 1024 * 1024
INTAKE = intake_topic("default")
MODELS: dict[str, dict[str, type[Event]]] = {
    one.name: models_by_type(*events_of(topic))
    for topic in load_topics()
    for one in topic.for_tenants(("default",))
}
USED = {INTERACTIONS, FEEDBACK, PREFERENCES, VERSIONS, ROLLOUTS, API_KEYS}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture, unpacked."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(FIXTURE / "state.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def backup(state: Path) -> BackupManifest:
    """Its topics; every file has the hash that the manifest names."""
    return load(state / "backup")


def records(state: Path, backup: BackupManifest, topic: str) -> Iterator[tuple[int, StoredRecord]]:
    """A topic's records, each with its partition."""
    for number in range(len(backup.topics[topic].partitions)):
        for record in read(place(state / "backup", topic, number)):
            yield number, record


def test_every_record_of_the_release_is_read(state: Path, backup: BackupManifest) -> None:
    seen: Counter[str] = Counter()
    for topic in backup.topics.keys() - {AGGREGATOR_CHANGELOG, INTAKE}:
        for _, record in records(state, backup, topic):
            if record.value is not None:
                decode(record.headers, record.value, MODELS[topic])
                seen[topic] += 1
    assert seen.keys() >= USED


def test_every_row_and_checkpoint_of_the_changelog_is_read(
    state: Path, backup: BackupManifest
) -> None:
    rows: Counter[str] = Counter()
    for partition, record in records(state, backup, AGGREGATOR_CHANGELOG):
        assert record.key is not None
        if record.value is None:
            continue
        if record.key == checkpoint_key(partition):
            Aggregates.decode(record.value)
            rows["checkpoint"] += 1
        else:
            rows[type(decode_row(record.key, record.value)).__name__] += 1
    assert rows.keys() >= {"checkpoint", "TraceRow", "PromptRow"}


def test_rows_on_disk_are_opened_where_the_release_left_them(
    state: Path, backup: BackupManifest
) -> None:
    (workers,) = {path.parent for path in (state / "data/aggregator").rglob("worker-0")}
    database = RowDatabase(workers, cache_bytes=MIB)
    try:
        for number, partition in enumerate(backup.topics[AGGREGATOR_CHANGELOG].partitions):
            rows = DiskRows(database, number, rules=FoldRules(), clock=ManualClock())
            position = rows.position()
            assert position is not None
            assert position.index_format == INDEX_FORMAT
            assert position.offset == partition.end - 1
            assert rows.held() > 0
    finally:
        database.close()


def test_what_waits_in_the_routers_spools_is_read(state: Path) -> None:
    waiting = 0
    for shipped in sorted((state / "data").glob("router*/**/shipped")):
        spool = Spool(shipped.parent, limit_bytes=MIB)
        while not spool.empty:
            found, end = spool.batch()
            for record in found:
                decode(record.headers, record.value, MODELS[record.topic])
            waiting += len(found)
            spool.trim(end)
    expected = json.loads((FIXTURE / "expected.json").read_text())
    assert waiting == expected["spooled"]
