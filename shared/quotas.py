"""Quotas: rate limits and fair slots per API key and tenant, shared between replicas by Redis.

A rate is a sliding window counter over a minute: what this minute holds so far, and of the minute
before the share that a window of 60 s still covers. Each replica counts in memory, so that a
request waits for nobody; once a second the replicas add what they counted to one hash in Redis and
read the sums of all. A burst can thus exceed a rate by what the other replicas let in within that
second. Without Redis each replica limits by its own counts.
"""

# pyright: basic
# The Redis client's own types are partly unknown.
from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.contracts.events.api_keys import KeyLimits
from shared.errors import RatchetError
from shared.keys import ApiKey
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

Unit = Literal["requests", "tokens"]
WINDOW_S = 60
SYNC_S = 1.0
SYNC_TIMEOUT_S = 0.5
KEPT_S = 3 * WINDOW_S
FAIR_FACTOR = 4
"""A key may hold this many times the free slots: alone 4/5 of all, so that others find some."""


class QuotaExceeded(RatchetError):
    """A key or tenant has used up a limit."""

    status = 429
    code = "rate_limited"
    title = "Rate limit reached"

    def __init__(self, subject: str, unit: str, limit: int, retry_after_s: int) -> None:
        super().__init__(
            f"rate limit of {subject} reached: {limit} {unit}; try again in {retry_after_s} s",
            retry_after_s=retry_after_s,
        )
        self.unit = unit


class RateLimits(NamedTuple):
    """Bounds of one subject; 0 is no bound."""

    requests: int = 0
    """A minute."""
    tokens: int = 0
    """A minute."""
    running: int = 0
    """At a time, in this process."""


def inference_limits(default: RateLimits) -> Callable[[KeyLimits], RateLimits]:
    """What a key may ask of engines: its own limits, else the default ones."""
    return lambda own: RateLimits(
        default.requests if own.requests_per_minute is None else own.requests_per_minute,
        default.tokens if own.tokens_per_minute is None else own.tokens_per_minute,
        default.running if own.running is None else own.running,
    )


def feedback_limits(default: RateLimits) -> Callable[[KeyLimits], RateLimits]:
    """How much feedback a key may give: its own limits, else the default ones."""
    return lambda own: default._replace(
        requests=default.requests if own.feedback_per_minute is None else own.feedback_per_minute
    )


class CountStore(Protocol):
    """Counts of all replicas in one window."""

    async def add(self, window: int, counts: Mapping[str, int]) -> dict[str, int]:
        """Add to the window's counts and return the sums of the same names.

        Raises:
            redis.RedisError, OSError: the store is unavailable.

        """
        ...


class RedisCounts:
    """CountStore in Redis: a hash a window, which expires."""

    def __init__(self, redis: Redis, service: str) -> None:
        self._redis = redis
        self._prefix = f"ratchet:quota:{service}:"

    async def add(self, window: int, counts: Mapping[str, int]) -> dict[str, int]:
        """See CountStore.add."""
        key = f"{self._prefix}{window}"
        pipeline = self._redis.pipeline(transaction=False)
        for name, count in counts.items():
            pipeline.hincrby(key, name, count)
        pipeline.expire(key, KEPT_S)
        return dict(zip(counts, await pipeline.execute(), strict=False))


class _Rate:
    """Counts of one unit of one subject."""

    __slots__ = ("before", "carried", "limit", "others", "own", "unsent")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.own = 0
        self.unsent = 0
        self.others = 0
        self.before = 0
        self.carried = 0.0

    def used(self) -> float:
        return self.own + self.others + self.carried

    def count(self, amount: int) -> None:
        self.own += amount
        self.unsent += amount

    def roll(self, *, whole: bool) -> None:
        """A new window begins; `whole`: directly after the one before."""
        self.before = self.own + self.others if whole else 0
        self.own = self.unsent = self.others = 0


class _Subject:
    """What one key or tenant has used."""

    __slots__ = ("limits", "requests", "running", "tokens")

    def __init__(self, limits: RateLimits) -> None:
        self.limits = limits
        self.running = 0
        self.requests = _Rate(limits.requests)
        self.tokens = _Rate(limits.tokens)

    def rates(self) -> tuple[tuple[Unit, _Rate], tuple[Unit, _Rate]]:
        return ("requests", self.requests), ("tokens", self.tokens)

    def idle(self) -> bool:
        return not self.running and not any(
            rate.own or rate.before or rate.unsent for _, rate in self.rates()
        )


class RequestSlot(NamedTuple):
    """An admitted request, to be given back to `Quotas.leave`."""

    key: _Subject
    tenant: _Subject


