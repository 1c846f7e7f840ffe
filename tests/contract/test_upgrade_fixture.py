"""What the previous release wrote is read by the present code: records, rows, checkpoints, spools.

The upgrade itself is tests/chaos/test_upgrade.py.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from services.aggregator.checkpoint import decode_checkpoint, part_prefix
from services.aggregator.disk_rows import INDEX_FORMAT, DiskRows
from services.aggregator.fold import FoldRules
from services.aggregator.partition import PartitionState
from services.aggregator.row_database import RowDatabase
from services.aggregator.rows import checkpoint_key, decode_row, kind_of
from services.aggregator.settings import AggregatorSettings
from services.cli.backup_files import BackupManifest, StoredRecord, load, place, read
from services.feedback.intake.settings import IntakeSettings
from services.feedback.settings import FeedbackSettings
from services.router.spool import Spool
from shared.contracts.catalogue import events_of
from shared.contracts.events.base import Event
from shared.contracts.events.quality import Tick
from shared.contracts.topics import (
    AGGREGATOR_CHANGELOG,
    API_KEYS,
    FEEDBACK,
    INTERACTIONS,
    PREFERENCES,
    ROLLOUTS,
    TICKS,
    VERSIONS,
    intake_topic,
    load_topics,
)
from shared.kafka.envelope import decode, models_by_type
from shared.testing.clock import ManualClock
from tests.support.memory_rows import MemoryRows
from tests.support.upgrade.make import FIXTURE
from tests.support.upgrade.replicas import FEEDBACKS, keeping_environment

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
            decode_checkpoint(record.value, lambda *_: b"{}")
            rows["checkpoint"] += 1
        elif record.key.startswith(part_prefix(partition)):
            rows["part"] += 1
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


AGED = timedelta(days=9 * 365)
"""After which the fixture is still of use, as the upgrade's test sets the services."""


def left_after(state: Path, backup: BackupManifest, rules: FoldRules, at: datetime) -> Counter[str]:
    """Rows of traces, and feedback that waits, once stream time has come to a moment."""
    changelog: dict[int, dict[bytes, bytes]] = defaultdict(dict)
    for partition, record in records(state, backup, AGGREGATOR_CHANGELOG):
        assert record.key is not None
        if record.value is None:
            changelog[partition].pop(record.key, None)
        else:
            changelog[partition][record.key] = record.value
    left: Counter[str] = Counter()
    for partition, stored in changelog.items():
        rows = MemoryRows(partition, rules, stored)
        owned = PartitionState(partition, rules=rules, stored=rows)
        owned.recover()
        owned.settle(list(rows.unsettled()))
        tick = Tick(at=at, partition=partition)
        offset = owned.expects(TICKS)
        owned.apply(TICKS, offset, tick, tick.to_json(), int(at.timestamp() * 1000))
        owned.confirm(owned.take())
        traces = sum(kind_of(key) == "trace" for key in stored)
        left.update(traces=traces, waiting=owned.pending)
    return left


def test_however_old_the_release_is_the_upgrade_s_test_finds_its_rows(
    state: Path, backup: BackupManifest
) -> None:
    made = datetime.fromisoformat(json.loads((FIXTURE / "manifest.json").read_text())["made_at"])
    env = keeping_environment("aggregator")
    days = float(env["RATCHET_AGGREGATOR_HORIZON_DAYS"])
    assert AggregatorSettings.model_validate({"horizon_days": days}).horizon_days == days
    keeping = FoldRules(horizon_s=days * 86_400)
    whole = left_after(state, backup, keeping, made)
    assert whole["traces"] > 0
    assert left_after(state, backup, keeping, made + AGED) == whole
    aged = left_after(state, backup, FoldRules(), made + timedelta(days=90))
    assert aged["traces"] < whole["traces"], "by default they go"


@pytest.mark.parametrize("name", [*FEEDBACKS, "intake"])
def test_however_old_the_release_is_the_upgrade_s_test_takes_its_submissions(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in keeping_environment(name).items():
        monkeypatch.setenv(variable, value)
    kind = IntakeSettings if name == "intake" else FeedbackSettings
    assert kind().rules.max_age > AGED


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
