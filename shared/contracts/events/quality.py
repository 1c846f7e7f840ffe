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
    OptionalIdentifier,
    PersonalEvent,
    Text,
    Tool,
    UntrainableReasons,
    unless_empty,
)
from shared.contracts.events.feedback import FeedbackSubmitted
from shared.contracts.events.signals import SignalObserved


class ExampleJoined(PersonalEvent):
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
    asker: OptionalIdentifier = unless_empty("", description="who asked, by user id")
    context: Context = Context()
    started_at: AwareDatetime
    feedback: tuple[FeedbackSubmitted, ...]
    signals: tuple[SignalObserved, ...] = unless_empty(())
    updated_at: AwareDatetime


class QualityWindow(Event):
    """Figures of one window, grouped by the interaction's start.

    Key: version+window+start+partition. Every figure is a numerator and a denominator, summed
    over partitions by the reader; satisfaction's numerator sums scores in [0, 1]. `paired` counts
    answers with both implied and explicit satisfaction; the sums and sums of squares beside it are
    what their correlation needs. A turn is a request that ends with a person's message, a session
    starts with a turn that has no answer before it.
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
    regenerated: int = 0
    copied: int = 0
    edited: int = 0
    kept_sum: float = 0.0
    abandoned: int = 0
    followed_up: int = 0
    dissatisfied: int = 0
    implied_sum: float = 0.0
    implied_count: int = 0
    paired: int = 0
    paired_implied: float = 0.0
    paired_explicit: float = 0.0
    paired_implied_squared: float = 0.0
    paired_explicit_squared: float = 0.0
    paired_product: float = 0.0
    turns: int = 0
    sessions: int = 0


class Tick(Event):
    """The stream's clock: one per partition per second."""

    ce_type: ClassVar[str] = "ratchet.tick.v1"
    at: AwareDatetime
    partition: int
