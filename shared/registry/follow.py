"""Followers of the registry's topics: keep the folds current in memory and report their age."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog
from pydantic import ValidationError

from shared.contracts.events.rollouts import Decision, LeaderElected
from shared.contracts.topics import API_KEYS, ROLLOUT_HOLDS, ROLLOUTS, VERSIONS
from shared.kafka.envelope import UnreadableRecord, decode, describe, models_by_type
from shared.kafka.log import EventLog, LogUnavailable, Record, Tail, read_to_end
from shared.keys import KeyRing
from shared.registry.routing import RoutingState, RoutingTable
from shared.registry.versions import Registry
from shared.registry.view import RoutingView

log = structlog.get_logger(__name__)

CATCH_UP_TRY_S = 30.0
HOLDS_READ = 5_000
"""Signs of life read at a start: all evidence is in those of a minute, one model has 15."""
_ROLLOUT_MODELS = models_by_type(LeaderElected, Decision)


class Follower:
    """Tails topics and hands each record to `apply`. A record that it cannot take is logged."""

    def __init__(
        self,
        event_log: EventLog,
        topics: tuple[str, ...],
        apply: Callable[[Record], None],
        *,
        newest: int | None = None,
    ) -> None:
        """With `newest`, at most so many of a partition's records are read at the start."""
        self._tail: Tail = event_log.tail(*topics, newest=newest)
        self._apply = apply

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            async for record in self._tail:
                try:
                    self._apply(record)
                except (ValueError, UnreadableRecord) as error:
                    log.warning(
                        "follow.unreadable",
                        topic=record.topic,
                        offset=record.offset,
                        error=describe(error)
                        if isinstance(error, ValidationError)
                        else getattr(error, "detail", str(error)),
                    )
                except Exception:
                    # Ended by it, the follower would meet the same record again at each start.
                    log.exception("follow.failed", topic=record.topic, offset=record.offset)
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await self._tail.close()

    async def caught_up(self, timeout_s: float) -> None:
        """Wait until what was in the topics at the start was applied; see Tail.caught_up."""
        await self._tail.caught_up(timeout_s)

    def age_s(self) -> float:
        """Seconds since the topics were last read to their end; see Tail.age_s."""
        return self._tail.age_s()


class RegistryFollower(Follower):
    """Keeps `registry` at the end of `versions.v1`; calls `changed` with each version touched."""

    def __init__(self, event_log: EventLog, changed: Callable[[str], None] | None = None) -> None:
        self.registry = Registry()
        self._changed = changed
        super().__init__(event_log, (VERSIONS,), self._fold)

    def _fold(self, record: Record) -> None:
        version = self.registry.apply(record.key, record.value)
        if version is not None and self._changed is not None:
            self._changed(version)


class RolloutFollower(Follower):
    """Follows `rollouts.v1` from its beginning, then the newest of `rollout-holds.v1`.

    A hold means something only after the decisions before it, so the first reading is in order.
    Later a hold may come before the decision that it follows: `apply` must go by their numbers.
    """

    def __init__(self, event_log: EventLog, apply: Callable[[Record], None]) -> None:
        super().__init__(event_log, (ROLLOUTS,), apply)
        self._holds = Follower(event_log, (ROLLOUT_HOLDS,), apply, newest=HOLDS_READ)

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(super().run())
            group.create_task(self._follow_holds())

    async def _follow_holds(self) -> None:
        while True:
            with contextlib.suppress(LogUnavailable):
                await super().caught_up(CATCH_UP_TRY_S)
                break
        await self._holds.run()

    async def caught_up(self, timeout_s: float) -> None:
        """See Follower.caught_up; of both topics."""
        began = time.monotonic()
        await super().caught_up(timeout_s)
        await self._holds.caught_up(timeout_s - (time.monotonic() - began))

    def age_s(self) -> float:
        """See Follower.age_s; of the topic read longer ago."""
        return max(super().age_s(), self._holds.age_s())


class RoutingFollower(RolloutFollower):
    """Keeps `table` at the end of the rollouts' topics; calls `changed` with each state kept."""

    def __init__(
        self,
        event_log: EventLog,
        changed: Callable[[RoutingState], None] | None = None,
        table: RoutingTable | None = None,
    ) -> None:
        self.table = table or RoutingTable()
        self._changed = changed
        super().__init__(event_log, self._fold)

    def _fold(self, record: Record) -> None:
        state = fold_rollout(self.table, record)
        if state is not None and self._changed is not None:
            self._changed(state)


class KeyFollower(Follower):
    """Keeps a key ring at the end of `api-keys.v1`, and says when it is whole for the first time."""

    def __init__(self, event_log: EventLog, ring: KeyRing) -> None:
        self._ring = ring
        ring.whole = False
        super().__init__(
            event_log, (API_KEYS,), lambda record: ring.apply(record.key, record.value)
        )

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(super().run())
            group.create_task(self._become_whole())

    async def _become_whole(self) -> None:
        while not self._ring.whole:
            with contextlib.suppress(LogUnavailable):
                await self.caught_up(CATCH_UP_TRY_S)
                self._ring.whole = True


def fold_rollout(table: RoutingTable, record: Record) -> RoutingState | None:
    """Fold one record of the rollouts' topics; the state it set, or None where it set none.

    A decision whose token no election gave sets none.

    Raises:
        UnreadableRecord: the record is neither a decision nor an election.

    """
    event = decode(record.headers, record.value, _ROLLOUT_MODELS)
    if isinstance(event, LeaderElected):
        table.elect(record.offset)
        return None
    assert isinstance(event, Decision)
    if not table.believes(event.token):
        return None
    state = RoutingState.of(event)
    return state if table.put(state) else None


async def rebuild_views(event_log: EventLog, view: RoutingView, *, timeout_s: float = 60.0) -> int:
    """Empty the views in Redis and fill them from the topics; returns how many states.

    Routers that listen forget the order of what they know, so that the log's word counts again.

    Raises:
        LogUnavailable: the topics could not be read.
        redis.RedisError: Redis is unavailable.

    """
    table = RoutingTable()
    for record in await read_to_end(event_log, ROLLOUTS, timeout_s=timeout_s):
        with contextlib.suppress(UnreadableRecord):
            fold_rollout(table, record)
    await view.clear()
    await view.announce_reset()
    for state in table.models():
        await view.put(state)
    return len(table.models())
