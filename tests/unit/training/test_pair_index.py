"""Pair index: what the schedule counted is kept over restarts, and made anew where it cannot be."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.training import scheduler as scheduling
from services.training.dataset_store import DatasetStore
from services.training.errors import DiskFull, PairIndexDamaged
from services.training.jobs import JobQueue
from services.training.metrics import TrainingMetrics
from services.training.pair_index import FILE, CountedPair, PairIndex
from services.training.reward_freshness import KnownVerdicts
from services.training.scheduler import Scheduler
from services.training.settings import TrainingSettings
from services.training.trigger import PairCounter
from shared.clock import SystemClock
from shared.contracts.events.preferences import PreferencePair, PreferenceRetracted
from shared.contracts.topics import PREFERENCES
from shared.kafka.log import Record
from shared.registry.follow import RegistryFollower
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually
from tests.unit.training.builders import MODEL, pair_event, retraction

PAIRS = 40
PAIR = CountedPair(b"\x01" * 16, 0.25, ("ann",), "", "chat", "ratchet.preferences.v1/0", 7, True)


@pytest.fixture
async def log() -> MemoryLog:
    log = MemoryLog()
    for number in range(PAIRS):
        await publish(log, pair_event(number, raters=(f"rater-{number % 7}",)))
    return log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "training"
    folder.mkdir()
    return folder


async def publish(log: MemoryLog, event: PreferencePair | PreferenceRetracted) -> None:
    await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)


@contextlib.asynccontextmanager
async def counting(
    log: MemoryLog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[PairIndex, list[int]]]:
    """The schedule's reading at work: its index, and the offsets of the pairs that it decoded."""
    decoded: list[int] = []
    monkeypatch.setattr(scheduling, "KEEP_S", 0.01)
    settings = TrainingSettings(datasets_uri=f"file://{folder}/datasets")
    index = PairIndex(folder, "here")
    scheduler = Scheduler(
        event_log=log,
        queue=JobQueue(),
        registry=RegistryFollower(log),
        store=DatasetStore(settings.datasets_uri),
        settings=settings,
        metrics=TrainingMetrics(CollectorRegistry()),
        clock=SystemClock(),
        index=index,
    )
    apply = scheduler._pairs.apply

    def noted(event: PreferencePair, place: str, offset: int) -> None:
        decoded.append(offset)
        apply(event, place, offset)

    with monkeypatch.context() as patched:
        patched.setattr(scheduler._pairs, "apply", noted)
        tasks = [asyncio.create_task(scheduler.count()), asyncio.create_task(scheduler.keep())]
        try:
            yield index, decoded
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            index.close()
    assert not [error for error in ended if isinstance(error, Exception)]


def on_disk(folder: Path) -> int:
    """Pairs that a process would find that begins now; fewer than none before the first commit."""
    with contextlib.closing(sqlite3.connect(folder / FILE)) as connection:
        if not connection.execute("SELECT * FROM sqlite_master").fetchall():
            return -1
        ((count,),) = connection.execute("SELECT count(*) FROM pairs").fetchall()
    return int(count)


async def kept(
    log: MemoryLog, folder: Path, monkeypatch: pytest.MonkeyPatch, pairs: int
) -> list[int]:
    """Count until so many pairs are on disk; the offsets of what was decoded for it."""
    async with counting(log, folder, monkeypatch) as (_, decoded):
        await eventually(lambda: on_disk(folder) == pairs, f"{pairs} pairs are on disk")
    return decoded


