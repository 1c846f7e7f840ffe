"""Supervisor of the folding process: starts it, restarts it with back-off, keeps its last report."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge
from pydantic import ValidationError

from services.feedback.read_model.folding import FoldingReport
from services.feedback.read_model.schema import delete_database
from shared.backoff import Backoff
from shared.clock import Clock

log = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-m", "services.feedback.read_model")
RESTART_FIRST_S = 0.5
RESTART_MAX_S = 30.0
SILENT_AFTER_S = 60.0
"""A process that reported nothing for so long hangs, and is started again."""
WELL_AFTER_S = 60.0
STOP_TIMEOUT_S = 5.0


class ReadModelMetrics:
    """Series of the read model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.folded = Counter(
            "ratchet_read_model_folded_total",
            "Records folded into the read model of feedback.",
            registry=registry,
        )
        self.unreadable = Counter(
            "ratchet_read_model_unreadable_total",
            "Records that the read model could not read and passed over.",
            registry=registry,
        )
        self.write_failures = Counter(
            "ratchet_read_model_write_failures_total",
            "Writes of the read model that failed and are tried again, as on a full disk.",
            registry=registry,
        )
        self.pruned = Counter(
            "ratchet_read_model_pruned_rows_total",
            "Rows deleted as they were too old or the read model too large.",
            registry=registry,
        )
        self.restarts = Counter(
            "ratchet_read_model_restarts_total",
            "Starts of the folding process after its first.",
            registry=registry,
        )
        self.bytes = Gauge(
            "ratchet_read_model_bytes", "Size of the read model's rows.", registry=registry
        )
        self.age = Gauge(
            "ratchet_read_model_age_seconds",
            "Seconds since all of the log was folded; infinite before the first time.",
            registry=registry,
        )


class ReadModelSupervisor:
    """Keeps the folding process running, and knows how far it is."""

    def __init__(self, path: Path, metrics: ReadModelMetrics, clock: Clock) -> None:
        self._path = path
        self._metrics = metrics
        self._clock = clock
        self._report: FoldingReport | None = None
        self._heard_at = clock.monotonic()
        self._process: asyncio.subprocess.Process | None = None
        self._rebuild = False

    def age_s(self) -> float:
        """Seconds since all of the log was folded; infinite before the first time."""
        if self._report is None or self._report.age_s is None:
            return math.inf
        return self._report.age_s + self._clock.monotonic() - self._heard_at

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest kept record was stored in the log."""
        return self._report.oldest_ms if self._report else None

    def reindex(self) -> None:
        """Delete the read model and fold the log from its beginning."""
        self._rebuild = True
        self._report = None
        self._kill()

    async def run(self) -> None:
        """Keep the process running until cancelled."""
        self._metrics.age.set_function(self.age_s)
        backoff = Backoff(RESTART_FIRST_S, RESTART_MAX_S)
        first = True
        while True:
            if not first:
                self._metrics.restarts.inc()
            first = False
            if self._rebuild:
                self._rebuild = False
                delete_database(self._path)
                log.warning("read_model.reindexed")
            started = self._clock.monotonic()
            try:
                status = await self._run_once()
            except OSError as error:  # no process could be made
                status = None
                log.warning("read_model.not_started", error=str(error))
            if self._rebuild:
                continue
            if self._clock.monotonic() - started > WELL_AFTER_S:
                backoff.reset()
            log.error("read_model.process_ended", status=status)
            await self._clock.sleep(backoff.next_s())

    async def _run_once(self) -> int | None:
        process = self._process = await asyncio.create_subprocess_exec(
            *COMMAND, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
        self._heard_at = self._clock.monotonic()
        try:
            await self._listen(process)
        finally:
            await asyncio.shield(self._end(process))
        return process.returncode

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                async with asyncio.timeout(SILENT_AFTER_S):
                    line = await process.stdout.readline()
            except TimeoutError:
                log.warning("read_model.process_silent", for_s=SILENT_AFTER_S)
                return
            if not line:
                return
            with contextlib.suppress(ValidationError):
                self._take(FoldingReport.model_validate_json(line))

    def _take(self, report: FoldingReport) -> None:
        self._report = report
        self._heard_at = self._clock.monotonic()
        self._metrics.folded.inc(report.folded)
        self._metrics.unreadable.inc(report.unreadable)
        self._metrics.write_failures.inc(report.write_failures)
        self._metrics.pruned.inc(report.pruned)
        self._metrics.bytes.set(report.bytes)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Kill the process: whatever it does, its file is whole transactions."""
        self._kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
