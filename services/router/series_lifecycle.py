"""Series of a rollout: at 0 before its first event, gone a while after its end."""

# pyright: strict
from __future__ import annotations

from services.router.metrics import RolloutSeries, RouterMetrics
from shared.clock import Clock
from shared.registry.routing import RoutingState

ENDED_CHECK_S = 5.0
"""How often ended rollouts are looked for."""


class SeriesLifecycle:
    """Opens a rollout's series at 0 when it is first seen, and drops them a grace time after its end."""

    def __init__(self, metrics: RouterMetrics, clock: Clock, *, grace_s: float) -> None:
        self._metrics = metrics
        self._clock = clock
        self._grace_s = grace_s
        self._current: dict[str, str] = {}
        self._ended: dict[str, float] = {}

    def follow(self, state: RoutingState) -> None:
        """Take note of a model's new state."""
        before = self._current.get(state.model, "")
        if before == state.rollout:
            return
        if before:
            self._ended[before] = self._clock.monotonic()
        self._current[state.model] = state.rollout
        if state.rollout:
            self._ended.pop(state.rollout, None)
            self._metrics.open_rollout(
                RolloutSeries(state.model, state.rollout, state.stable, state.candidate)
            )

    def drop_ended(self) -> None:
        """Drop what ended longer ago than the grace time."""
        now = self._clock.monotonic()
        for rollout, ended in list(self._ended.items()):
            if now - ended >= self._grace_s:
                del self._ended[rollout]
                self._metrics.drop_rollout(rollout)

    async def run(self) -> None:
        """Drop until cancelled."""
        while True:
            await self._clock.sleep(ENDED_CHECK_S)
            self.drop_ended()
