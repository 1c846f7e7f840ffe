"""The event of a record that could not be read."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import Event, Identifier

DeadLetterReason = Literal["schema", "too_large", "unknown_type", "conflict", "handler", "policy"]


class DeadLetter(Event):
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
    at: AwareDatetime
