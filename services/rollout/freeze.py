"""Freeze windows: times of the week in which no weight rises. Pure."""

# pyright: strict
from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
"""In the order of `datetime.weekday`."""


def _check_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError("is no time zone; write one such as UTC or Europe/Berlin") from None
    return name


class FreezeWindow(BaseModel):
    """From one time of a day to another of the same or the next day."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    days: tuple[Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"], ...] = Field(
        default=DAYS, min_length=1, description="days on which the window begins"
    )
    begins: time = Field(default=time(0), alias="from")
    ends: time = Field(default=time(0), alias="to", description="at or before `from`: a day later")
    timezone: Annotated[str, AfterValidator(_check_zone)] = "UTC"

    @model_validator(mode="after")
    def _wall_clock(self) -> FreezeWindow:
        if self.begins.tzinfo is not None or self.ends.tzinfo is not None:
            raise ValueError("from and to are times of the wall clock; name the zone in timezone")
        return self

    def until(self, at: datetime) -> datetime | None:
        """When the window that covers a moment ends; None outside of it."""
        zone = ZoneInfo(self.timezone)
        for day in (0, 1):
            began = at.astimezone(zone).date() - timedelta(days=day)
            if DAYS[began.weekday()] not in self.days:
                continue
            start = datetime.combine(began, self.begins, zone)
            last = began if self.ends > self.begins else began + timedelta(days=1)
            end = datetime.combine(last, self.ends, zone)
            if start <= at < end:
                return end
        return None


def frozen_until(windows: tuple[FreezeWindow, ...], at: datetime) -> datetime | None:
    """When the present freeze ends, windows that follow each other at once included.

    None outside of every window; `at` plus a week where the windows cover a whole week.
    """
    end, latest = at, at + timedelta(days=7)
    while end < latest:
        ends = [one for one in (window.until(end) for window in windows) if one is not None]
        if not ends:
            break
        end = max(ends)
    return min(end, latest) if end > at else None
