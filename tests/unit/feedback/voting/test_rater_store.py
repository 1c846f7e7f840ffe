"""The twin of the rater store keeps to the suite of the real one."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from services.feedback.errors import ComparisonStoreUnavailable
from services.feedback.voting.invites import Rater
from services.feedback.voting.rater_store import RaterStore, RedisRaters
from tests.support.rater_suite import RaterStoreSuite
from tests.support.voting import MemoryRaters


class TestInMemory(RaterStoreSuite):
    @pytest.fixture
    def raters(self) -> RaterStore:
        return MemoryRaters()


async def test_without_redis_the_error_says_so() -> None:
    async with Redis.from_url("redis://127.0.0.1:9/0", socket_connect_timeout=1) as nowhere:
        with pytest.raises(ComparisonStoreUnavailable, match="try again"):
            await RedisRaters(nowhere, ttl_s=60).pending(Rater("default", "rosa"))
