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

PAIR_LABEL = "vote_pair"
"""Label of a vote, and of its pair, that says how its two answers came to be compared."""
INFORMATIVE = "informative"
"""Chosen of several by a reward model as hard to tell apart, so that who wins them says little of
how often a version wins. Without the label they are drawn."""


class Choice(StrEnum):
    """A rater's preference between two answers shown side by side."""

    left = "left"
    right = "right"
    tie = "tie"
    both_bad = "both_bad"


def is_drawn(context: Context) -> bool:
    """Whether the two answers of a vote, or of its pair, are any of their versions' answers."""
    return context.labels.get(PAIR_LABEL) != INFORMATIVE


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
