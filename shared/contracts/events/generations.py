"""Events of the batch worker: generation asked for and done."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import Event, Identifier, Message, OptionalIdentifier, Text


class GenerationRequested(Event):
    """Generation request for the batch worker, lowest priority. Key: request_id."""

    ce_type: ClassVar[str] = "ratchet.generation.requested.v1"
    request_id: Identifier
    batch_id: Identifier
    purpose: Literal["shadow", "evaluation"]
    version: Identifier
    messages: tuple[Message, ...]
    max_tokens: int = Field(default=64, ge=1, le=8192)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    seed: int | None = None
    expires_at: AwareDatetime
    trace_id: OptionalIdentifier = ""


class GenerationFinished(Event):
    """Result of one generation request. Key: request_id."""

    ce_type: ClassVar[str] = "ratchet.generation.finished.v1"
    request_id: Identifier
    batch_id: Identifier
    purpose: Literal["shadow", "evaluation"]
    version: Identifier
    outcome: Literal["ok", "failed", "expired"]
    completion: Text = ""
    finish_reason: str = ""
    completion_tokens: int = 0
    duration_ms: float = 0.0
    error: str = Field(default="", max_length=500)
    finished_at: AwareDatetime
