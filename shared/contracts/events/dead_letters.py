"""Events of records that could not be read: what is kept of one, and that it was replayed."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import (
    Event,
    Identifier,
    OptionalIdentifier,
    PersonalEvent,
    unless_empty,
)
from shared.contracts.events.erasures import Subject

DeadLetterReason = Literal["schema", "too_large", "unknown_type", "conflict", "handler", "policy"]


class DeadLetter(PersonalEvent):
    """A record that could not be read. Key: source topic. The body is redacted text."""

    ce_type: ClassVar[str] = "ratchet.dead-letter.v1"
    source_topic: Identifier
    source_partition: int
    source_offset: int
    source_key: str = ""
    headers: dict[str, str] = Field(default_factory=dict)
    reason: DeadLetterReason
    detail: str = Field(max_length=2000)
    body: str
    service: Identifier
    tenant: OptionalIdentifier = unless_empty("")
    subjects: tuple[Subject, ...] = unless_empty((), description="people whom the body names")
    at: AwareDatetime


class DeadLetterReplayed(Event):
    """A dead letter goes back to its topic; a letter of the same place after it was unreadable again.

    Key: source topic, so that it comes after the letter, and before what came of the replay.
    """

    ce_type: ClassVar[str] = "ratchet.dead-letter.replayed.v1"
    source_topic: Identifier
    source_partition: int
    source_offset: int
    at: AwareDatetime
