"""Events of reminders about the collection plan."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import Event, Identifier, ModelName


class ReminderKind(StrEnum):
    """What a reminder is about. `behind`: the week's pairs; `missing`: the next training."""

    behind = "behind"
    missing = "missing"


class ReminderClaimed(Event):
    """Right of one replica to send a reminder: the first of its kind in a day has it. Key: model/kind."""

    ce_type: ClassVar[str] = "ratchet.reminder.claimed.v1"
    reminder_id: Identifier = Field(description="also the delivery's `webhook-id`")
    model: ModelName
    kind: ReminderKind
    figures: dict[str, float] = Field(
        default_factory=dict,
        max_length=64,
        description="what the reminder says, by name; a later one says something else",
    )
    at: AwareDatetime
