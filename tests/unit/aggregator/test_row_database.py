"""The row database's files: a growing history is written once, and what leaves gives its room back."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from rocksdict import WriteBatch

import services.aggregator.row_database as module
from services.aggregator.row_database import MIB, RowDatabase
from tests.support.waiting import wait_until

BATCH = 100
VALUE_BYTES = 1000


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RowDatabase]:
    """One whose buffers, levels and looks are small enough for a test to fill."""
    monkeypatch.setattr(module, "WRITE_BUFFER_BYTES", MIB // 4)
    monkeypatch.setattr(module, "FIRST_LEVEL_BYTES", MIB // 8)
    monkeypatch.setattr(module, "FIRST_LEVEL_FILES", 2)
    monkeypatch.setattr(module, "WRITES_BETWEEN_LOOKS", 4)
    opened = RowDatabase(tmp_path, cache_bytes=MIB)
    yield opened
    opened.close()


def key(number: int) -> bytes:
    """In no order, as traces are."""
    return random.Random(number).randbytes(16)


def write(database: RowDatabase, numbers: Iterable[int], leaving: Iterable[int] = ()) -> None:
    made = random.Random(1)
    batch = WriteBatch(raw_mode=True)
    for number in numbers:
        batch.put(key(number), made.randbytes(VALUE_BYTES))
    for number in leaving:
        batch.delete(key(number))
    database.write(batch)


def files_of_values(database: RowDatabase) -> set[str]:
    return {path.name for path in database.path.glob("*.blob")}


def wait_for_room(database: RowDatabase, limit: int) -> None:
    """Compaction goes on in the background, and is asked for again as batches are written."""

    def has_room() -> bool:
        write(database, ())
        return database.disk_bytes() < limit

    wait_until(has_room, f"no more than {limit} bytes on disk")


def test_a_growing_history_is_written_once(database: RowDatabase) -> None:
    for first in range(0, 10_000, BATCH):
        write(database, range(first, first + BATCH))
    database.flush()
    early = files_of_values(database)
    assert len(early) > 10
    for first in range(10_000, 20_000, BATCH):
        write(database, range(first, first + BATCH))
    database.flush()
    assert early <= files_of_values(database), "merging keys moved values"


def test_rows_that_leave_in_their_order_give_their_room_back(database: RowDatabase) -> None:
    held = 5_000
    for first in range(0, 40_000, BATCH):
        old = first - held
        write(database, range(first, first + BATCH), range(old, old + BATCH) if old >= 0 else ())
    wait_for_room(database, 3 * held * VALUE_BYTES)


def test_holes_that_leaving_rows_make_are_closed(database: RowDatabase) -> None:
    """As a tenant's budget or failed requests make them, between rows that stay."""
    for first in range(0, 20_000, BATCH):
        write(database, range(first, first + BATCH))
    for first in range(20_000, 40_000, BATCH):
        old = first - 20_000
        leaving = (number for number in range(old, old + BATCH) if number % 10)
        write(database, range(first, first + BATCH), leaving)
    for first in range(40_000, 50_000, BATCH):  # most of what is held has left
        old = first - 20_000
        leaving = (
            number
            for half in (old, old + 10_000)
            for number in range(half, half + BATCH)
            if number % 10
        )
        write(database, range(first, first + BATCH), leaving)
    staying = sum(number % 10 == 0 for number in range(40_000)) + 10_000
    wait_for_room(database, 3 * staying * VALUE_BYTES)
    assert all(database.get(key(number)) is not None for number in range(0, 40_000, 10))
    assert database.get(key(1)) is None


def test_its_size_is_told_while_files_go(
    database: RowDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(database, range(BATCH))
    database.flush()
    whole = database.disk_bytes()
    listed = list(module.os.scandir(database.path))
    gone = database.path / "000000.sst"
    gone.touch()
    entries = list(module.os.scandir(database.path))
    gone.unlink()
    monkeypatch.setattr(module.os, "scandir", lambda _: iter(entries))
    assert len(entries) == len(listed) + 1
    assert database.disk_bytes() == whole
