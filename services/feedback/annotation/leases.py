"""Leases of annotation slots in Redis, so that an item gets no more labels than it needs.

A lease ends by itself, so that the slot of a rater who went away is free again. A slot that was
filled stays taken for a while in which other replicas read the label from the log.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.feedback.errors import ComparisonStoreUnavailable
from services.feedback.voting.invites import Rater

PREFIX = "ratchet:annotation"
KEPT_MS = 2 * 3_600_000
"""How long Redis keeps what it knows of an item: longer than a lease, and than the log's lag."""
SKIPPED_S = 86_400

_TAKE = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local mine = redis.call('ZSCORE', KEYS[1], ARGV[1])
if mine == 'inf' then return 0 end
if not mine then
  local taken, labelled = #ARGV - 4, {}
  for at = 5, #ARGV do labelled[ARGV[at]] = true end
  for _, rater in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if not labelled[rater] then taken = taken + 1 end
  end
  if taken >= tonumber(ARGV[3]) then return 0 end
end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
"""


class AnnotationLeases(Protocol):
    """Who holds which slot. Every call may raise ComparisonStoreUnavailable."""

    async def take(
        self, rater: Rater, item_id: str, *, slots: int, labelled: Collection[str]
    ) -> bool:
        """Take or extend a slot of an item; False where all are taken or the rater filled one.

        `labelled` are those whose labels fill slots already.
        """
        ...

    async def fill(self, rater: Rater, item_id: str) -> None:
        """Note that the rater's slot has its label."""
        ...

    async def held(self, rater: Rater) -> str | None:
        """The item that the rater took last and has not labelled."""
        ...

    async def skip(self, rater: Rater, item_id: str) -> None:
        """Free the slot; the item is not offered to this rater for a day."""
        ...

    async def skipped(self, rater: Rater) -> set[str]:
        """Items that the rater skipped."""
        ...


class RedisLeases:
    """AnnotationLeases in Redis: a sorted set an item, scored by the end of each lease."""

    def __init__(self, redis: Redis, *, lease: timedelta) -> None:
        # The library types its commands as synchronous and asynchronous at once.
        self._redis: Any = redis
        self._lease_ms = round(lease / timedelta(milliseconds=1))
        self._take: Any = redis.register_script(_TAKE)

    async def take(
        self, rater: Rater, item_id: str, *, slots: int, labelled: Collection[str]
    ) -> bool:
        """See AnnotationLeases.take."""
        arguments = [rater.user_id, self._lease_ms, slots, KEPT_MS, *labelled]
        try:
            taken = await self._take(keys=[_item_key(rater, item_id)], args=arguments)
            if taken:
                await self._redis.set(_held_key(rater), item_id, px=self._lease_ms)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        return bool(taken)

    async def fill(self, rater: Rater, item_id: str) -> None:
        """See AnnotationLeases.fill."""
        key = _item_key(rater, item_id)
        try:
            async with self._redis.pipeline() as pipe:
                pipe.zadd(key, {rater.user_id: "+inf"})
                pipe.pexpire(key, KEPT_MS)
                pipe.delete(_held_key(rater))
                await pipe.execute()
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    async def held(self, rater: Rater) -> str | None:
        """See AnnotationLeases.held."""
        try:
            found = await self._redis.get(_held_key(rater))
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        return found.decode() if found else None

    async def skip(self, rater: Rater, item_id: str) -> None:
        """See AnnotationLeases.skip."""
        try:
            async with self._redis.pipeline() as pipe:
                pipe.zrem(_item_key(rater, item_id), rater.user_id)
                pipe.delete(_held_key(rater))
                pipe.sadd(_skipped_key(rater), item_id)
                pipe.expire(_skipped_key(rater), SKIPPED_S)
                await pipe.execute()
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    async def skipped(self, rater: Rater) -> set[str]:
        """See AnnotationLeases.skipped."""
        try:
            return {item.decode() for item in await self._redis.smembers(_skipped_key(rater))}
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error


def _item_key(rater: Rater, item_id: str) -> str:
    return f"{PREFIX}:leases:{rater.tenant}:{item_id}"


def _held_key(rater: Rater) -> str:
    return f"{PREFIX}:held:{rater.tenant}:{rater.user_id}"


def _skipped_key(rater: Rater) -> str:
    return f"{PREFIX}:skipped:{rater.tenant}:{rater.user_id}"


def _unavailable(error: Exception) -> ComparisonStoreUnavailable:
    return ComparisonStoreUnavailable(
        f"slots of annotation items cannot be kept: {error}; try again", retry_after_s=2
    )
