"""Collection plans and their training cadence (requirement P6). Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PlanName = Literal["startup", "growth", "mature"]


class CollectionPlan(BaseModel):
    """How many new pairs, how long after the last version, and of which categories."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    pairs: int = Field(ge=0, description="new pairs of a training; 0: none starts by itself")
    every_days: float = Field(default=0.0, ge=0, description="since the last version; 0: any time")
    weekly: int = Field(default=100, ge=0, description="pairs that a week should bring")
    per_category: int = Field(default=0, ge=0, description="new pairs of each category")
    categories: tuple[str, ...] = ()

    def missing_of_categories(self, pairs: Mapping[str, int]) -> int:
        """How many pairs the plan's categories still lack, together."""
        return sum(max(0, self.per_category - pairs.get(name, 0)) for name in self.categories)

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
