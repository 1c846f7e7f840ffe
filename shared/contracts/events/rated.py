"""Events between the aggregator's partitions: scored answers and scores to be capped."""

from __future__ import annotations

from typing import ClassVar

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import (
    AnswerTurn,
    Context,
    Cut,
    Event,
    Identifier,
    Message,
    OptionalIdentifier,
    PersonalEvent,
    Text,
    Tool,
    UntrainableReasons,
    unless_empty,
)
from shared.contracts.events.interactions import Arm


class RatedAnswer(PersonalEvent):
    """A scored answer, to build same-prompt pairs. Key: prompt_key."""

    ce_type: ClassVar[str] = "ratchet.rated.answer.v1"
    rated_id: Identifier = Field(description="uuid5 of the feedback revision that caused it")
    prompt_key: Identifier
    tenant: Identifier
    model: Identifier
    trace_id: Identifier
    feedback_id: Identifier
    revision: int
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = unless_empty(())
    completion: Text
    answer: AnswerTurn = unless_empty(None)
    untrainable: UntrainableReasons = unless_empty(())
    cut: Cut = False
    version: Identifier
    score: float | None = Field(description="satisfaction in [0, 1]; None retracts")
    user_id: OptionalIdentifier = ""
    asker: OptionalIdentifier = unless_empty("", description="who asked, by user id")
    context: Context = Context()
    created_at: AwareDatetime


class RatedScore(Event):
    """The first scored feedback of an interaction on randomly split traffic, to be capped.

    Key: hash of (tenant, user, rollout, day), so that one place sees all of a user's scores.
    """

    ce_type: ClassVar[str] = "ratchet.rated.score.v1"
    score_id: Identifier = Field(description="uuid5 of the trace: an interaction scores once")
    cap_key: Identifier
    tenant: Identifier
    trace_id: Identifier
    version: Identifier
    arm: Arm
    rollout: OptionalIdentifier
    segment: OptionalIdentifier = Field(default="", description="one of the configured values")
    api_key: OptionalIdentifier = unless_empty(
        "", description="hash of the id of the API key that asked for the answer"
    )
    score: float = Field(ge=0.0, le=1.0)
    created_at: AwareDatetime
