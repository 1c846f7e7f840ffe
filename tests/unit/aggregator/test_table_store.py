"""What Faust is told of the rows on disk, and what ends the worker instead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from services.aggregator.disk_rows import DiskRows
from services.aggregator.fold import FoldRules
from services.aggregator.row_database import MIB, RowDatabase
from services.aggregator.rows import TraceRow, trace_key
from services.aggregator.table_store import TOMBSTONES_S, TableStore
from shared.testing.clock import ManualClock

TOPIC = "changelog"


class StoreHarness:
    """A table store over a database, and what it ended the process with."""

    def __init__(self, database: RowDatabase) -> None:
        self.clock = ManualClock()
        self.died: list[str] = []
        self._database = database
        self.store = TableStore(
            None,
            SimpleNamespace(name="joins"),
            rows=self.rows,
            clock=self.clock,
            die=self.died.append,
        )

    def rows(self, partition: int) -> DiskRows:
        return DiskRows(self._database, partition, rules=FoldRules(), clock=self.clock)

    def apply(self, *records: tuple[int, int, bytes | None]) -> None:
        """Records as (partition, offset, row)."""
        events = [
            SimpleNamespace(
                message=SimpleNamespace(
                    partition=partition,
                    offset=offset,
                    key=trace_key(partition, "acme", str(offset)),
                    value=row,
                )
            )
            for partition, offset, row in records
        ]
        self.store.apply_changelog_batch(events, to_key=_unused, to_value=_unused)


def _unused(value: Any) -> Any:
    raise AssertionError(value)


ROW = TraceRow(touched_s=1.0).encode()


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[StoreHarness]:
    database = RowDatabase(tmp_path, cache_bytes=MIB)
    yield StoreHarness(database)
    database.close()


def test_each_partition_goes_on_where_its_rows_are(harness: StoreHarness) -> None:
    assert harness.store.persisted_offset(TP(TOPIC, 0)) is None
    harness.apply((0, 4, ROW), (1, 8, ROW), (0, 5, ROW))
    assert harness.store.persisted_offset(TP(TOPIC, 0)) == 5
    assert harness.store.persisted_offset(TP(TOPIC, 1)) == 8
    assert (harness.rows(0).held(), harness.rows(1).held()) == (2, 1)
    assert (harness.store.restored(), harness.store.restored()) == (3, 0)


def test_rows_older_than_the_changelogs_tombstones_are_restored_whole(
    harness: StoreHarness,
) -> None:
    harness.apply((0, 4, ROW))
    harness.clock.advance(TOMBSTONES_S - 1)
    harness.apply((1, 8, ROW))
    assert harness.store.persisted_offset(TP(TOPIC, 0)) == 4
    harness.clock.advance(2)
    assert harness.store.persisted_offset(TP(TOPIC, 0)) is None
    assert harness.rows(0).held() == 0
    assert harness.store.persisted_offset(TP(TOPIC, 1)) == 8


def test_rows_with_indexes_of_an_earlier_release_are_restored_whole(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.aggregator.disk_rows.INDEX_FORMAT", 1)
    harness.apply((0, 4, ROW))
    monkeypatch.undo()
    harness.apply((1, 8, ROW))
    assert harness.store.persisted_offset(TP(TOPIC, 0)) is None
    assert (harness.rows(0).held(), harness.rows(0).tenants()) == (0, {})
    assert harness.store.persisted_offset(TP(TOPIC, 1)) == 8
    assert harness.rows(1).tenants() == {"acme": len(ROW)}


def test_old_rows_of_partitions_that_others_own_are_deleted(harness: StoreHarness) -> None:
    harness.apply((0, 4, ROW), (1, 8, ROW))
    harness.clock.advance(TOMBSTONES_S + 1)
    harness.store.sweep(range(3), owned={0})
    assert (harness.rows(0).held(), harness.rows(1).held()) == (1, 0)


def test_rows_ahead_of_the_changelog_are_deleted_and_the_worker_ends(
    harness: StoreHarness,
) -> None:
    harness.apply((0, 4, ROW))
    harness.store.check(0, 4)
    assert harness.died == []
    harness.store.check(0, 3)
    assert len(harness.died) == 1
    assert harness.rows(0).position() is None


def test_what_cannot_be_stored_ends_the_worker_and_not_only_a_line_in_fausts_log(
    harness: StoreHarness,
) -> None:
    with pytest.raises(ValueError, match="unpack"):
        harness.apply((0, 4, b"[]\n"))
    assert harness.died[0].startswith("recovering: ")
