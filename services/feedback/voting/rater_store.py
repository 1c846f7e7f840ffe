"""Rater store: what each rater has open and has voted today, in Redis.

It serves the page only. A flush empties histories and progress; votes are on the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Any, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.feedback.errors import ComparisonStoreUnavailable
from services.feedback.voting.invites import Rater
from shared.contracts.events.votes import Choice

PREFIX = "ratchet:voting"
DAY_TTL_S = 3 * 86_400
"""How long a day's votes stay; undo and the history look back one day at most."""
WINS_TTL_S = 90 * 86_400
_SHOWN = ":shown"
_SEPARATOR = "|"
"""Between two versions; no version's name has it."""
_WITHDRAWN = ":withdrawn"


class PendingComparison(BaseModel):
    """A comparison that waits for its rater's vote."""

    model_config = ConfigDict(frozen=True)
    comparison_id: str
    category: str
    opened_at: AwareDatetime
    shown_at: AwareDatetime | None = None
    """When the page first got it; None while it is in reserve."""


class CountedVote(BaseModel):
    """A vote as its rater's history shows it."""

    model_config = ConfigDict(frozen=True)
    comparison_id: str
    category: str
    question: str
    choice: Choice
    left: str
    right: str
    at: AwareDatetime
    faster_than_reading: bool = False
    withdrawn: bool = False


class RaterStore(Protocol):
    """Open comparisons and counted votes by rater. Every call may raise ComparisonStoreUnavailable."""

    async def pending(self, rater: Rater) -> list[PendingComparison]:
        """The rater's open comparisons: the one shown last first, those in reserve last."""
        ...

    async def add(self, rater: Rater, pending: PendingComparison) -> None:
        """Keep an open comparison until its time is over."""
        ...

    async def show(self, rater: Rater, comparison_id: str, at: datetime) -> datetime:
        """Note when a comparison is shown; returns when it was shown first."""
        ...

    async def drop(self, rater: Rater, comparison_id: str) -> None:
        """Forget an open comparison."""
        ...

    async def count(self, rater: Rater, vote: CountedVote) -> None:
        """Count a vote on its day, once."""
        ...

    async def withdraw(self, rater: Rater, vote: CountedVote) -> None:
        """Take a vote out of its day's counts, once; the history keeps it as withdrawn."""
        ...

    async def votes(self, rater: Rater, day: date) -> list[CountedVote]:
        """The rater's votes of a day (UTC), newest first."""
        ...

    async def coverage(self, tenant: str, day: date) -> dict[str, int]:
        """Counted votes of a tenant's raters on a day (UTC) by category."""
        ...

    async def wins(self, tenant: str) -> dict[tuple[str, str], float]:
        """How often the first of two versions won over the second; a tie is half of each.

        Of votes on the page in the last months: it says what to show, and ranks nothing.
        """
        ...


