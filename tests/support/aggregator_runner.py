"""The aggregator with a writer that fails or waits at a chosen record:

    python -m tests.support.aggregator_runner kill 17
    python -m tests.support.aggregator_runner hold rows|checkpoint FILE
    python -m tests.support.aggregator_runner ahead DAYS

`kill` ends the process by SIGKILL after a number of records written; `hold` makes each write of rows
(or of checkpoints) wait while FILE exists; `ahead` sets the worker's clock off. Everything else is what `python -m services.aggregator` runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import uvloop

from services.aggregator.__main__ import run
from services.aggregator.settings import AggregatorSettings
from services.aggregator.writer import KafkaWriter, Offsets, Write, Writer
from shared.clock import SystemClock
from shared.contracts.topics import AGGREGATOR_CHANGELOG, TICKS
from shared.observability.logging import configure_logging


class KillingWriter:
    """Writes record by record, confirmed, until its budget is spent; then there is no process."""

    def __init__(self, writer: Writer, budget: int) -> None:
        self._writer = writer
        self._budget = budget

    async def write(self, writes: Sequence[Write]) -> Offsets:
        counted = [write for write in writes if write.topic != TICKS]
        if len(counted) < self._budget:
            self._budget -= len(counted)
            return await self._writer.write(writes)
        await self._writer.write(counted[: self._budget])
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


class HoldingWriter:
    """Waits while a file exists before it writes rows, or checkpoints."""

    def __init__(self, writer: Writer, step: str, held: Path) -> None:
        self._writer = writer
        self._checkpoints = step == "checkpoint"
        self._held = held

    async def write(self, writes: Sequence[Write]) -> Offsets:
        if any(map(self._holds, writes)):
            while self._held.exists():  # noqa: ASYNC110 another process removes it
                await asyncio.sleep(0.05)
        return await self._writer.write(writes)

    def _holds(self, write: Write) -> bool:
        if write.topic != AGGREGATOR_CHANGELOG or write.value is None:
            return False
        return write.key.endswith(b"checkpoint") == self._checkpoints


class ClockAhead(SystemClock):
    """A wall clock that is wrong by some days."""

    def __init__(self, days: float) -> None:
        self._ahead = timedelta(days=days)

    def now(self) -> datetime:
        return super().now() + self._ahead


def main() -> None:
    configure_logging("aggregator")
    settings = AggregatorSettings.load()
    match sys.argv[1:]:
        case ["ahead", days]:
            uvloop.run(run(settings, clock=ClockAhead(float(days))))
        case _:
            uvloop.run(run(settings, through=through))


def through(writer: KafkaWriter) -> Writer:
    """The faulty writer that the arguments name."""
    match sys.argv[1:]:
        case ["kill", budget]:
            return KillingWriter(writer, int(budget))
        case ["hold", step, held]:
            return HoldingWriter(writer, step, Path(held))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
