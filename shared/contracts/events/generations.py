"""Events of the batch worker: generation asked for and done, and its comparison in a shadow step."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from shared.contracts.events.base import (
    AnswerTurn,
    Identifier,
    Message,
    OptionalIdentifier,
    PersonalEvent,
    Text,
    Tool,
    unless_empty,
)
from shared.contracts.events.erasures import Subject

Asker = Annotated[
    tuple[Subject, ...], Field(description="whose texts these are; none: the client named nobody")
]


class ShownAnswer(BaseModel):
    """The answer that a person was shown, for a candidate's shadow answer to be compared with."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    completion: Text = ""
    tool_calls: tuple[str, ...] = Field(default=(), description="names of the tools called")
    latency_ms: float = Field(ge=0, description="of the whole answer")


class ShadowComparison(BaseModel):
    """A shadow answer beside the shown one; neither is in it."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    length_ratio: float = Field(ge=0, description="characters of the candidate's over the shown's")
    similarity: float = Field(ge=0, le=1, description="words in both over words in either")
    refused: bool
    shown_refused: bool
    tools_equal: bool = Field(description="the same tools by name, in the same order")
    latency_ms: float = Field(ge=0)
    shown_latency_ms: float = Field(ge=0)


class GenerationRequested(PersonalEvent):
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
    tools: tuple[Tool, ...] = unless_empty(())
    sampling: dict[str, Any] | None = Field(
        default=None,
        description="what a client asked for, in place of max_tokens, temperature and seed",
    )
    tenant: OptionalIdentifier = unless_empty("")
    subjects: Asker = unless_empty(())
    shown: ShownAnswer | None = Field(
        default=None, description="of a shadow request: what its answer is compared with"
    )


class GenerationFinished(PersonalEvent):
    """Result of one generation request. Key: request_id."""

    ce_type: ClassVar[str] = "ratchet.generation.finished.v1"
    request_id: Identifier
    batch_id: Identifier
    purpose: Literal["shadow", "evaluation"]
    version: Identifier
    outcome: Literal["ok", "failed", "expired"]
    completion: Text = ""
    answer: AnswerTurn = unless_empty(None)
    finish_reason: str = ""
    completion_tokens: int = 0
    duration_ms: float = 0.0
    error: str = Field(default="", max_length=500)
    finished_at: AwareDatetime
    tenant: OptionalIdentifier = unless_empty("")
    subjects: Asker = unless_empty(())
    comparison: ShadowComparison | None = Field(
        default=None, description="of a shadow answer, whose text is not kept"
    )
    unsuited: bool = Field(
        default=False, description="the engine refuses the shadow request for its base, too"
    )