class RedisRaters:
    """RaterStore in Redis: two hashes a rater, one a tenant and day."""

    def __init__(self, redis: Redis, *, ttl_s: int) -> None:
        # The library types its hash commands as synchronous and asynchronous at once.
        self._redis: Any = redis
        self._ttl_s = ttl_s

    async def pending(self, rater: Rater) -> list[PendingComparison]:
        """See RaterStore.pending."""
        fields = await self._read(_open_key(rater))
        return by_showing(
            PendingComparison.model_validate_json(value).model_copy(
                update={"shown_at": _moment(fields.get(name + _SHOWN))}
            )
            for name, value in fields.items()
            if not name.endswith(_SHOWN)
        )

    async def add(self, rater: Rater, pending: PendingComparison) -> None:
        """See RaterStore.add."""
        key, value = _open_key(rater), pending.model_dump_json()
        try:
            async with self._redis.pipeline() as pipe:
                pipe.hset(key, pending.comparison_id, value)
                pipe.expire(key, self._ttl_s)
                await pipe.execute()
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    async def show(self, rater: Rater, comparison_id: str, at: datetime) -> datetime:
        """See RaterStore.show."""
        key, field = _open_key(rater), comparison_id + _SHOWN
        try:
            async with self._redis.pipeline() as pipe:
                pipe.hsetnx(key, field, at.isoformat())
                pipe.hget(key, field)
                pipe.expire(key, self._ttl_s)
                found = (await pipe.execute())[1]
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        return _moment(found) or at

    async def drop(self, rater: Rater, comparison_id: str) -> None:
        """See RaterStore.drop."""
        try:
            await self._redis.hdel(_open_key(rater), comparison_id, comparison_id + _SHOWN)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    async def count(self, rater: Rater, vote: CountedVote) -> None:
        """See RaterStore.count."""
        await self._once(rater, vote, vote.comparison_id, vote.model_dump_json(), by=1)

    async def withdraw(self, rater: Rater, vote: CountedVote) -> None:
        """See RaterStore.withdraw."""
        await self._once(rater, vote, vote.comparison_id + _WITHDRAWN, "1", by=-1)

    async def votes(self, rater: Rater, day: date) -> list[CountedVote]:
        """See RaterStore.votes."""
        fields = await self._read(_votes_key(rater, day))
        return newest_first(
            CountedVote.model_validate_json(value).model_copy(
                update={"withdrawn": name + _WITHDRAWN in fields}
            )
            for name, value in fields.items()
            if not name.endswith(_WITHDRAWN)
        )

    async def coverage(self, tenant: str, day: date) -> dict[str, int]:
        """See RaterStore.coverage."""
        fields = await self._read(_coverage_key(tenant, day))
        return {category: int(count) for category, count in fields.items()}

    async def wins(self, tenant: str) -> dict[tuple[str, str], float]:
        """See RaterStore.wins."""
        fields = await self._read(_wins_key(tenant))
        return {
            (first, second): float(count)
            for pair, count in fields.items()
            for first, second in [pair.split(_SEPARATOR)]
        }

    async def _once(
        self, rater: Rater, vote: CountedVote, field: str, value: str, *, by: int
    ) -> None:
        day = day_of(vote.at)
        key, coverage = _votes_key(rater, day), _coverage_key(rater.tenant, day)
        wins = _wins_key(rater.tenant)
        try:
            if await self._redis.hsetnx(key, field, value):
                async with self._redis.pipeline() as pipe:
                    pipe.expire(key, DAY_TTL_S)
                    pipe.hincrby(coverage, vote.category, by)
                    pipe.expire(coverage, DAY_TTL_S)
                    for pair, won in won_by(vote).items():
                        pipe.hincrbyfloat(wins, _SEPARATOR.join(pair), by * won)
                    pipe.expire(wins, WINS_TTL_S)
                    await pipe.execute()
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    async def _read(self, key: str) -> dict[str, str]:
        try:
            fields: dict[bytes | str, bytes | str] = await self._redis.hgetall(key)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        return {_text(name): _text(value) for name, value in fields.items()}


def by_showing(pending: Iterable[PendingComparison]) -> list[PendingComparison]:
    """Shown ones first, the last shown before all; then those in reserve, the oldest first."""
    found = list(pending)
    shown = [one for one in found if one.shown_at is not None]
    shown.sort(key=lambda one: one.shown_at or one.opened_at, reverse=True)
    reserve = sorted((one for one in found if one.shown_at is None), key=lambda one: one.opened_at)
    return [*shown, *reserve]


def newest_first(votes: Iterable[CountedVote]) -> list[CountedVote]:
    """Votes by time, the newest first."""
    return sorted(votes, key=lambda vote: vote.at, reverse=True)


def won_by(vote: CountedVote) -> dict[tuple[str, str], float]:
    """What a vote adds to the wins of one version over another; both bad is a tie."""
    if vote.left == vote.right:
        return {}
    left = {Choice.left: 1.0, Choice.right: 0.0}.get(vote.choice, 0.5)
    return {(vote.left, vote.right): left, (vote.right, vote.left): 1.0 - left}


def day_of(moment: datetime) -> date:
    """The day in UTC on which a vote counts."""
    return moment.astimezone(UTC).date()


def _open_key(rater: Rater) -> str:
    return f"{PREFIX}:open:{rater.tenant}:{rater.user_id}"


def _votes_key(rater: Rater, day: date) -> str:
    return f"{PREFIX}:votes:{rater.tenant}:{day}:{rater.user_id}"


def _coverage_key(tenant: str, day: date) -> str:
    return f"{PREFIX}:coverage:{tenant}:{day}"


def _wins_key(tenant: str) -> str:
    return f"{PREFIX}:wins:{tenant}"


def _moment(value: bytes | str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(_text(value))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _unavailable(error: Exception) -> ComparisonStoreUnavailable:
    return ComparisonStoreUnavailable(
        f"what raters have open cannot be kept or read: {error}; try again", retry_after_s=2
    )
