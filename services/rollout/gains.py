"""Proof of improvement: what versions gained since the reference of the holdout. Pure.

Held-out users stay on the reference version; the others have whatever is stable. On the whole days
(UTC) on which the reference served held-out users alone and a version was stable, their scores differ
by what that version gained, as users were split by a hash. Bounds on each arm's mean hold at every
moment at once (`intervals.difference`), so one may look each day.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from services.rollout.intervals import difference, mean_bounds
from shared.registry.deployments import Deployment, Role

Day = tuple[str, date]
"""version, day of the interactions"""
ScoreSums = Mapping[Day, tuple[float, float]]
"""How many scores, and their sum in [0, 1] each."""
VoteCounts = Mapping[tuple[str, str, str], float]
"""(chosen, rejected, result) -> votes; a tie and both_bad name the versions in either order."""


def since_reference(
    version: Sequence[Deployment],
    reference: Sequence[Deployment],
    names: tuple[str, str],
    scores: ScoreSums,
    *,
    now: datetime,
    alpha: float,
) -> dict[str, Any] | None:
    """Difference in satisfaction, version minus reference, with its interval; None without scores.

    Args:
        version: when the version got traffic.
        reference: when the reference did.
        names: of the version and of the reference.
        scores: by version and day.
        now: the present; today counts as far as it is.
        alpha: chance that the interval ever misses the difference.

    """
    others = set(_touched(reference, ("stable", "canary"), now))
    held = set(_whole(reference, "holdout", now)) - others
    days = sorted(held & set(_whole(version, "stable", now)))
    mine, theirs = (_total(scores, name, days) for name in names)
    if not mine[0] or not theirs[0]:
        return None
    return {**difference(mine, theirs, alpha), "days": len(days)}


def win_rate(
    version: str, other: str, votes: VoteCounts, *, alpha: float
) -> dict[str, float] | None:
    """Share of votes for a version against another, ties as half; None without votes."""
    wins = votes.get((version, other, "chosen"), 0.0)
    losses = votes.get((other, version, "chosen"), 0.0)
    even = sum(
        votes.get((*pair, result), 0.0)
        for pair in ((version, other), (other, version))
        for result in ("tie", "both_bad")
    )
    count = wins + losses + even
    if not count:
        return None
    low, mean, high = mean_bounds(count, wins + even / 2, alpha)
    return {
        "rate": round(mean, 6),
        "low": round(low, 6),
        "high": round(high, 6),
        "votes": count,
    }


def _total(scores: ScoreSums, version: str, days: Iterable[date]) -> tuple[float, float]:
    found = [scores.get((version, day), (0.0, 0.0)) for day in days]
    return sum(count for count, _ in found), sum(total for _, total in found)


def _whole(stretches: Sequence[Deployment], role: Role, now: datetime) -> Iterator[date]:
    """The days of which a role's stretches have all, today as far as it is."""
    for one in stretches:
        if one.role == role:
            since = one.since.astimezone(UTC)
            first = since.date() + timedelta(days=since.time() != datetime.min.time())
            last = now.date() if one.until is None else one.until.date() - timedelta(days=1)
            yield from _days(first, last)


def _touched(
    stretches: Sequence[Deployment], roles: tuple[Role, ...], now: datetime
) -> Iterator[date]:
    """The days of which the roles' stretches have any part."""
    for one in stretches:
        if one.role in roles:
            yield from _days(one.since.date(), (one.until or now).date())


def _days(first: date, last: date) -> Iterator[date]:
    yield from (first + timedelta(days=number) for number in range((last - first).days + 1))
