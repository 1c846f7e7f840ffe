"""Annotation rules: the `annotation` part of the voting plan."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from services.feedback.voting.categories import CategoryName
from shared.contracts.events.annotations import MAX_RATERS
from shared.contracts.events.base import Identifier

MAX_LEASE_MINUTES = 60


class AnnotationRules(BaseModel):
    """How many people label an item, which items never do without people, and who decides."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    raters: int = Field(default=3, ge=1, le=MAX_RATERS, description="labels of an item by default")
    high_stakes: Annotated[frozenset[CategoryName], Field(max_length=30)] = Field(
        default=frozenset(), description="categories in which only people's labels count"
    )
    adjudicators: Annotated[frozenset[Identifier], Field(max_length=100)] = Field(
        default=frozenset(), description="raters who decide where others disagree"
    )
    lease_minutes: float = Field(
        default=15.0, gt=0, le=MAX_LEASE_MINUTES, description="how long a rater holds a slot"
    )

    @property
    def lease(self) -> timedelta:
        """How long a rater holds a slot."""
        return timedelta(minutes=self.lease_minutes)
