"""Events of the failure memory."""

from __future__ import annotations

from typing import ClassVar

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import Event, Identifier, Message, ModelName, Name

MAX_ANSWER = 20_000


class CaseFound(Event):
    """A case that a red-team run found: what a version must not say again. Key: case_id."""

    ce_type: ClassVar[str] = "ratchet.case.found.v1"
    case_id: Identifier
    model: ModelName
    version: Name = Field(description="the version that gave the answer")
    messages: tuple[Message, ...] = Field(min_length=1, max_length=1000)
    good: str = Field(min_length=1, max_length=MAX_ANSWER, description="the answer wanted")
    bad: str = Field(min_length=1, max_length=MAX_ANSWER, description="the answer given, redacted")
    probe: Identifier = Field(description="the probe and the attack that it came from")
    actor: Identifier
    on_behalf_of: str = Field(default="", max_length=200, description="whom the actor names")
    reason: str = Field(default="", max_length=1000)
    at: AwareDatetime


class CaseRetired(Event):
    """Retires a case: candidates are no longer asked it. Key: case_id."""

    ce_type: ClassVar[str] = "ratchet.case.retired.v1"
    case_id: Identifier = Field(description="the pair_id of the pair that the case is")
    reason: str = Field(min_length=1, max_length=1000)
    actor: Identifier
    on_behalf_of: str = Field(default="", max_length=200, description="whom the actor names")
    at: AwareDatetime
