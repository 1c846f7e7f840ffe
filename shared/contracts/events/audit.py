"""The audit event: who changed what, for whom and why."""

from __future__ import annotations

from typing import ClassVar

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import Event, Identifier


class ActionAudited(Event):
    """One action of a person that is on no other topic. Key: subject."""

    ce_type: ClassVar[str] = "ratchet.action.audited.v1"
    action: str = Field(pattern=r"^[a-z]+(\.[a-z]+)+$", max_length=100, examples=["key.issued"])
    subject: Identifier = Field(description="what was changed, such as a key's id")
    tenant: Identifier
    actor: Identifier = Field(description="who was authenticated; callers cannot choose it")
    on_behalf_of: str = Field(default="", max_length=200, description="whom the actor names")
    reason: str = Field(default="", max_length=2000)
    at: AwareDatetime
