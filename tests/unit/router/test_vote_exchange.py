"""Bad attempts kept during an outage of Redis reach the stream in batches, each once."""

from __future__ import annotations

from typing import Any

import pytest

from services.router.vote_exchange import AT_ONCE, VoteExchange
from services.router.votes import VoteLimits
from shared.contracts.events.interactions import Outcome
from tests.support.votes import a_call, ended


class SlowStream:
    """The part of a Redis client that the exchange uses; the second batch times out."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self._queued: list[int] = []

    def pipeline(self, *, transaction: bool) -> SlowStream:
        assert not transaction
        self._queued = []
        return self

    def xadd(self, _: str, fields: dict[str, Any], **__: Any) -> None:
        self._queued.append(fields["voter"])

    def expire(self, *_: Any) -> None:
        """Keep for a time."""

    async def execute(self) -> None:
        self.batches.append(self._queued)
        if len(self.batches) == 2:
            raise TimeoutError

    async def xread(self, *_: Any, **__: Any) -> list[Any]:
        return []


async def test_an_outage_s_votes_are_sent_in_batches_and_none_again() -> None:
    limits, redis = VoteLimits(), SlowStream()
    for number in range(2 * AT_ONCE + 1):
        limits.arm(a_call(f"u{number}"), ended(Outcome.crash))
    exchange = VoteExchange(limits, redis, router="a")  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        await exchange.exchange()
    await exchange.exchange()
    sent = [redis.batches[0], *redis.batches[2:]]
    assert [len(batch) for batch in sent] == [AT_ONCE, AT_ONCE, 1]
    assert len({voter for batch in sent for voter in batch}) == 2 * AT_ONCE + 1
