"""The event of an API key: its scopes and its hash."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import Event, Identifier


class Permission(StrEnum):
    """Scopes of a key."""

    infer = "infer"
    feedback = "feedback"
    vote = "vote"
    operate = "operate"


class ApiKeyIssued(Event):
    """A key as the topic holds it. Key: key_id; an empty value revokes it."""

    ce_type: ClassVar[str] = "ratchet.api-key.issued.v1"
    key_id: Identifier
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tenant: Identifier
    scopes: tuple[Permission, ...] = Field(min_length=1)
    explicit_versions: bool = False
    issued_at: AwareDatetime
