"""Consumption where Faust loses a seek."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from services.aggregator.consumption import Consumption
from services.aggregator.metrics import AggregatorMetrics
from services.aggregator.offset_gaps import SEEK_AGAIN_S
from shared.testing.clock import ManualClock

TOPIC = "ratchet.feedback.v1"


class Expecting:
    """A partition state that waits for one offset."""

    def __init__(self, expected: int) -> None:
        self.expected = expected

    def expects(self, topic: str) -> int:
        return self.expected


async def test_a_lost_seek_is_repeated_although_no_further_event_comes() -> None:
    """Faust drops re-read events that lie below the read offset an event in flight has set."""
    clock, sought = ManualClock(), []

    async def seek(topic: str, partition: int, offset: int) -> None:
        sought.append((topic, partition, offset))

    nobody = cast("Any", None)
    consumption = Consumption(
        cast("Any", {0: Expecting(3)}),
        checkpointer=nobody,
        ticker=nobody,
        dead_letters=nobody,
        metrics=AggregatorMetrics(),
        seek=seek,
        clock=clock,
        die=nobody,
    )

    async def events() -> Any:
        for offset in (7, 8):
            yield SimpleNamespace(message=SimpleNamespace(topic=TOPIC, partition=0, offset=offset))

    stream = SimpleNamespace(noack=lambda: SimpleNamespace(events=events))
    await consumption.fold_stream(stream)
    assert sought == [(TOPIC, 0, 3)]
    await consumption.seek_again()
    assert len(sought) == 1
    clock.advance(SEEK_AGAIN_S)
    await consumption.seek_again()
    assert sought == [(TOPIC, 0, 3)] * 2
    consumption.clear()
    clock.advance(SEEK_AGAIN_S)
    await consumption.seek_again()
    assert len(sought) == 2
