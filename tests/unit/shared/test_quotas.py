"""Sliding window rates, fair slots, and counts shared between replicas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from redis.exceptions import ConnectionError as RedisDown

from shared.contracts.events.api_keys import KeyLimits, Permission
from shared.keys import ApiKey
from shared.quotas import QuotaExceeded, Quotas, RateLimits, feedback_limits, inference_limits


def key(name: str, tenant: str = "acme", **limits: int) -> ApiKey:
    scopes = frozenset(Permission)
    return ApiKey(name, tenant, scopes, explicit_versions=False, limits=KeyLimits(**limits))


class SharedCounts:
    """CountStore in a dict; `away` makes it unavailable."""

    def __init__(self) -> None:
        self.windows: dict[int, Counter[str]] = {}
        self.away = False

    async def add(self, window: int, counts: Mapping[str, int]) -> dict[str, int]:
        if self.away:
            raise RedisDown("refused")
        held = self.windows.setdefault(window, Counter())
        held.update(counts)
        return {name: held[name] for name in counts}


class Replica:
    """Quotas with a clock that the test moves."""

    def __init__(
        self,
        limits: RateLimits = RateLimits(),  # noqa: B008
        *,
        tenant: RateLimits = RateLimits(),  # noqa: B008
        slots: int = 0,
        store: SharedCounts | None = None,
    ) -> None:
        self.at = 600_000.0
        self.quotas = Quotas(
            key=inference_limits(limits),
            tenant=tenant,
            slots=slots,
            store=store,
            now=lambda: self.at,
        )

    def pass_by(self, seconds: float) -> None:
        self.at += seconds
        self.quotas.tick()

    def admitted(self, who: ApiKey, times: int) -> int:
        """How many of `times` requests, each over at once, were let in."""
        count = 0
        for _ in range(times):
            try:
                self.quotas.leave(self.quotas.admit(who))
            except QuotaExceeded:
                continue
            count += 1
        return count


def test_a_key_gets_its_requests_a_minute_and_is_told_when_to_come_back() -> None:
    replica = Replica(RateLimits(requests=10))
    assert replica.admitted(key("a"), 12) == 10
    assert replica.admitted(key("b"), 3) == 3
    with pytest.raises(QuotaExceeded, match="10 requests a minute") as refused:
        replica.quotas.admit(key("a"))
    assert refused.value.retry_after_s == 60
    # The window slides: half a minute into the next one, half of what was used is free again.
    replica.pass_by(60 + 30)
    assert replica.admitted(key("a"), 12) == 5
    replica.pass_by(120)
    assert replica.admitted(key("a"), 12) == 10


def test_the_promised_time_is_enough() -> None:
    replica = Replica(RateLimits(requests=10))
    replica.admitted(key("a"), 10)
    replica.pass_by(65)
    for _ in range(5):
        with pytest.raises(QuotaExceeded) as refused:
            replica.quotas.admit(key("a"))
        assert refused.value.retry_after_s is not None
        replica.pass_by(refused.value.retry_after_s)
        assert replica.admitted(key("a"), 1) == 1


def test_tokens_count_when_they_are_known() -> None:
    replica = Replica(RateLimits(tokens=100))
    replica.quotas.leave(replica.quotas.admit(key("a")), tokens=99)
    replica.quotas.leave(replica.quotas.admit(key("a")), tokens=60)
    with pytest.raises(QuotaExceeded, match="100 tokens a minute") as refused:
        replica.quotas.admit(key("a"))
    assert refused.value.unit.startswith("tokens")


def test_the_limits_of_a_key_outweigh_the_default_and_0_is_none() -> None:
    replica = Replica(RateLimits(requests=2, running=1))
    assert replica.admitted(key("own", requests_per_minute=5), 9) == 5
    assert replica.admitted(key("free", requests_per_minute=0), 9) == 9
    slot = replica.quotas.admit(key("one"))
    with pytest.raises(QuotaExceeded, match="1 requests at a time"):
        replica.quotas.admit(key("one"))
    replica.quotas.leave(slot)
    assert replica.admitted(key("one"), 1) == 1


def test_a_tenant_has_one_limit_for_all_its_keys() -> None:
    replica = Replica(tenant=RateLimits(requests=4))
    assert [replica.admitted(key(name), 3) for name in ("a", "b")] == [3, 1]
    assert replica.admitted(key("c", tenant="umbrella"), 3) == 3


def test_what_is_refused_is_not_counted() -> None:
    replica = Replica(RateLimits(requests=2), tenant=RateLimits(requests=3))
    replica.admitted(key("a"), 50)
    assert replica.admitted(key("b"), 50) == 1


def test_one_key_with_slow_readers_leaves_slots_to_others() -> None:
    replica = Replica(slots=100)
    for _ in range(80):
        replica.quotas.admit(key("slow"))
    with pytest.raises(QuotaExceeded, match="while others wait"):
        replica.quotas.admit(key("slow"))
    for _ in range(16):  # 4/5 of the 20 that are free, and so on
        replica.quotas.admit(key("other"))
    assert replica.quotas.admit(key("third"))


def test_a_batch_counts_its_items_and_one_over_the_limit_needs_an_empty_window() -> None:
    at = [600_000.0]
    quotas = Quotas(
        key=feedback_limits(RateLimits(requests=100)), tenant=RateLimits(), now=lambda: at[-1]
    )
    quotas.leave(quotas.admit(key("a"), 60))
    with pytest.raises(QuotaExceeded):
        quotas.admit(key("a"), 60)
    quotas.leave(quotas.admit(key("b"), 1000))
    with pytest.raises(QuotaExceeded):
        quotas.admit(key("b"), 1)
    own = key("c", feedback_per_minute=3, requests_per_minute=1)
    quotas.leave(quotas.admit(own, 3))
    with pytest.raises(QuotaExceeded):
        quotas.admit(own)


async def test_replicas_share_one_limit() -> None:
    store = SharedCounts()
    replicas = [Replica(RateLimits(requests=10), store=store) for _ in range(3)]
    assert replicas[0].admitted(key("a"), 6) == 6
    for replica in replicas:
        replica.quotas.admit(key("a"))
    for _ in range(2):
        for replica in replicas:
            await replica.quotas.sync()
    assert [replica.admitted(key("a"), 5) for replica in replicas] == [1, 1, 1]
    assert store.windows[10_000]["key:a:requests"] == 9


async def test_without_the_store_each_replica_limits_by_its_own_counts() -> None:
    store = SharedCounts()
    replica = Replica(RateLimits(requests=10), store=store)
    assert replica.admitted(key("a"), 4) == 4
    store.away = True
    await replica.quotas.sync()
    assert replica.admitted(key("a"), 20) == 6
    store.away = False
    await replica.quotas.sync()
    assert store.windows[10_000]["key:a:requests"] == 10


def test_idle_keys_are_forgotten() -> None:
    replica = Replica(RateLimits(requests=10))
    for number in range(100):
        replica.admitted(key(f"k{number}"), 1)
    replica.pass_by(61)
    replica.pass_by(61)
    assert not replica.quotas.subjects