async def test_a_restart_decodes_what_came_since(
    log: MemoryLog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(await kept(log, folder, monkeypatch, PAIRS)) == PAIRS
    await publish(log, pair_event(PAIRS))
    await publish(log, retraction("pair-0003"))
    await publish(log, retraction("pair-0005"))
    assert len(await kept(log, folder, monkeypatch, PAIRS - 1)) == 3
    assert await kept(log, folder, monkeypatch, PAIRS - 1) == []


async def test_what_is_counted_after_a_restart_is_what_the_whole_topic_gives(
    log: MemoryLog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kept(log, folder, monkeypatch, PAIRS)
    rules, day = TrainingSettings().rules, pair_event(0).created_at.date()
    whole = PairCounter(MODEL, rules)
    for record in log.all(PREFERENCES):
        number = int(record.key.removeprefix("pair-"))
        event = pair_event(number, raters=(f"rater-{number % 7}",))
        whole.apply(event, f"{record.topic}/{record.partition}", record.offset)
    again = PairCounter(MODEL, rules, index=PairIndex(folder, "here"))
    offsets = {f"{PREFERENCES}/0": 3}
    assert again.counts(offsets, day) == whole.counts(offsets, day)
    assert again.shapes(offsets) == whole.shapes(offsets)
    assert again.counts(offsets, day).new.total() > 0


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)


def execute(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize(
    "harm",
    [
        damage,
        lambda path: path.write_bytes(b"no database, but long enough to be read" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.unlink(),
        lambda path: execute(path, "PRAGMA user_version = 99"),
        lambda path: execute(path, "UPDATE about SET origin = 'other rules'"),
        lambda path: execute(path, "UPDATE newest SET stored_ms = 1"),
        lambda path: execute(path, "UPDATE newest SET offset = offset + 1000"),
    ],
    ids=["damaged", "no database", "cut off", "lost", "format", "origin", "topic", "ahead"],
)
async def test_a_file_that_cannot_be_used_is_made_anew(
    harm: Callable[[Path], object],
    log: MemoryLog,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await kept(log, folder, monkeypatch, PAIRS)
    harm(folder / FILE)
    async with counting(log, folder, monkeypatch) as (_, decoded):
        await eventually(lambda: len(decoded) == PAIRS, "all pairs are read again")
        await eventually(lambda: on_disk(folder) == PAIRS, "they are on disk")


async def test_a_topic_that_is_made_anew_is_counted_from_its_beginning(
    log: MemoryLog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kept(log, folder, monkeypatch, PAIRS)
    await log.recreate(PREFERENCES)
    for number in range(3 * PAIRS):
        await publish(log, pair_event(1000 + number, raters=("new",)))
    async with counting(log, folder, monkeypatch) as (index, _):
        await eventually(lambda: on_disk(folder) == 3 * PAIRS, "the new pairs are on disk")
        assert {pair.raters for pair in index.pairs()} == {("new",)}


@pytest.mark.parametrize("live", [True, False])
async def test_a_topic_that_is_made_anew_is_noticed_before_it_has_a_record(
    live: bool, log: MemoryLog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kept(log, folder, monkeypatch, PAIRS)
    if not live:
        await log.recreate(PREFERENCES)
    async with counting(log, folder, monkeypatch):
        if live:
            await log.recreate(PREFERENCES)
        await eventually(lambda: on_disk(folder) == 0, "the pairs of the topic before are gone")


def test_closed_under_a_thread_it_neither_crashes_nor_is_lost(folder: Path) -> None:
    index = PairIndex(folder, "here")
    for number in range(200):
        read(index, number)
    index.commit()
    entered, release = threading.Event(), threading.Event()

    def slow() -> None:
        for _ in index.pairs():
            entered.set()
            release.wait(20)

    reading, closing = threading.Thread(target=slow), threading.Thread(target=index.close)
    reading.start()
    assert entered.wait(20)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive(), "it waits for the thread that reads"
    release.set()
    for thread in (reading, closing):
        thread.join(20)
        assert not thread.is_alive()
    with pytest.raises(sqlite3.ProgrammingError):
        index.commit()
    assert len(PairIndex(folder, "here")) == 200


def test_verdicts_are_kept_until_the_topic_is_another(folder: Path) -> None:
    votes = KnownVerdicts("r1", {("p/0", 1): True, ("p/1", 2): False})
    index = PairIndex(folder, "here")
    index.keep_verdicts(KnownVerdicts("r0", {("p/0", 7): True}))
    index.keep_verdicts(votes)
    index.commit()
    index.close()
    again = PairIndex(folder, "here")
    assert again.verdicts() == votes
    again.reset()
    again.commit()
    again.close()
    assert PairIndex(folder, "here").verdicts() == KnownVerdicts()


def test_a_pair_stands_at_its_own_place_until_it_is_taken_out() -> None:
    index = PairIndex()
    index.put("one", PAIR)
    assert index.stands("one", (PAIR.place, PAIR.offset))
    assert not index.stands("one", (PAIR.place, PAIR.offset + 1)), "a newer one is in its place"
    index.pop("one")
    assert not index.stands("one", (PAIR.place, PAIR.offset))


async def test_who_rated_a_pair_leaves_every_file_with_it(
    log: MemoryLog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(log, pair_event(99, raters=("gone-for-ever",)))
    async with counting(log, folder, monkeypatch):
        await eventually(lambda: on_disk(folder) == PAIRS + 1, "all pairs are on disk")
        assert b"gone-for-ever" in (folder / FILE).read_bytes()
        await publish(log, retraction("pair-0099"))
        await eventually(lambda: on_disk(folder) == PAIRS, "the pair is gone")
        left = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    assert b"gone-for-ever" not in left


def test_killed_after_any_record_the_next_process_goes_on(tmp_path: Path) -> None:
    """What a killed process leaves are its files as they are; SQLite takes half a batch back."""
    folder = tmp_path / "killed"
    folder.mkdir()
    index = PairIndex(folder, "here")
    for number in range(12):
        read(index, number)
        if number % 5 == 4:
            index.commit()
        left = tmp_path / str(number)
        shutil.copytree(folder, left)
        again = PairIndex(left, "here")
        stored = (number + 1) // 5 * 5
        assert len(again) == stored
        assert again.positions() == ({(PREFERENCES, 0): stored - 1} if stored else {})
        for later in range(max(0, stored - 1), 12):
            read(again, later)
        assert len(again) == 12
        again.close()
    index.close()


def read(index: PairIndex, offset: int) -> None:
    record = Record(PREFERENCES, 0, offset, f"pair-{offset}", b"", (), 1_000 + offset)
    if index.takes(record):
        index.put(f"pair-{offset}", PAIR._replace(offset=offset))


def test_a_pair_is_read_as_it_was_stored(folder: Path) -> None:
    index = PairIndex(folder, "here")
    lone = PAIR._replace(raters=(), prompt_rank=1 / 3, judges=False, label=False, day=739_000)
    index.put("a", PAIR)
    index.put("b", lone)
    index.commit()
    index.close()
    assert list(PairIndex(folder, "here").pairs()) == [PAIR, lone]


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"no room .* free some below .*missing"):
        PairIndex(tmp_path / "missing", "here")


def test_a_file_damaged_under_a_running_process_is_made_anew_by_the_next(folder: Path) -> None:
    index = PairIndex(folder, "here")
    for number in range(500):
        read(index, number)
    index.commit()
    damage(folder / FILE)
    index._connection.execute("PRAGMA cache_size = 0")
    index._connection.execute("PRAGMA shrink_memory")
    with pytest.raises(PairIndexDamaged, match="made anew"):
        list(index.pairs())
    index.close()
    assert len(PairIndex(folder, "here")) == 0
