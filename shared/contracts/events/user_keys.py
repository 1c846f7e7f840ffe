"""Events of the keys that people's texts are encrypted with."""

from __future__ import annotations

from typing import ClassVar

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import Event, Identifier
from shared.contracts.events.erasures import Subject


class UserKeyIssued(Event):
    """A data key of one person's. Key: subject:key_id; an empty value destroys it.

    A person may have several, for two writers may meet the person at once; an erasure destroys all.
    """

    ce_type: ClassVar[str] = "ratchet.user-key.issued.v1"
    key_id: Identifier
    tenant: Identifier
    subject: Subject
    wrapped: str = Field(
        max_length=200,
        description="base64 of nonce and AES-256-GCM ciphertext of the key, under the tenant's key",
    )
    issued_at: AwareDatetime
