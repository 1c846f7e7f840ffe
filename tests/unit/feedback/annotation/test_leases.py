"""The twin of the leases keeps to the suite of the real ones."""

from __future__ import annotations

from datetime import timedelta

import pytest
from redis.asyncio import Redis

from services.feedback.annotation.leases import AnnotationLeases, RedisLeases
from services.feedback.errors import ComparisonStoreUnavailable
from services.feedback.voting.invites import Rater
from shared.clock import SystemClock
from tests.support.annotations import MemoryLeases
from tests.support.lease_suite import LEASE_S, LeaseSuite

LEASE = timedelta(seconds=LEASE_S)


class TestInMemory(LeaseSuite):
    @pytest.fixture
    def leases(self) -> AnnotationLeases:
        return MemoryLeases(SystemClock(), LEASE)


async def test_without_redis_nobody_gets_a_slot_and_the_error_says_so() -> None:
    async with Redis.from_url("redis://127.0.0.1:9/0", socket_connect_timeout=1) as nowhere:
        leases = RedisLeases(nowhere, lease=LEASE)
        with pytest.raises(ComparisonStoreUnavailable, match="try again"):
            await leases.take(Rater("default", "rosa"), "i1", slots=1, labelled=())
