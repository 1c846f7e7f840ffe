"""Reminders about the collection plan: which are due, and what they say. Pure."""

# pyright: strict
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.training.plans import WeekProgress
from shared.contracts.events.reminders import ReminderClaimed, ReminderKind
from shared.webhook_message import WebhookMessage

PERIOD = timedelta(days=1)
"""Between two reminders of a kind about a model."""
ABOUT = {
    "pairs": ("pair", ""),
    "judge_pairs": ("pair", " set apart for the judge"),
    "heldout_pairs": ("pair", " held out for the evaluation"),
    "days": ("day", " of the plan's cadence"),
}
"""What each kind of `TriggerInputs.missing` is to people; categories are named one by one."""


@dataclass(frozen=True)
class CollectionStatus:
    """Where a model's collection plan stands."""

    model: str
    week: WeekProgress
    missing: Mapping[str, float]
    """Rows and days that the next training lacks, by kind; see `TriggerInputs.missing`."""
    categories: Mapping[str, int]
    """Pairs that each of the plan's categories lacks; those that lack some."""

    @property
    def lacks(self) -> dict[str, int]:
        """What is missing, categories one by one, rows and days rounded up to whole ones."""
        kinds = {name: math.ceil(value) for name, value in self.missing.items()}
        named = {f"category {name}": count for name, count in self.categories.items()}
        return {
            name: value
            for name, value in {**kinds, **named}.items()
            if value > 0 and name != "category_pairs"
        }


@dataclass(frozen=True)
class Reminder:
    """What is to be said, as the text of a chat and as figures."""

    kind: ReminderKind
    text: str
    figures: Mapping[str, float]
    status: CollectionStatus

    def message(self, reminder_id: str, at: datetime) -> WebhookMessage:
        """What a receiver gets."""
        week = self.status.week
        return WebhookMessage(
            type=f"collection.{self.kind.value}",
            id=reminder_id,
            at=at,
            text=self.text,
            data={
                "model": self.status.model,
                "week": {
                    "from": week.monday.isoformat(),
                    "collected": week.collected,
                    "target": week.target,
                    "forecast": week.forecast,
                },
                "missing": self.status.lacks,
            },
        )


def due(
    status: CollectionStatus, last: Mapping[ReminderKind, ReminderClaimed], now: datetime
) -> list[Reminder]:
    """The reminders to send now, at most one of a kind in PERIOD.

    Args:
        status: Where the plan stands.
        last: The last reminder of each kind about the model.
        now: The time of day, aware.

    """
    said = (_behind(status), _missing(status, last.get(ReminderKind.missing)))
    return [one for one in said if one is not None and is_apart(now, last.get(one.kind))]


def is_apart(at: datetime, last: ReminderClaimed | None) -> bool:
    """Whether a reminder may follow the last one of its kind.

    The distance counts in both directions, so a clock that was set back costs one more at most.
    """
    return last is None or abs(at - last.at) >= PERIOD


def _behind(status: CollectionStatus) -> Reminder | None:
    """Said again each PERIOD while it is so: a week in which nothing comes changes no figure."""
    week = status.week
    if not week.behind:
        return None
    text = (
        f"{status.model}: {week.collected} of {week.target} pairs came since Monday, {week.monday}. "
        f"At this pace the week ends with {week.forecast}, {week.behind} too few."
    )
    figures = {"collected": week.collected, "forecast": week.forecast or 0, "target": week.target}
    return Reminder(ReminderKind.behind, text, figures, status)


def _missing(status: CollectionStatus, last: ReminderClaimed | None) -> Reminder | None:
    """Said where something else is missing than was said last. Days that pass are no news."""
    lacks = status.lacks
    figures = {name: 1 if name == "days" else value for name, value in lacks.items()}
    if figures == (last.figures if last is not None else {}):
        return None
    said = ", ".join(_words(name, value) for name, value in lacks.items())
    text = (
        f"{status.model}: the next training still lacks {said}."
        if said
        else f"{status.model}: the next training lacks nothing more."
    )
    return Reminder(ReminderKind.missing, text, figures, status)


def _words(name: str, value: int) -> str:
    unit, about = ABOUT.get(name, ("pair", f" of the {name}"))
    return f"{value} {unit}{'' if value == 1 else 's'}{about}"
