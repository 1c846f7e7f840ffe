"""Connection draining of an engine that is about to stop: it takes nothing new and ends what it has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from services.inference.engine import EngineLoad
from services.inference.errors import EngineRefused, EngineUnavailable
from shared.clock import Clock

log = structlog.get_logger(__name__)

LOOK_S = 0.5
"""Seconds between two looks at what the engine still has."""
IDLE_LOOKS = 2
"""Looks in a row that find no request: one that was taken a moment ago may not be counted yet."""


class EngineDrain:
    """Drains an engine by the marker that its `DrainMiddleware` looks for."""

    def __init__(
        self,
        marker: Path,
        load: Callable[[], Awaitable[EngineLoad]],
        clock: Clock,
        limit_s: float,
        hurry: asyncio.Event,
    ) -> None:
        """`load` reads the engine's requests. Whoever sets `hurry` has it stopped at once."""
        self.marker = marker
        self._load = load
        self._clock = clock
        self._limit_s = limit_s
        self.hurry = hurry

    def reset(self) -> None:
        """Let an engine that starts take requests.

        Raises:
            OSError: the marker cannot be deleted.

        """
        self.marker.unlink(missing_ok=True)

    async def run(self) -> None:
        """Have the engine refuse new requests; wait until it has none, at most the limit."""
        began = self._clock.monotonic()
        try:
            self.marker.touch()
        except OSError as error:
            log.warning("engine.not_drained", error=str(error))
            return
        try:
            async with asyncio.timeout(self._limit_s):
                await self._until_idle()
        except TimeoutError:
            log.warning("engine.drain_cut", limit_s=self._limit_s)
        else:
            log.info("engine.drained", waited_s=round(self._clock.monotonic() - began, 1))

    async def _until_idle(self) -> None:
        idle = 0
        while True:
            try:
                load = await self._load()
                idle = 0 if load.running or load.waiting else idle + 1
            except (EngineUnavailable, EngineRefused):
                idle = 0
            if idle == IDLE_LOOKS:
                return
            await self._clock.sleep(LOOK_S)
