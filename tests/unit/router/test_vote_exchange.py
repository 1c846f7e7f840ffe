"""Replicas tell each other of attempts: bad ones each once, those of a minute as one sum."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from services.router.assignment import digest, key_of
from services.router.vote_exchange import AT_ONCE, VoteExchange
from services.router.votes import BAD_PER_DAY, CAPPED, VoteCaps, VoteLimits
from shared.contracts.events.interactions import Outcome
from shared.testing.clock import ManualClock
from tests.support.votes import NOON, a_call, ended


class StubRedis:
    """The part of a Redis client that the exchange uses; one batch may time out."""

    def __init__(self, *, fails_at: int = 0) -> None:
        self.batches: list[list[int]] = []
        self.sums: Counter[tuple[str, str]] = Counter()
        self.entries: list[dict[bytes, bytes]] = []
        self._fails_at = fails_at
        self._queued: list[int] = []
        self._answers: list[int] = []

    def pipeline(self, *, transaction: bool) -> StubRedis:
        assert not transaction
        self._queued, self._answers = [], []
        return self

    def hincrby(self, key: str, field: str, more: int) -> None:
        self.sums[key, field] += more
        self._answers.append(self.sums[key, field])

    def xadd(self, _: str, fields: dict[str, Any], **__: Any) -> None:
        self._queued.append(fields["voter"])

    def expire(self, *_: Any) -> None:
        """Keep for a time."""

    async def execute(self) -> list[int]:
        if self._queued:
            self.batches.append(self._queued)
            if len(self.batches) == self._fails_at:
                raise TimeoutError
        return self._answers

    async def xread(self, *_: Any, **__: Any) -> list[Any]:
        entries, self.entries = self.entries, []
        return [(b"stream", [(b"%d-0" % n, one) for n, one in enumerate(entries)])]


async def test_an_outage_s_votes_are_sent_in_batches_and_none_again() -> None:
    limits, redis = VoteLimits(), StubRedis(fails_at=2)
    for number in range(2 * AT_ONCE + 1):
        limits.arm(a_call(f"u{number}"), ended(Outcome.crash))
    exchange = VoteExchange(limits, redis, router="a")  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        await exchange.exchange()
    await exchange.exchange()
    sent = [redis.batches[0], *redis.batches[2:]]
    assert [len(batch) for batch in sent] == [AT_ONCE, AT_ONCE, 1]
    assert len({voter for batch in sent for voter in batch}) == 2 * AT_ONCE + 1


async def test_votes_of_a_minute_are_one_sum_over_replicas() -> None:
    redis, caps = StubRedis(), VoteCaps(key=10)
    replicas = [VoteLimits(caps), VoteLimits(caps)]
    exchanges = [VoteExchange(one, redis, router=n) for one, n in zip(replicas, "ab", strict=True)]  # type: ignore[arg-type]

    async def told() -> None:
        for exchange in (*exchanges, *exchanges):
            await exchange.exchange()

    def counted(users: range, replica: VoteLimits, **more: Any) -> int:
        arms = [replica.arm(a_call(f"u{number}", **more), ended()) for number in users]
        return len(arms) - arms.count(CAPPED)

    assert counted(range(6), replicas[0]) == 6
    assert counted(range(6, 7), replicas[1]) == 1
    await told()
    assert counted(range(7, 20), replicas[1]) == 3
    await told()
    assert counted(range(20, 30), replicas[0]) == 0
    assert counted(range(30, 50), replicas[0], rollout="r2") == 10
    later = NOON + timedelta(minutes=1)
    assert counted(range(50, 70), replicas[0], at=later) == 10
    await told()
    assert {key for key, _ in redis.sums} == {
        f"ratchet:votes:minute:{int(at.timestamp()) // 60}" for at in (NOON, later)
    }


async def test_without_redis_each_replica_bounds_by_itself() -> None:
    limits = VoteLimits(VoteCaps(key=3))
    exchange = VoteExchange(limits, StubRedis(fails_at=1), router="a")  # type: ignore[arg-type]
    limits.arm(a_call("u0"), ended(Outcome.crash))
    with pytest.raises(TimeoutError):
        await exchange.exchange()
    arms = [limits.arm(a_call(f"u{number}"), ended()) for number in range(1, 5)]
    assert arms.count(CAPPED) == 2


async def test_what_stands_in_the_stream_and_is_no_vote_ends_nothing_and_clears_nothing() -> None:
    limits, redis = VoteLimits(max_voters=2), StubRedis()
    exchange = VoteExchange(limits, redis, router="a", clock=ManualClock(NOON))  # type: ignore[arg-type]
    for _ in range(BAD_PER_DAY):
        limits.arm(a_call("u0"), ended(Outcome.crash))
        limits.arm(a_call("u1"), ended(Outcome.crash))
    day = b"%d" % NOON.toordinal()
    redis.entries = [
        {b"router": b"\xff", b"voter": b"\xff", b"day": day},
        {b"router": b"b", b"voter": b"7"},
        {b"router": b"b", b"voter": b"7", b"day": b"3650000"},
    ]
    await exchange.exchange()
    assert limits.arm(a_call("u0"), ended()) == CAPPED
    known = digest("r1", "acme", *key_of("u0", "", "t1"))
    other = VoteLimits()
    redis.entries = [{b"router": b"b", b"voter": b"%d" % known, b"day": day}] * BAD_PER_DAY
    await VoteExchange(other, redis, router="a", clock=ManualClock(NOON)).exchange()  # type: ignore[arg-type]
    assert other.arm(a_call("u0"), ended()) == CAPPED
