"""One suite for every RaterStore."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from services.feedback.voting.invites import Rater
from services.feedback.voting.rater_store import (
    CountedVote,
    PendingComparison,
    RaterStore,
    day_of,
)
from shared.contracts.events.votes import Choice

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def pending(number: int) -> PendingComparison:
    return PendingComparison(
        comparison_id=f"c{number}", category="creative", opened_at=NOON + timedelta(minutes=number)
    )


def counted(number: int, category: str = "creative") -> CountedVote:
    return CountedVote(
        comparison_id=f"c{number}",
        category=category,
        question="Write a slogan.",
        choice=Choice.left,
        left="v1",
        right="v2",
        at=NOON + timedelta(minutes=number),
    )


class RaterStoreSuite:
    """A subclass names a fixture `raters`; `unique` keeps tests apart on one server."""

    async def test_the_one_shown_last_is_first_and_the_reserve_waits(
        self, raters: RaterStore, unique: str
    ) -> None:
        rater = Rater("acme", unique)
        for number in (2, 0, 3, 1):
            await raters.add(rater, pending(number))
        first = await raters.show(rater, "c1", NOON)
        assert await raters.show(rater, "c1", NOON + timedelta(hours=1)) == first == NOON
        await raters.show(rater, "c3", NOON + timedelta(seconds=1))
        found = await raters.pending(rater)
        assert [one.comparison_id for one in found] == ["c3", "c1", "c0", "c2"]
        assert found[1].shown_at == NOON
        assert found[2].shown_at is None
        await raters.drop(rater, "c3")
        await raters.drop(rater, "c3")
        assert [one.comparison_id for one in await raters.pending(rater)] == ["c1", "c0", "c2"]

    async def test_a_vote_counts_once_on_its_day_and_is_withdrawn_once(
        self, raters: RaterStore, unique: str
    ) -> None:
        rater, day = Rater(unique, "rosa"), day_of(NOON)
        await asyncio.gather(*(raters.count(rater, counted(1)) for _ in range(5)))
        await raters.count(rater, counted(2, "other"))
        await raters.count(Rater(unique, "ben"), counted(3))
        assert await raters.coverage(unique, day) == {"creative": 2, "other": 1}
        assert [vote.comparison_id for vote in await raters.votes(rater, day)] == ["c2", "c1"]
        await asyncio.gather(*(raters.withdraw(rater, counted(1)) for _ in range(5)))
        assert await raters.coverage(unique, day) == {"creative": 1, "other": 1}
        assert [vote.withdrawn for vote in await raters.votes(rater, day)] == [False, True]
        await raters.count(rater, counted(1))
        assert await raters.coverage(unique, day) == {"creative": 1, "other": 1}

    async def test_people_days_and_tenants_are_apart(self, raters: RaterStore, unique: str) -> None:
        rater, day = Rater(unique, "a"), day_of(NOON)
        await raters.add(rater, pending(1))
        await raters.count(rater, counted(1))
        for other in (Rater(unique, "b"), Rater(f"{unique}:a", ""), Rater(f"{unique}x", "a")):
            assert await raters.pending(other) == []
            assert await raters.votes(other, day) == []
        assert await raters.votes(rater, day + timedelta(days=1)) == []
        assert await raters.coverage(unique, day + timedelta(days=1)) == {}

    async def test_wins_follow_votes_and_their_withdrawal(
        self, raters: RaterStore, unique: str
    ) -> None:
        rater = Rater(unique, "rosa")
        tie = counted(2).model_copy(update={"choice": Choice.both_bad})
        for vote in (counted(1), counted(1), tie):
            await raters.count(rater, vote)
        assert await raters.wins(unique) == {("v1", "v2"): 1.5, ("v2", "v1"): 0.5}
        await raters.withdraw(rater, counted(1))
        assert await raters.wins(unique) == {("v1", "v2"): 0.5, ("v2", "v1"): 0.5}
