"""Where the router's state comes from: Redis for speed, the log for truth. Either is enough."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from redis import RedisError

from services.router.state import KEYS, REDIS, REGISTRY, ROLLOUTS, RouterState
from shared.clock import Clock
from shared.kafka.log import EventLog, LogUnavailable
from shared.keys import KeyRing
from shared.observability.events import Unavailable
from shared.registry.follow import Follower, KeyFollower, RegistryFollower, RoutingFollower
from shared.registry.routing import RoutingState
from shared.registry.view import RoutingView

log = structlog.get_logger(__name__)

VIEW_POLL_S = 5.0
"""How often the whole view is read: an announcement may be lost with its connection."""
VIEW_TIMEOUT_S = 2.0
BACKOFF_S = 1.0
CATCH_UP_LOG_S = 30.0
"""How often it is said that a topic is not read to its end yet."""


class Sources:
    """Feeds the state and the key ring for as long as it runs."""

    def __init__(
        self,
        state: RouterState,
        keys: KeyRing,
        event_log: EventLog,
        view: RoutingView,
        clock: Clock,
        *,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        """`refused` hears of each state from Redis whose election the log never had."""
        self._state = state
        self._refused = refused
        self._view = view
        self._clock = clock
        self._said: dict[str, tuple[object, ...]] = {}
        self._resets = 0
        registry = RegistryFollower(event_log)
        state.use_registry(registry.registry)
        self._followers: dict[str, Follower] = {
            REGISTRY: registry,
            ROLLOUTS: RoutingFollower(event_log, changed=self._adopt, table=state.table),
            KEYS: KeyFollower(event_log, keys),
        }

    async def run(self) -> None:
        """Follow all sources until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, follower in self._followers.items():
                group.create_task(follower.run(), name=f"follow-{name}")
                group.create_task(self._caught_up(name, follower), name=f"catch-up-{name}")
            group.create_task(self._again(self._listen, "listen"))
            group.create_task(self._again(self._poll, "poll"))

    def _adopt(self, state: RoutingState) -> None:
        """Take a state from the log; history is only folded, as it moves nobody any more."""
        if ROLLOUTS in self._state.sources:
            self._say(state, "log", changed=self._state.adopt(state))

    def _say(self, state: RoutingState, source: str, *, changed: bool) -> None:
        """Log what moves traffic; not the decisions that only renew it."""
        moved = (state.stable, state.candidate, state.rollout, state.weight, state.phase)
        if changed and self._said.get(state.model) != moved:
            self._said[state.model] = moved
            log.info(
                "routing.changed",
                model=state.model,
                stable=state.stable,
                rollout=state.rollout,
                weight=state.weight,
                phase=state.phase.value,
                source=source,
            )

    async def _caught_up(self, name: str, follower: Follower) -> None:
        while True:
            try:
                await follower.caught_up(CATCH_UP_LOG_S)
            except LogUnavailable as error:
                log.warning(Unavailable.kafka, during="catch_up", source=name, error=str(error))
            else:
                self._state.heard(name)
                log.info("source.caught_up", source=name)
                break
        if name == ROLLOUTS:
            for state in self._state.table.models():
                self._adopt(state)

    async def _listen(self) -> None:
        async for state in self._view.announcements():
            if state is None:
                log.warning("routing.reset", source=REDIS)
                self._state.table.reset()
                self._resets += 1
                continue
            self._hear(state)

    async def _poll(self) -> None:
        while True:
            resets = self._resets
            async with asyncio.timeout(VIEW_TIMEOUT_S):
                states = await self._view.all()
            if resets != self._resets:
                # Read before the reset: after it, states of any order count, old ones too.
                continue
            for state in states:
                self._hear(state)
            if states:
                # An empty Redis may just have been flushed: it knows nothing, not "no models".
                self._state.heard(REDIS)
            await self._clock.sleep(VIEW_POLL_S)

    def _hear(self, state: RoutingState) -> None:
        """Take a state from Redis, unless it names an election that the log never had.

        Signed ones may be ahead of the log here; of others the log, once read, is the only witness.
        """
        known = ROLLOUTS in self._state.sources
        newest = self._state.table.token
        if known and not self._view.signed and 0 <= newest < state.token:
            self._refused()
            log.warning("routing.refused", model=state.model, token=state.token)
            return
        self._say(state, REDIS, changed=self._state.put(state))

    async def _again(self, work: Callable[[], Awaitable[None]], during: str) -> None:
        """Repeat `work` whenever Redis fails; an outage is logged once, not at each try."""
        failing = False
        while True:
            try:
                await work()
                failing = False
            except (RedisError, OSError, TimeoutError) as error:
                if not failing:
                    log.warning(
                        Unavailable.redis, during=during, error=f"{type(error).__name__}: {error}"
                    )
                failing = True
            await self._clock.sleep(BACKOFF_S)
