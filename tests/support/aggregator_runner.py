"""The aggregator, killed by SIGKILL after a number of records written:

    python -m tests.support.aggregator_runner 17

Everything else is what `python -m services.aggregator` runs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import uvloop

from services.aggregator.__main__ import run
from services.aggregator.settings import AggregatorSettings
from services.aggregator.writer import KafkaWriter, Write, Writer
from shared.contracts.topics import TICKS
from shared.observability.logging import configure_logging


class KillingWriter:
    """Writes record by record, confirmed, until its budget is spent; then there is no process."""

    def __init__(self, writer: Writer, budget: int) -> None:
        self._writer = writer
        self._budget = budget

    async def write(self, writes: Sequence[Write]) -> None:
        counted = [write for write in writes if write.topic != TICKS]
        if len(counted) < self._budget:
            self._budget -= len(counted)
            await self._writer.write(writes)
            return
        await self._writer.write(counted[: self._budget])
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    budget = int(sys.argv[1])

    def killing(writer: KafkaWriter) -> Writer:
        return KillingWriter(writer, budget)

    configure_logging("aggregator")
    uvloop.run(run(AggregatorSettings.load(), through=killing))


if __name__ == "__main__":
    main()
