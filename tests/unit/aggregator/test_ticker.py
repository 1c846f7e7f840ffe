"""Freshness counts the time that the machine slept."""

from __future__ import annotations

from services.aggregator.partition import PartitionState
from services.aggregator.ticker import Ticker
from services.aggregator.writer import Offsets
from shared.testing.clock import ManualClock
from tests.unit.aggregator.simulation import recovered


class NoWriter:
    async def write(self, writes: object) -> Offsets:
        raise AssertionError(writes)


async def no_partitions(topic: str) -> int:
    raise AssertionError(topic)


def test_idle_time_is_uptime_since_a_tick_counted_while_something_is_owned() -> None:
    uptime = [100.0]
    states: dict[int, PartitionState] = {}
    ticker = Ticker(
        states,
        writer=NoWriter(),
        partitions=no_partitions,
        clock=ManualClock(),  # Its monotonic time stands still, as in a sleeping machine.
        uptime=lambda: uptime[0],
    )
    uptime[0] = 200.0
    assert ticker.idle_s() == 0.0
    states[0] = recovered()
    uptime[0] = 261.0
    assert ticker.idle_s() == 61.0
    ticker.moved()
    assert ticker.idle_s() == 0.0
