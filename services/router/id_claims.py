"""Claims of clients' trace ids over all replicas, kept in Redis for an hour."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

PREFIX = "ratchet:trace-id:"
KEPT_S = 3_600
TIMEOUT_S = 0.25
PAUSE_S = 1.0
"""How long Redis is not asked after it failed: else each request would wait for it."""


class IdClaims(Protocol):
    """Which ids the requests of all replicas have."""

    async def take(self, tenant: str, trace_id: str) -> bool:
        """Take an id for one request; False where another one has it."""
        ...


class RedisIdClaims:
    """IdClaims in Redis. Without it each replica knows its own ids alone, and serves on."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._fails = False
        self._asks_again_at = 0.0

    async def take(self, tenant: str, trace_id: str) -> bool:
        """See IdClaims.take; True where Redis does not answer in time."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._asks_again_at:
            return True
        try:
            async with asyncio.timeout(TIMEOUT_S):
                key = f"{PREFIX}{tenant}:{trace_id}"
                taken = await self._redis.set(key, 1, nx=True, ex=KEPT_S)
        except (RedisError, OSError, TimeoutError) as error:
            if not self._fails:
                log.warning(Unavailable.redis, during="trace_ids", error=str(error) or "timed out")
            self._fails = True
            self._asks_again_at = loop.time() + PAUSE_S
            return True
        self._fails = False
        return bool(taken)
