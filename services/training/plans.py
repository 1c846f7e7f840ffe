"""Collection plans, their training cadence, and a week's pairs against them (requirement P6). Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.reports.weekly import forecast_of

PlanName = Literal["startup", "growth", "mature"]


class CollectionPlan(BaseModel):
    """How many new pairs, how long after the last version, and of which categories."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    pairs: int = Field(ge=0, description="new pairs of a training; 0: none starts by itself")
    every_days: float = Field(default=0.0, ge=0, description="since the last version; 0: any time")
    weekly: int = Field(default=100, ge=0, description="pairs that a week should bring")
    per_category: int = Field(default=0, ge=0, description="new pairs of each category")
    categories: tuple[str, ...] = ()

    def missing_by_category(self, pairs: Mapping[str, int]) -> dict[str, int]:
        """How many pairs each of the plan's categories still lacks; those that lack some."""
        lacks = {name: self.per_category - pairs.get(name, 0) for name in self.categories}
        return {name: count for name, count in lacks.items() if count > 0}

    def days_left(self, last_version_at: datetime | None, now: datetime) -> float:
        """Days until the cadence allows a training; 0 where it does, and before the first version."""
        if last_version_at is None:
            return 0.0
        due = last_version_at + timedelta(days=self.every_days)
        return max(0.0, (due - now) / timedelta(days=1))


PLANS: Mapping[PlanName, CollectionPlan] = {
    "startup": CollectionPlan(pairs=100, every_days=7, weekly=100),
    "growth": CollectionPlan(pairs=200, every_days=14, weekly=300),
    "mature": CollectionPlan(pairs=300, every_days=30, weekly=500),
}


@dataclass(frozen=True)
class WeekProgress:
    """The pairs of a week, from Monday in UTC, against the plan's weekly target."""

    monday: date
    collected: int
    target: int
    elapsed: timedelta
    """Since the week began."""

    @property
    def forecast(self) -> int | None:
        """Pairs at the week's end at its pace so far; None on its first day."""
        return forecast_of(self.collected, self.elapsed)

    @property
    def behind(self) -> int:
        """How many pairs the week will lack at its pace so far; 0 where it says nothing yet."""
        return 0 if self.forecast is None else max(0, self.target - self.forecast)


def monday_of(now: datetime) -> date:
    """The Monday, in UTC, of the week that a time is in."""
    today = now.astimezone(UTC).date()
    return today - timedelta(days=today.weekday())


def week_progress(collected: int, target: int, now: datetime) -> WeekProgress:
    """The present week's progress; `collected` are its pairs so far."""
    monday = monday_of(now)
    elapsed = now - datetime.combine(monday, time(), UTC)
    return WeekProgress(monday, collected, target, elapsed)
