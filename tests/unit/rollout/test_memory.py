"""Memory of the controller: flat over a thousand rollouts."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import pytest

from services.rollout import decision_log, steps
from shared.registry.routing import RoutingState
from shared.testing.log import MemoryLog
from tests.unit.rollout.fakes import ControllerBench, ControllerHarness, begun, start, traffic

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

ROLLOUTS_SEEN = 1_000
KEPT = 50
"""Rollouts kept in memory here; before so many it grows."""
GROWTH_BYTES = 4_000_000
"""A leak of 4 kB a rollout; what the log in memory itself keeps of them is below it."""


class ForgetfulView:
    """A routing view that keeps nothing."""

    async def put(self, state: RoutingState) -> bool:
        return bool(state.model)


def forget_values(log: MemoryLog) -> None:
    """Drop what the stand-in log holds: on brokers it would be on disk."""
    for partitions in log.records.values():
        for records in partitions:
            for place, record in enumerate(records):
                if record.value:
                    records[place] = replace(record, value=b"", headers=())


def held_bytes(log: MemoryLog) -> int:
    """What this process holds, without what its stand-in for the brokers does."""
    forget_values(log)
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def roll(harness: ControllerHarness, times: int) -> None:
    """Rollouts of the same candidate that are judged once and called off."""
    for _ in range(times):
        state = await start(harness, again=True)
        await harness.round()
        traffic(harness, state, 10.0)
        await harness.round()
        await harness.controller.command(
            state.rollout_id, lambda state, at: steps.abort(state, at, "enough"), "ann"
        )
        # Past the grace time its series go, too.
        await harness.round(61)


async def test_memory_is_flat_over_a_thousand_rollouts(
    bench: ControllerBench,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setattr(decision_log, "MAX_ROLLOUTS", KEPT)
    harness, first = await begun(bench, view=ForgetfulView())
    await harness.controller.command(
        first.rollout_id, lambda state, at: steps.abort(state, at, "enough"), "ann"
    )
    tracemalloc.start()
    await roll(harness, KEPT)
    before = held_bytes(bench.log)
    await roll(harness, ROLLOUTS_SEEN)
    grown = held_bytes(bench.log) - before
    tracemalloc.stop()
    record_property("grown_bytes", grown)
    print(f"grown by {grown} bytes over {ROLLOUTS_SEEN} rollouts")
    assert len(harness.decision_log.histories()) == KEPT
    assert grown < GROWTH_BYTES
