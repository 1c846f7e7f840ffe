"""A worker that stood still says so before it writes."""

from __future__ import annotations

from services.aggregator.stall_guard import StallGuard


def test_a_stall_is_seen_by_whichever_comes_first() -> None:
    now = [0.0]
    stalls: list[float] = []
    stall_guard = StallGuard(5.0, on_stall=stalls.append, now=lambda: now[0])
    stall_guard.armed = True
    now[0] = 4.0
    stall_guard.check()
    stall_guard.beat()
    now[0] = 8.9
    stall_guard.check()
    assert stalls == []
    now[0] = 9.1
    stall_guard.check()
    assert stalls == [9.1 - 4.0]
    stall_guard.beat()
    assert len(stalls) == 2


def test_without_partitions_a_stall_harms_nobody() -> None:
    now = [0.0]
    stalls: list[float] = []
    stall_guard = StallGuard(5.0, on_stall=stalls.append, now=lambda: now[0])
    now[0] = 60.0
    stall_guard.check()
    assert stalls == []
    assert stall_guard.idle_s() == 60.0
