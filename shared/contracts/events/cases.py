"""Events of the failure memory."""

from __future__ import annotations

from typing import ClassVar

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import Event, Identifier


class CaseRetired(Event):
    """Retires a case: candidates are no longer asked it. Key: case_id."""

    ce_type: ClassVar[str] = "ratchet.case.retired.v1"
    case_id: Identifier = Field(description="the pair_id of the pair that the case is")
    reason: str = Field(min_length=1, max_length=1000)
    actor: Identifier
    on_behalf_of: str = Field(default="", max_length=200, description="whom the actor names")
    at: AwareDatetime
