"""Events of blind comparisons."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from shared.contracts.events.base import (
    AnswerTurn,
    Context,
    Cut,
    Identifier,
    Message,
    OptionalIdentifier,
    PersonalEvent,
    Text,
    Tool,
    unless_empty,
)


class Choice(StrEnum):
    """A rater's preference between two answers shown side by side."""

    left = "left"
    right = "right"
    tie = "tie"
    both_bad = "both_bad"


class Side(BaseModel):
    """One answer of a comparison."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    version: Identifier
    trace_id: Identifier
    completion: Text
    answer: AnswerTurn = unless_empty(None)
    cut: Cut = False


class VoteCast(PersonalEvent):
    """One vote on a blind comparison, self-contained. Key: comparison_id (also its trace_id)."""

    ce_type: ClassVar[str] = "ratchet.vote.cast.v1"
    comparison_id: Identifier
    revision: int = Field(default=0, ge=0, le=2**31 - 1)
    tenant: Identifier
    model: Identifier
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = unless_empty(())
    left: Side
    right: Side
    choice: Choice
    user_id: OptionalIdentifier = ""
    asker: OptionalIdentifier = unless_empty(
        "", description="who asked the question, by user id, where another person votes"
    )
    context: Context = Context()
    panel: Literal["", "judge"] = Field(
        default="", description="judge: kept for the evaluation judge, never trained on"
    )
    submitted_at: AwareDatetime
    anonymous: bool = False
