"""The rater store on real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from services.feedback.voting.invites import Rater
from services.feedback.voting.rater_store import DAY_TTL_S, RaterStore, RedisRaters
from tests.support.rater_suite import RaterStoreSuite, counted, pending

TTL_S = 60


@pytest.fixture
async def redis(redis_server: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server) as client:
        yield client


@pytest.fixture
def raters(redis: Redis) -> RaterStore:
    return RedisRaters(redis, ttl_s=TTL_S)


class TestOnRedis(RaterStoreSuite):
    """The common suite."""


async def test_everything_kept_of_a_rater_expires(
    raters: RaterStore, redis: Redis, unique: str
) -> None:
    rater = Rater(unique, "rosa")
    await raters.add(rater, pending(1))
    await raters.show(rater, "c1", pending(1).opened_at)
    await raters.count(rater, counted(1))
    keys = [key async for key in redis.scan_iter(f"ratchet:voting:*{unique}*")]
    assert len(keys) == 3
    for key in keys:
        assert 0 < await redis.ttl(key) <= (TTL_S if b":open:" in key else DAY_TTL_S)
