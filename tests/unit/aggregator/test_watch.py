"""A worker that stood still says so before it writes."""

from __future__ import annotations

from services.aggregator.watch import Watch


def test_a_stall_is_seen_by_whichever_comes_first() -> None:
    now = [0.0]
    stalls: list[float] = []
    watch = Watch(5.0, on_stall=stalls.append, now=lambda: now[0])
    watch.armed = True
    now[0] = 4.0
    watch.check()
    watch.beat()
    now[0] = 8.9
    watch.check()
    assert stalls == []
    now[0] = 9.1
    watch.check()
    assert stalls == [9.1 - 4.0]
    watch.beat()
    assert len(stalls) == 2


def test_without_partitions_a_stall_harms_nobody() -> None:
    now = [0.0]
    stalls: list[float] = []
    watch = Watch(5.0, on_stall=stalls.append, now=lambda: now[0])
    now[0] = 60.0
    watch.check()
    assert stalls == []
    assert watch.idle_s() == 60.0
