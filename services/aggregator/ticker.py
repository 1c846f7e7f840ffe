"""Stream-time ticks: the owner of partition 0 tells every partition once a second what time it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from services.aggregator.codec import SOURCE
from services.aggregator.partition import PartitionState
from services.aggregator.stall_guard import uptime_s
from services.aggregator.writer import Write, Writer
from shared.clock import Clock
from shared.contracts.events.quality import Tick
from shared.contracts.topics import TICKS
from shared.kafka.log import event_record

TICK_S = 1.0


class Ticker:
    """Produces ticks, and measures progress by those that moved stream time."""

    def __init__(
        self,
        states: Mapping[int, PartitionState],
        *,
        writer: Writer,
        partitions: Callable[[str], Awaitable[int]],
        clock: Clock,
        uptime: Callable[[], float] = uptime_s,
    ) -> None:
        self._states = states
        self._writer = writer
        self._partitions = partitions
        self._clock = clock
        self._uptime = uptime
        self._last = uptime()

    def moved(self) -> None:
        """A tick moved stream time on, or a new assignment begins."""
        self._last = self._uptime()

    def idle_s(self) -> float:
        """Seconds since a tick was counted, or since nothing is owned; the measure of progress.

        Time in which the machine slept counts: its figures are as old as that.
        """
        if not self._states:
            self.moved()
        return self._uptime() - self._last

    async def run(self) -> None:
        """Tick until cancelled, while partition 0 is owned.

        Raises:
            WriteFailed: the brokers did not confirm the ticks.
        """
        while True:
            await self._clock.sleep(TICK_S)
            if 0 in self._states:
                await self._tick()

    async def _tick(self) -> None:
        at = self._clock.now()
        writes: list[Write] = []
        for partition in range(await self._partitions(TICKS)):
            tick = Tick(at=at, partition=partition)
            record = event_record(
                TICKS,
                tick,
                key=str(partition),
                source=SOURCE,
                event_id=f"{partition}:{at.isoformat()}",
                time=at,
                partition=partition,
            )
            writes.append(Write.of(record))
        await self._writer.write(writes)