class Quotas:
    """Admits requests by the limits of their key and tenant.

    The clock is read once a second only (`run`): `admit` compares numbers.
    """

    def __init__(
        self,
        *,
        key: Callable[[KeyLimits], RateLimits],
        tenant: RateLimits,
        slots: int = 0,
        store: CountStore | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`key` gives the limits of a key, `tenant` are those of each tenant.

        `slots`: what all keys share fairly (0: nothing is shared); `now`: seconds since 1970.
        """
        self._key_limits = key
        self._tenant_limits = tenant
        self._slots = slots
        self._taken = 0
        self._store = store
        self._now = now
        self._keys: dict[str, _Subject] = {}
        self._tenants: dict[str, _Subject] = {}
        self._window = int(now()) // WINDOW_S
        self._left_s = WINDOW_S
        self._store_fails = False
        self.tick()

    def admit(self, key: ApiKey, requests: int = 1) -> RequestSlot:
        """Count a request of `key`, or refuse it.

        Raises:
            QuotaExceeded: a limit of the key or of its tenant is reached; nothing was counted.

        """
        own = self._key(key)
        tenant = self._tenant(key.tenant)
        self._check("the key", own, requests)
        self._check("the tenant", tenant, requests)
        if self._slots and own.running >= FAIR_FACTOR * (self._slots - self._taken):
            raise QuotaExceeded("the key", "requests at a time while others wait", own.running, 1)
        for subject in (own, tenant):
            subject.running += 1
            subject.requests.count(requests)
        self._taken += 1
        return RequestSlot(own, tenant)

    def spend(self, tenant: str, requests: int = 1, *, key: ApiKey | None = None) -> None:
        """Count requests of a tenant, and of its key where they have one, or refuse them.

        Raises:
            QuotaExceeded: a limit of one of them is reached; nothing was counted.

        """
        subject, own = self._tenant(tenant), None
        if key is not None:
            own = self._key(key)
            self._check("the key", own, requests)
        self._check("the tenant", subject, requests)
        subject.requests.count(requests)
        if own is not None:
            own.requests.count(requests)

    def refund(self, tenant: str, requests: int = 1) -> None:
        """Take back what `spend` counted, of requests that will come again."""
        self._tenant(tenant).requests.count(-requests)

    def leave(self, slot: RequestSlot, tokens: int = 0) -> None:
        """The request is over and took so many tokens."""
        for subject in slot:
            subject.running -= 1
            if tokens:
                subject.tokens.count(tokens)
        self._taken -= 1

    @property
    def subjects(self) -> int:
        """Keys and tenants with counts."""
        return len(self._keys) + len(self._tenants)

    def tick(self) -> None:
        """Move the windows to the present."""
        now = self._now()
        window = int(now) // WINDOW_S
        share = 1 - (now - window * WINDOW_S) / WINDOW_S
        self._left_s = max(1, round(share * WINDOW_S))
        for subjects in (self._keys, self._tenants):
            for name in list(subjects):
                subject = subjects[name]
                for _, rate in subject.rates():
                    if window != self._window:
                        rate.roll(whole=window == self._window + 1)
                    rate.carried = rate.before * share
                if subject.idle():
                    del subjects[name]
        self._window = window

    async def sync(self) -> None:
        """Exchange counts with the other replicas; without the store the own ones have to do."""
        if self._store is None:
            return
        rates = {
            f"{kind}:{name}:{unit}": rate
            for kind, subjects in (("key", self._keys), ("tenant", self._tenants))
            for name, subject in subjects.items()
            for unit, rate in subject.rates()
            if rate.limit
        }
        if not rates:
            return
        sent = {name: rate.unsent for name, rate in rates.items()}
        window = self._window
        try:
            async with asyncio.timeout(SYNC_TIMEOUT_S):
                sums = await self._store.add(window, sent)
        except (RedisError, OSError, TimeoutError) as error:
            if not self._store_fails:
                log.warning(Unavailable.redis, during="quotas", error=str(error) or "timed out")
            self._store_fails = True
            return
        self._store_fails = False
        for name, rate in rates.items():
            rate.unsent -= sent[name]
            rate.others = max(0, sums[name] - (rate.own - rate.unsent))

    async def run(self) -> None:
        """Keep windows and counts current until cancelled."""
        while True:
            await asyncio.sleep(SYNC_S)
            await self.sync()
            self.tick()

    def _key(self, key: ApiKey) -> _Subject:
        own = self._keys.get(key.key_id)
        if own is None:
            own = self._keys[key.key_id] = _Subject(self._key_limits(key.limits))
        return own

    def _tenant(self, name: str) -> _Subject:
        subject = self._tenants.get(name)
        if subject is None:
            subject = self._tenants[name] = _Subject(self._tenant_limits)
        return subject

    def _check(self, who: str, subject: _Subject, requests: int) -> None:
        limits = subject.limits
        if limits.running and subject.running >= limits.running:
            raise QuotaExceeded(who, "requests at a time", limits.running, 1)
        rate = subject.requests
        # A batch larger than the limit needs an empty window; else it could never pass.
        if rate.limit and rate.used() + (needed := min(requests, rate.limit)) > rate.limit:
            raise QuotaExceeded(who, "requests a minute", rate.limit, self._wait_s(rate, needed))
        rate = subject.tokens
        if rate.limit and rate.used() >= rate.limit:
            raise QuotaExceeded(who, "tokens a minute", rate.limit, self._wait_s(rate, 1))

    def _wait_s(self, rate: _Rate, amount: int) -> int:
        """Seconds until `amount` more fits, if nothing else comes."""
        over = rate.used() + amount - rate.limit
        if over <= rate.carried and rate.before:
            return max(1, round(over * WINDOW_S / rate.before + 0.5))
        return self._left_s
