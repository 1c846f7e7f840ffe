"""The event of an API key: its scopes and its hash."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from shared.contracts.events.base import Event, Identifier


class Permission(StrEnum):
    """Scopes of a key."""

    infer = "infer"
    feedback = "feedback"
    vote = "vote"
    operate = "operate"


class KeyLimits(BaseModel):
    """Bounds of one key; absent ones are the service's defaults, 0 is no bound."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    requests_per_minute: int | None = Field(default=None, ge=0)
    tokens_per_minute: int | None = Field(
        default=None, ge=0, description="of prompts and answers together"
    )
    feedback_per_minute: int | None = Field(default=None, ge=0)
    running: int | None = Field(default=None, ge=0, description="requests at a time, each router")
    max_tokens: int | None = Field(default=None, ge=0, description="of one answer")
    max_choices: int | None = Field(default=None, ge=0, description="n and best_of")


class ApiKeyIssued(Event):
    """A key as the topic holds it. Key: key_id; an empty value revokes it."""

    ce_type: ClassVar[str] = "ratchet.api-key.issued.v1"
    key_id: Identifier
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tenant: Identifier
    scopes: tuple[Permission, ...] = Field(min_length=1)
    explicit_versions: bool = False
    judge_panel: bool = Field(
        default=False, description="may vote for the evaluation judge's panel"
    )
    own_trace_ids: bool = Field(
        default=False, description="may name its requests itself, by x-ratchet-trace-id"
    )
    approver: bool = Field(
        default=False, description="may let rollouts through gates that ask for an approval"
    )
    issued_at: AwareDatetime
    name: str = Field(default="", max_length=200)
    expires_at: AwareDatetime | None = Field(default=None, description="absent: never")
    limits: KeyLimits = KeyLimits()
