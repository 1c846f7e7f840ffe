"""Admission control of batch generations: how many may run beside the engine's live traffic."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from services.inference.engine import EngineLoad
from services.inference.errors import EngineRefused, EngineUnavailable
from services.inference.metrics import InferenceMetrics
from shared.clock import Clock

LOOK_S = 0.5
"""Seconds between two looks at how busy the engine is, while there is batch work."""


def batch_limit(limit: int, figures: EngineLoad, ours: int) -> int:
    """How many generations may run beside the live traffic.

    None while live requests wait for the engine; else one fewer for each that runs, at least one.
    """
    live = max(0, figures.running + figures.waiting - ours)
    if live and figures.waiting:
        return 0
    return max(1, limit - live)


class BatchAdmission:
    """Semaphore whose size follows `batch_limit`, updated from the engine's load."""

    def __init__(
        self,
        limit: int,
        figures: Callable[[], Awaitable[EngineLoad]],
        clock: Clock,
        metrics: InferenceMetrics,
    ) -> None:
        self._limit = limit
        self._figures = figures
        self._clock = clock
        self._metrics = metrics
        self._allowed = 1
        self._running = 0
        self._waiting = 0
        self._changed = asyncio.Condition()
        self._work = asyncio.Event()

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one place; waits for it."""
        self._waiting += 1
        self._work.set()
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._running < self._allowed)
                self._running += 1
        finally:
            self._waiting -= 1
        self._metrics.batch_in_flight.set(self._running)
        try:
            yield
        finally:
            async with self._changed:
                self._running -= 1
                self._changed.notify_all()
            self._metrics.batch_in_flight.set(self._running)

    async def run(self, stop: asyncio.Event) -> None:
        """Look at the engine while there is work, until `stop` is set."""
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._work.wait()
            if not self._work.is_set():
                continue
            await self.look()
            if not self._running and not self._waiting:
                self._work.clear()
            await self._clock.sleep(LOOK_S)

    async def look(self) -> None:
        """Read the engine's load once and admit waiting generations."""
        try:
            now = batch_limit(self._limit, await self._figures(), self._running)
        except (EngineUnavailable, EngineRefused):
            now = 1
        self._metrics.batch_allowed.set(now)
        async with self._changed:
            self._allowed = now
            self._changed.notify_all()
