"""Events of measurement: joined examples, window figures and the stream's clock."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import AwareDatetime

from shared.contracts.events.base import (
    AnswerTurn,
    Context,
    Event,
    Identifier,
    Message,
    Text,
    Tool,
    UntrainableReasons,
    unless_empty,
)
from shared.contracts.events.feedback import FeedbackSubmitted


class ExampleJoined(Event):
    """An interaction joined with its feedback, for queries. Key: trace_id (compacted)."""

    ce_type: ClassVar[str] = "ratchet.example.joined.v1"
    trace_id: Identifier
    tenant: Identifier
    model: Identifier
    version: Identifier
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = unless_empty(())
    completion: Text
    answer: AnswerTurn = unless_empty(None)
    untrainable: UntrainableReasons = unless_empty(())
    context: Context = Context()
    started_at: AwareDatetime
    feedback: tuple[FeedbackSubmitted, ...]
    updated_at: AwareDatetime


class QualityWindow(Event):
    """Figures of one window, grouped by the interaction's start.

    Key: version+window+start+partition. Every figure is a numerator and a denominator, summed
    over partitions by the reader; satisfaction's numerator sums scores in [0, 1].
    """

    ce_type: ClassVar[str] = "ratchet.quality.window.v1"
    version: str
    window: Literal["1m", "5m", "1h", "1d"]
    start: AwareDatetime
    partition: int
    interactions: int
    errors: int
    interactions_with_feedback: int
    feedback: int
    positive: int
    negative: int
    corrections: int
    score_sum: float
    score_count: int


class Tick(Event):
    """The stream's clock: one per partition per second."""

    ce_type: ClassVar[str] = "ratchet.tick.v1"
    at: AwareDatetime
    partition: int
