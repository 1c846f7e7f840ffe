"""Folding of the log into the read model: bounded batches, retries on a full disk, retention.

Runs in a process of its own (`python -m services.feedback.read_model`), so that neither its work nor
its disk delays ingestion. It reports on standard output, one JSON object a second.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Callable, Sequence
from datetime import timedelta

import structlog
from pydantic import BaseModel, ConfigDict

from services.feedback.read_model.store import ReadModelStore
from shared.backoff import Backoff
from shared.clock import Clock
from shared.kafka.log import Record, Tail
from shared.rater_marks import RaterRules

log = structlog.get_logger(__name__)

BATCH = 500
RATER_RULES = RaterRules()
WAITING = 200
"""Records read and not folded yet: with a record's 1 MB at most, what memory they may take."""
IDLE_S = 0.25
REPORT_S = 1.0
PRUNE_S = 10.0
MARK_S = 60.0
"""How often suspicious training data are looked for, in a thread beside the folding."""
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 10.0


class FoldingReport(BaseModel):
    """What the folding process did since its last report, and where it is."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    age_s: float | None
    """Seconds since all of the log was folded; None before the first time."""
    folded: int
    unreadable: int
    write_failures: int
    pruned: int
    bytes: int
    oldest_ms: int | None
    """When the oldest kept record was stored in the log."""


class ReadModelFolder:
    """Folds what a tail hands out, as it comes."""

    def __init__(
        self,
        store: ReadModelStore,
        tail: Tail,
        clock: Clock,
        *,
        keep: timedelta,
        report: Callable[[FoldingReport], None],
    ) -> None:
        self._store = store
        self._tail = tail
        self._clock = clock
        self._keep = keep
        self._report = report
        self._waiting: asyncio.Queue[Record] = asyncio.Queue(WAITING)
        self._whole_at = -math.inf
        self._folded = 0
        self._write_failures = 0
        self._pruned = 0
        self._unreadable = 0
        self._reported_at = self._pruned_at = clock.monotonic()
        self._marked_at = -math.inf
        self._marking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Fold until cancelled.

        Raises:
            LogReplaced: the topics are not those that were folded.
            sqlite3.DatabaseError: the file is damaged.

        """
        reading = asyncio.create_task(self._read())
        try:
            while not reading.done():
                await self._fold(await self._batch())
                self._housekeep()
            reading.result()
        finally:
            tasks = [reading, *([self._marking] if self._marking else [])]
            for task in tasks:
                task.cancel()
            await self._tail.close()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        async for record in self._tail:
            await self._waiting.put(record)

    async def _batch(self) -> list[Record]:
        """What waits, at most BATCH records; empty where none came for IDLE_S seconds."""
        try:
            async with asyncio.timeout(IDLE_S):
                batch = [await self._waiting.get()]
        except TimeoutError:
            return []
        while len(batch) < BATCH and not self._waiting.empty():
            batch.append(self._waiting.get_nowait())
            # The reader puts the next one as soon as there is room.
            await asyncio.sleep(0)
        return batch

    async def _fold(self, batch: Sequence[Record]) -> None:
        """Store a batch, as often as it takes: a full disk delays the model and loses nothing."""
        backoff = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        while batch:
            try:
                self._folded += self._store.fold(batch, not_before_ms=self._not_before_ms())
            except sqlite3.OperationalError as error:
                self._failed(error)
                self._housekeep()
                await asyncio.sleep(backoff.next_s())
                continue
            break
        if self._waiting.empty():
            self._whole_at = self._clock.monotonic() - self._tail.age_s()

    def _housekeep(self) -> None:
        """Delete what is old or too much, mark and report, each in its own interval."""
        now = self._clock.monotonic()
        if self._store.is_full() or now - self._pruned_at >= PRUNE_S:
            try:
                pruned = self._store.prune(not_before_ms=self._not_before_ms())
            except sqlite3.OperationalError as error:
                pruned = 0
                self._failed(error)
            self._pruned += pruned
            if not pruned:  # else there may be more, and the next round goes on
                self._pruned_at = now
        if self._marking is not None and self._marking.done():
            self._marking.result()  # a damaged file ends the folding
            self._marking = None
        if self._marking is None and self._waiting.empty() and now - self._marked_at >= MARK_S:
            self._marked_at = now
            self._marking = asyncio.create_task(self._mark())
        if now - self._reported_at >= REPORT_S:
            self._reported_at = now
            self._report(self._taken(now))

    async def _mark(self) -> None:
        try:
            await self._store.mark(RATER_RULES)
        except sqlite3.OperationalError as error:
            self._failed(error)

    def _taken(self, now: float) -> FoldingReport:
        age_s = now - self._whole_at
        unreadable = self._store.unreadable
        report = FoldingReport(
            age_s=age_s if math.isfinite(age_s) else None,
            folded=self._folded,
            unreadable=unreadable - self._unreadable,
            write_failures=self._write_failures,
            pruned=self._pruned,
            bytes=self._store.bytes_used(),
            oldest_ms=self._store.oldest_ms(),
        )
        self._folded = self._write_failures = self._pruned = 0
        self._unreadable = unreadable
        return report

    def _failed(self, error: sqlite3.OperationalError) -> None:
        self._write_failures += 1
        log.error("read_model.write_failed", error=str(error))

    def _not_before_ms(self) -> int:
        return int((self._clock.now() - self._keep).timestamp() * 1000)
