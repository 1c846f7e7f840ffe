"""Vote exchange: attempts that counted, shared between the router's replicas by Redis.

Twice a second each replica adds its own bad ones to one bounded stream and reads the others', so a
user's two bad attempts of a day are two over all replicas, but for what several let in within that
half second. A replica that starts reads the stream from its beginning. In the same way the replicas
add up, in one hash a minute, what each key and tenant had of its votes. Without Redis each replica
counts by itself, and sends later what it kept.
"""

# pyright: basic
# The Redis client's own types are partly unknown.
from __future__ import annotations

import asyncio
import contextlib
from hashlib import blake2b
from itertools import islice
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.router.votes import BadVote, VoteGroup, VoteLimits
from shared.clock import Clock, SystemClock
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

STREAM = "ratchet:votes:bad"
EXCHANGE_S = 0.5
TIMEOUT_S = 2.0
KEPT_S = 2 * 86_400
MAX_STREAM = 100_000
MINUTE = "ratchet:votes:minute:"
MINUTE_KEPT_S = 180
MAX_GROUPS = 10_000
"""Keys and tenants of a minute that are added up over the replicas; a further one is counted here."""
AT_ONCE = 1_000
CLOCK_SKEW_DAYS = 1
"""How far ahead of this replica's day another's may be, around midnight."""


class VoteExchange:
    """Sends this replica's bad attempts and reads those of the others."""

    def __init__(
        self, limits: VoteLimits, redis: Redis, *, router: str, clock: Clock | None = None
    ) -> None:
        """`router` names this process among those that share the stream."""
        self._limits = limits
        self._redis = redis
        self._router = router
        self._clock = clock or SystemClock()
        self._after = "0"
        self._waiting: list[BadVote] = []
        self._told_of = -1
        self._told: dict[VoteGroup, int] = {}
        self._failing = False

    async def exchange(self) -> None:
        """Send what is new, and read what is new of the others.

        Raises:
            redis.RedisError, OSError, TimeoutError: Redis is unavailable; what was not sent is kept.

        """
        self._waiting = [*self._waiting, *self._limits.unsent()][-MAX_STREAM:]
        async with asyncio.timeout(TIMEOUT_S):
            while self._waiting:
                await self._send(self._waiting[:AT_ONCE])
                del self._waiting[:AT_ONCE]
            while await self._read() == AT_ONCE:
                pass
            await self._add_up()

    async def run(self) -> None:
        """Exchange until cancelled; an outage is logged once."""
        while True:
            try:
                await self.exchange()
                self._failing = False
            except (RedisError, OSError, TimeoutError) as error:
                if not self._failing:
                    log.warning(Unavailable.redis, during="votes", error=str(error) or "timed out")
                self._failing = True
            await asyncio.sleep(EXCHANGE_S)

    async def _send(self, votes: list[BadVote]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for vote in votes:
            fields: Any = {"router": self._router, "voter": vote.voter, "day": vote.day}
            pipeline.xadd(STREAM, fields, maxlen=MAX_STREAM, approximate=True)
        pipeline.expire(STREAM, KEPT_S)
        await pipeline.execute()

    async def _add_up(self) -> None:
        """Add to the minute's votes what came here since the last time, and read their sums."""
        minute, counts = self._limits.this_minute()
        if minute != self._told_of:
            self._told_of, self._told = minute, {}
        mine = dict(islice(counts.items(), MAX_GROUPS))
        if not mine:
            return
        key = f"{MINUTE}{minute}"
        pipeline = self._redis.pipeline(transaction=False)
        for group, count in mine.items():
            pipeline.hincrby(key, _field(group), count - self._told.get(group, 0))
        pipeline.expire(key, MINUTE_KEPT_S)
        sums = await pipeline.execute()
        self._told = mine
        elsewhere = {group: max(0, sums[place] - mine[group]) for place, group in enumerate(mine)}
        self._limits.heard_of_minute(minute, elsewhere)

    async def _read(self) -> int:
        found: Any = await self._redis.xread({STREAM: self._after}, count=AT_ONCE)
        entries = found[0][1] if found else []
        today = self._clock.now().toordinal()
        for name, fields in entries:
            self._after = name
            said = {_text(key): _text(value) for key, value in fields.items()}
            if said.get("router") == self._router:
                continue
            with contextlib.suppress(KeyError, ValueError):
                vote = BadVote(int(said["voter"]), int(said["day"]))
                # A day to come, as of a wrong clock, would clear the votes of all days before it.
                if vote.day <= today + CLOCK_SKEW_DAYS:
                    self._limits.heard(vote)
        return len(entries)


def _field(group: VoteGroup) -> str:
    return blake2b("\0".join(group).encode(), digest_size=16).hexdigest()


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
