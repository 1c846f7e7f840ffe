"""The rater store and the leases of annotation slots on real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from services.feedback.annotation.leases import AnnotationLeases, RedisLeases
from services.feedback.voting.invites import Rater
from services.feedback.voting.rater_store import (
    DAY_TTL_S,
    WINS_TTL_S,
    RaterStore,
    RedisRaters,
)
from tests.support.lease_suite import LEASE_S, LeaseSuite
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
    assert len(keys) == 4
    longest = {b"open": TTL_S, b"wins": WINS_TTL_S}
    for key in keys:
        assert 0 < await redis.ttl(key) <= longest.get(key.split(b":")[2], DAY_TTL_S)


class TestLeasesOnRedis(LeaseSuite):
    """The common suite."""

    @pytest.fixture
    def leases(self, redis: Redis) -> AnnotationLeases:
        return RedisLeases(redis, lease=timedelta(seconds=LEASE_S))

    async def test_everything_kept_of_an_item_expires(
        self, leases: AnnotationLeases, redis: Redis, unique: str
    ) -> None:
        rosa = Rater(unique, "rosa")
        await leases.take(rosa, "i1", slots=1, labelled=())
        await leases.skip(rosa, "i1")
        await leases.take(rosa, "i2", slots=1, labelled=())
        await leases.fill(rosa, "i2")
        keys = [key async for key in redis.scan_iter(f"ratchet:annotation:*{unique}*")]
        assert keys
        for key in keys:
            assert await redis.ttl(key) > 0
