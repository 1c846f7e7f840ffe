"""Folding of the log and the supervisor of its process: retries, reports, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.feedback.read_model import folding, store, supervisor
from services.feedback.read_model.folding import FoldingReport, ReadModelFolder
from services.feedback.read_model.marking import MarkChanges, SuspicionMark
from services.feedback.read_model.queries import ReadModelQueries
from services.feedback.read_model.store import LogReplaced, ReadModelStore
from services.feedback.read_model.supervisor import ReadModelMetrics, ReadModelSupervisor
from shared.clock import SystemClock
from shared.contracts.topics import EXAMPLES, FEEDBACK, PREFERENCES
from shared.kafka.envelope import encode
from shared.kafka.log import NewRecord, Record
from shared.testing.log import MemoryLog
from tests.support.aggregator import START, feedback
from tests.support.waiting import eventually

PATIENCE_S = 60.0
ALWAYS = timedelta(days=36_500)


class FullDisk(ReadModelStore):
    """A store whose disk is full as long as a test says."""

    full = False

    def fold(self, records: Sequence[Record], *, not_before_ms: int) -> int:
        if self.full:
            raise sqlite3.OperationalError("database or disk is full")
        return super().fold(records, not_before_ms=not_before_ms)


class FoldingHarness:
    """A log in memory, a store, and what was reported of folding the one into the other."""

    def __init__(self, path: Path) -> None:
        self.log = MemoryLog()
        self.store = FullDisk(path, max_bytes=100_000_000)
        self.queries = ReadModelQueries(path)
        self.reports: list[FoldingReport] = []

    async def send(self, name: str) -> None:
        event = feedback(name, name)
        headers = encode(event, source="/test", event_id=name, time=START)
        await self.log.append_many([NewRecord(FEEDBACK, name, event.to_json(), headers)])

    async def has(self, name: str) -> bool:
        return bool((await self.queries.feedback("acme", name, "")).revisions)

    def folder(self) -> ReadModelFolder:
        tail = self.log.tail(FEEDBACK, EXAMPLES, PREFERENCES, positions=self.store.positions())
        return ReadModelFolder(
            self.store, tail, SystemClock(), keep=ALWAYS, report=self.reports.append
        )


@asynccontextmanager
async def folding_of(harness: FoldingHarness) -> AsyncIterator[None]:
    task = asyncio.create_task(harness.folder().run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports and retries at once."""
    for name in ("REPORT_S", "RETRY_FIRST_S", "RETRY_MAX_S", "IDLE_S"):
        monkeypatch.setattr(folding, name, 0.01)


async def test_what_comes_is_found_and_the_age_reported(tmp_path: Path, quick: None) -> None:
    harness = FoldingHarness(tmp_path / "model")
    await harness.send("before")
    async with folding_of(harness):
        await eventually(lambda: harness.has("before"), "what was there", PATIENCE_S)
        await harness.send("after")
        await eventually(lambda: harness.has("after"), "what came", PATIENCE_S)
        await eventually(
            lambda: sum(report.folded for report in harness.reports) == 2, "counted", PATIENCE_S
        )
    assert harness.reports[-1].age_s is not None
    assert harness.reports[-1].age_s < PATIENCE_S
    assert harness.reports[-1].bytes > 0


async def test_a_full_disk_is_counted_and_tried_again_until_there_is_room(
    tmp_path: Path, quick: None
) -> None:
    harness = FoldingHarness(tmp_path / "model")
    harness.store.full = True
    names = [f"f{number}" for number in range(700)]
    for name in names:
        await harness.send(name)
    async with folding_of(harness):
        await eventually(
            lambda: sum(report.write_failures for report in harness.reports) > 3,
            "failures are counted",
            PATIENCE_S,
        )
        assert all(report.age_s is None for report in harness.reports), "behind the log"
        assert not await harness.has("f0")
        harness.store.full = False
        await eventually(lambda: harness.has(names[-1]), "all is folded", PATIENCE_S)
        assert all([await harness.has(name) for name in names[::50]])


async def test_a_second_run_goes_on_where_the_first_ended(tmp_path: Path, quick: None) -> None:
    harness = FoldingHarness(tmp_path / "model")
    await harness.send("first")
    async with folding_of(harness):
        await eventually(lambda: harness.has("first"), "the first", PATIENCE_S)
    harness.reports.clear()
    await harness.send("second")
    async with folding_of(harness):
        await eventually(lambda: harness.has("second"), "the second", PATIENCE_S)
        await eventually(
            lambda: sum(report.folded for report in harness.reports) == 1, "one", PATIENCE_S
        )


