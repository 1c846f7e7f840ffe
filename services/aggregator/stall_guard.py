"""Stall guard: ends a worker whose event loop stood still, before it writes again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

BEAT_S = 0.2


def uptime_s() -> float:
    """Seconds that also pass while the machine sleeps, where the system can say so."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class StallGuard:
    """Notices that the loop, or the group membership, stood still longer than allowed.

    A worker that was stopped may have lost its partitions; what it would write now could undo its
    successor's work. `check` comes before each write, and whichever of a write and the next beat
    comes first after a stall sees it. Without partitions there is nothing to undo: not `armed`.
    """

    def __init__(
        self,
        limit_s: float,
        *,
        on_stall: Callable[[float], None],
        now: Callable[[], float] = uptime_s,
    ) -> None:
        self._limit_s = limit_s
        self._on_stall = on_stall
        self._now = now
        self._last = now()
        self.armed = False

    def check(self) -> None:
        """Call `on_stall` with the stall's length in seconds when the last beat is too old."""
        stalled_s = self._now() - self._last
        if self.armed and stalled_s > self._limit_s:
            self._on_stall(stalled_s)

    def idle_s(self) -> float:
        """Seconds since the last beat."""
        return self._now() - self._last

    def beat(self) -> None:
        """The loop goes round."""
        self.check()
        self._last = self._now()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(BEAT_S)
