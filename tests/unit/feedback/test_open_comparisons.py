"""Open comparisons whose texts are encrypted for who asked."""

from __future__ import annotations

from typing import Any, cast

import pytest
from redis.asyncio import Redis

from services.feedback.errors import ComparisonStoreUnavailable
from services.feedback.open_comparisons import Comparison, RedisComparisons
from shared.contracts.events.base import Context, Message
from shared.contracts.events.votes import Side
from shared.contracts.subject import subject_of
from shared.kafka import user_key_upkeep
from shared.kafka.user_key_issuer import UserKeyIssuer
from shared.kafka.user_key_upkeep import UserKeyDestroyer
from shared.testing.log import MemoryLog

TEXT = "Ann lives at the old mill"


class DictRedis:
    """Redis of two commands."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    async def set(self, key: str, value: str, **_: Any) -> None:
        self.values[key] = value

    async def get(self, key: str) -> str | None:
        return self.values.get(key)


def comparison(user_id: str) -> Comparison:
    return Comparison(
        comparison_id=f"c-{user_id}",
        tenant="default",
        model="assistant",
        messages=(Message(role="user", content=TEXT),),
        left=Side(trace_id="t1", version="v1", completion=TEXT),
        right=Side(trace_id="t2", version="v2", completion=TEXT),
        user_id=user_id,
        context=Context(),
        panel="",
    )


async def test_its_texts_are_encrypted_and_gone_with_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(user_key_upkeep, "ROLL_S", 0.0)
    log, redis = MemoryLog(), DictRedis()
    keys = UserKeyIssuer(log, b"s" * 32)
    store = RedisComparisons(cast("Redis", redis), ttl_s=60, text_keys=keys)
    ann, ben, nobody = comparison("ann"), comparison("ben"), comparison("")
    for one in (ann, ben, nobody):
        await store.put(one)
        assert await store.get("default", one.comparison_id) == one
    assert [TEXT in value for value in redis.values.values()] == [False, False, True]
    await UserKeyDestroyer(log).destroy([subject_of("default", "ann")])
    await keys.refresh()
    assert await store.get("default", ann.comparison_id) is None
    assert await store.get("default", ben.comparison_id) == ben
    await keys.close()


async def test_a_replica_without_the_secret_says_so() -> None:
    log, redis = MemoryLog(), DictRedis()
    keys = UserKeyIssuer(log, b"s" * 32)
    await RedisComparisons(cast("Redis", redis), ttl_s=60, text_keys=keys).put(comparison("ann"))
    without = RedisComparisons(cast("Redis", redis), ttl_s=60)
    with pytest.raises(ComparisonStoreUnavailable, match="RATCHET_TEXT_KEY_FILE"):
        await without.get("default", "c-ann")
    await keys.close()
