"""Leader election with a fencing token: a lease in Redis limits who tries, the token decides.

The fencing token is the offset of the leader's own LeaderElected record in `rollouts.v1`. Every
reader ignores records with a lower one, so a flushed Redis may give two controllers the lease and
still only one is believed; the other reads that it was overtaken and steps down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.rollout.decision_log import DecisionLog
from services.rollout.errors import LeadershipLost
from shared.clock import Clock
from shared.contracts.events.base import Event
from shared.contracts.events.rollouts import Decision, LeaderElected
from shared.contracts.topics import ROLLOUT_HOLDS, ROLLOUTS
from shared.kafka.log import EventLog, LogUnavailable, Position, Record
from shared.observability.events import Unavailable
from shared.registry.follow import RolloutFollower

log = structlog.get_logger(__name__)

LEASE_KEY = "ratchet:rollout:lease"
LEASE_MS = 6_000
READ_BACK_S = 5.0
"""How long a leader waits to read its own record before it gives its place up."""
SILENCE_S = 20.0
"""Without Redis, a log that stood still this long has no leader."""

_RENEW = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class DecisionLogFollower(RolloutFollower):
    """Keeps a decision log at the end of the topics, and signals when a record was read back."""

    def __init__(self, event_log: EventLog, decision_log: DecisionLog) -> None:
        self.decision_log = decision_log
        self._grown = asyncio.Event()
        super().__init__(event_log, self._take)

    def _take(self, record: Record) -> None:
        try:
            self.decision_log.apply(record)
        finally:
            grown, self._grown = self._grown, asyncio.Event()
            grown.set()

    async def read_back(self, position: Position) -> None:
        """Wait until the record at `position` was folded.

        Raises:
            LogUnavailable: not within READ_BACK_S seconds.

        """
        try:
            async with asyncio.timeout(READ_BACK_S):
                read_to = self.decision_log.read_to
                while read_to.get((position.topic, position.partition), -1) < position.offset:
                    await self._grown.wait()
        except TimeoutError:
            raise LogUnavailable(
                f"offset {position.offset} not read back in {READ_BACK_S:g} s"
            ) from None


class Leadership:
    """The place of one controller: elected with a token, or not."""

    def __init__(
        self,
        event_log: EventLog,
        follower: DecisionLogFollower,
        redis: Redis,
        clock: Clock,
        *,
        holder: str,
    ) -> None:
        self._log = event_log
        self._follower = follower
        self._redis = redis
        self._clock = clock
        self._holder = holder
        self._token: int | None = None
        self._seq = 0
        self._quiet_since = clock.monotonic()
        self._quiet_at = 0
        self._renew = redis.register_script(_RENEW)
        self._release = redis.register_script(_RELEASE)

    @property
    def holder(self) -> str:
        """Name of this controller, with the address to which other replicas refer callers."""
        return self._holder

    @property
    def leads(self) -> bool:
        """Whether this controller was elected and no other since."""
        if self._token is not None and self._follower.decision_log.token > self._token:
            log.warning("leadership.overtaken", by=self._follower.decision_log.holder)
            self._token = None
        return self._token is not None

    async def campaign(self) -> bool:
        """Try to become leader; returns whether it succeeded.

        Raises:
            LogUnavailable: the election could not be written.

        """
        if not await self._may_try():
            return False
        elected = LeaderElected(holder=self._holder, at=self._clock.now())
        position = await self._log.publish(
            ROLLOUTS, key=self._holder, event=elected, event_id=f"elected:{self._holder}"
        )
        await self._follower.read_back(position)
        self._token, self._seq = position.offset, 0
        if not self.leads:
            return False
        log.info("leadership.elected", token=position.offset, holder=self._holder)
        return True

    async def keep(self) -> None:
        """Renew the lease. An outage of Redis does not end leadership: the log decides."""
        try:
            renewed = await self._renew(keys=[LEASE_KEY], args=[self._holder, LEASE_MS])
            if not renewed and not await self._redis.set(
                LEASE_KEY, self._holder, nx=True, px=LEASE_MS
            ):
                log.warning("leadership.lease_lost")
                self._token = None
        except RedisError as error:
            log.warning(Unavailable.redis, during="lease_renewal", error=str(error))

    async def resign(self) -> None:
        """Give the place up, for a clean stop or because the log did not answer."""
        self._token = None
        try:
            await self._release(keys=[LEASE_KEY], args=[self._holder])
        except RedisError as error:
            log.warning(Unavailable.redis, during="lease_release", error=str(error))

    async def write(
        self, decide: Callable[[int, int], Decision], *, sign_of_life: bool = False
    ) -> Decision:
        """Write a decision made of (token, seq), and return it once it was read back as valid.

        A `sign_of_life` goes to a topic that is not kept for ever.

        Only then may it be acted on. After a failure the place is lost: whether the record was
        stored is unknown, and the next election's token fences it.

        Raises:
            LeadershipLost: another controller leads; says whether the record was sent.
            LogUnavailable: the record was not acknowledged or not read back.

        """
        if not self.leads or self._token is None:
            raise LeadershipLost(sent=False)
        decision = decide(self._token, self._seq)
        self._seq += 1
        try:
            publish = self._publish_hold if sign_of_life else self._publish
            await self._follower.read_back(await publish(decision))
        except LogUnavailable:
            self._token = None
            raise
        if not self.leads:
            raise LeadershipLost(sent=True)
        return decision

    async def _publish(self, decision: Decision) -> Position:
        return await self._log.publish(
            ROLLOUTS,
            key=decision.rollout_id or decision.model,
            event=decision,
            event_id=decision.decision_id,
        )

    async def _publish_hold(self, hold: Decision) -> Position:
        return await self._log.publish(
            ROLLOUT_HOLDS, key=hold.rollout_id, event=hold, event_id=hold.decision_id
        )

    async def append(self, topic: str, key: str, event: Event, event_id: str) -> None:
        """Append a record that follows from a decision.

        Raises:
            LogUnavailable: it was not acknowledged.

        """
        await self._log.publish(topic, key=key, event=event, event_id=event_id)

    async def _may_try(self) -> bool:
        try:
            if await self._redis.set(LEASE_KEY, self._holder, nx=True, px=LEASE_MS):
                return True
            return bool(await self._renew(keys=[LEASE_KEY], args=[self._holder, LEASE_MS]))
        except RedisError:
            return self._log_is_silent()

    def _log_is_silent(self) -> bool:
        """Whether no leader wrote for long; without Redis that means that there is none."""
        now = self._clock.monotonic()
        read_to = sum(self._follower.decision_log.read_to.values())
        if read_to != self._quiet_at:
            self._quiet_at, self._quiet_since = read_to, now
        return now - self._quiet_since > SILENCE_S