async def test_a_topic_made_anew_ends_the_folding(tmp_path: Path, quick: None) -> None:
    harness = FoldingHarness(tmp_path / "model")
    for number in range(40):
        await harness.send(f"f{number}")
    async with folding_of(harness):
        await eventually(
            lambda: sum(report.folded for report in harness.reports) == 40, "all", PATIENCE_S
        )
    harness.log = MemoryLog()
    await harness.send("f0")
    with pytest.raises(LogReplaced):
        await asyncio.wait_for(harness.folder().run(), PATIENCE_S)


REPORT = FoldingReport(
    age_s=0.5, folded=3, unreadable=1, write_failures=2, pruned=4, bytes=5000, oldest_ms=1
).model_dump_json()


def script(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


@asynccontextmanager
async def supervised(path: Path) -> AsyncIterator[tuple[ReadModelSupervisor, CollectorRegistry]]:
    registry = CollectorRegistry()
    kept = ReadModelSupervisor(path, ReadModelMetrics(registry), SystemClock())
    task = asyncio.create_task(kept.run())
    try:
        yield kept, registry
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def count(registry: CollectorRegistry, name: str) -> float:
    return registry.get_sample_value(f"ratchet_read_model_{name}") or 0.0


async def test_reports_become_series_and_other_lines_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"print('a warning', flush=True); print({REPORT!r}, flush=True)"
    monkeypatch.setattr(supervisor, "COMMAND", script(f"{lines}; import time; time.sleep(600)"))
    async with supervised(tmp_path / "model") as (kept, registry):
        assert kept.age_s() == math.inf
        await eventually(lambda: kept.age_s() < PATIENCE_S, "the report", PATIENCE_S)
        for name, value in (
            ("folded_total", 3), ("unreadable_total", 1), ("write_failures_total", 2),
            ("pruned_rows_total", 4), ("bytes", 5000), ("restarts_total", 0),
        ):  # fmt: skip
            assert count(registry, name) == value, name
        assert count(registry, "age_seconds") >= 0.5


async def test_marking_does_not_hold_up_folding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow_look(*_: object) -> MarkChanges:
        started.set()
        assert go_on.wait(PATIENCE_S)
        return MarkChanges(frozenset({SuspicionMark("acme", "p", "burst")}), frozenset())

    monkeypatch.setattr(store, "look_for_marks", slow_look)
    harness = FoldingHarness(tmp_path / "model")
    async with folding_of(harness):
        await eventually(started.is_set, "marking began", PATIENCE_S)
        await harness.send("during")
        await eventually(lambda: harness.has("during"), "folded while marking", PATIENCE_S)
        go_on.set()
        marked = "SELECT count(*) FROM suspicions"
        with contextlib.closing(sqlite3.connect(tmp_path / "model")) as read:
            await eventually(lambda: read.execute(marked).fetchone()[0], "marked", PATIENCE_S)


@pytest.mark.parametrize(
    "text", ["raise SystemExit(3)", "import time; time.sleep(600)"], ids=["ends", "is silent"]
)
async def test_a_process_that_ends_or_hangs_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(supervisor, "COMMAND", script(text))
    monkeypatch.setattr(supervisor, "SILENT_AFTER_S", 0.1)
    monkeypatch.setattr(supervisor, "RESTART_FIRST_S", 0.01)
    async with supervised(tmp_path / "model") as (_, registry):
        await eventually(lambda: count(registry, "restarts_total") >= 2, "restarts", PATIENCE_S)


async def test_a_program_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "COMMAND", ("/nonexistent/python",))
    monkeypatch.setattr(supervisor, "RESTART_FIRST_S", 0.01)
    async with supervised(tmp_path / "model") as (kept, registry):
        await eventually(lambda: count(registry, "restarts_total") >= 2, "tries", PATIENCE_S)
        assert kept.age_s() == math.inf


async def test_reindex_deletes_the_file_and_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    ReadModelStore(path, max_bytes=10_000_000).close()
    text = f"print({REPORT!r}, flush=True); import time; time.sleep(600)"
    monkeypatch.setattr(supervisor, "COMMAND", script(text))
    async with supervised(path) as (kept, registry):
        await eventually(lambda: kept.age_s() < PATIENCE_S, "the report", PATIENCE_S)
        kept.reindex()
        assert kept.age_s() == math.inf
        await eventually(lambda: not path.exists(), "the file is gone", PATIENCE_S)
        await eventually(lambda: kept.age_s() < PATIENCE_S, "a new process", PATIENCE_S)
        assert count(registry, "restarts_total") == 1
