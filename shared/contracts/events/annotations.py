"""Events of the annotation queue: items to be labelled by several raters, and their labels."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import (
    Context,
    Event,
    Identifier,
    Message,
    ModelName,
    OptionalIdentifier,
    PersonalEvent,
    Text,
    unless_empty,
)
from shared.contracts.events.votes import Choice, Side

MAX_RATERS = 20
"""Most raters of one item."""


class AnnotationKind(StrEnum):
    """What raters are asked of an item."""

    preference = "preference"
    """Which of two answers is better."""
    rating = "rating"
    """How good one answer is, from 1 to 5."""


LABELS: dict[AnnotationKind, tuple[str, ...]] = {
    AnnotationKind.preference: tuple(choice.value for choice in Choice),
    AnnotationKind.rating: ("1", "2", "3", "4", "5"),
}
"""The labels of each kind."""


class AnnotatorRole(StrEnum):
    """As what somebody labels an item."""

    rater = "rater"
    adjudicator = "adjudicator"
    """Decides where raters disagree."""
    model = "model"
    """A program. It never fills a slot of an item in a high-stakes category."""


class AnnotationItemAdded(PersonalEvent):
    """An item of the annotation queue, with the answers to be labelled. Key: item_id."""

    ce_type: ClassVar[str] = "ratchet.annotation.item-added.v1"
    item_id: Identifier
    tenant: Identifier
    model: ModelName
    kind: AnnotationKind
    messages: tuple[Message, ...] = Field(min_length=1, max_length=1000)
    answers: tuple[Side, ...] = Field(
        min_length=1, max_length=2, description="two of a preference, one of a rating"
    )
    raters: int = Field(ge=1, le=MAX_RATERS, description="labels that the item needs")
    context: Context = Context()
    guidelines: Text = Field(default="", description="Markdown, shown beside this item")
    source: Literal["manual", "traffic"] = Field(
        default="manual", description="traffic: the prompt was sampled from requests"
    )
    asker: OptionalIdentifier = unless_empty(
        "", description="who asked the sampled prompt, by user id"
    )
    added_at: AwareDatetime


class AnnotationGiven(Event):
    """One label of an item, stored after the feedback that it became. Key: item_id."""

    ce_type: ClassVar[str] = "ratchet.annotation.given.v1"
    item_id: Identifier
    tenant: Identifier
    annotator: Identifier
    role: AnnotatorRole
    label: Identifier
    feedback_id: str = Field(
        default="", max_length=200, description="the feedback or vote; empty of a model's label"
    )
    given_at: AwareDatetime
