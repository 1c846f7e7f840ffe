"""Signals: implicit feedback, which is what a person did with an answer and not what they said of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import AwareDatetime, Field, model_validator

from shared.contracts.events.base import Context, Event, Identifier, OptionalIdentifier
from shared.contracts.events.feedback import ByReceipt


class SignalType(StrEnum):
    """Signal types of requirement C3."""

    regenerate = "regenerate"
    """The person had the answer generated again."""
    copy = "copy"
    """The person copied the answer."""
    edit_kept = "edit_kept"
    """The person edited the answer and used it; the value is the share of it that was kept."""
    abandon = "abandon"
    """The person left while or right after the answer was shown."""
    follow_up = "follow_up"
    """The person wrote a next turn."""


class SignalObserved(Event):
    """One revision of one signal on one interaction. Key: trace_id."""

    ce_type: ClassVar[str] = "ratchet.signal.observed.v1"
    feedback_id: Identifier
    revision: int = Field(default=0, ge=0, le=2**31 - 1)
    trace_id: Identifier
    tenant: Identifier
    type: Annotated[str, Field(max_length=32)] = Field(
        description="a value of SignalType; readers take others as they come"
    )
    value: float | None = Field(
        default=None, ge=0, le=1, description="edit_kept: share of the answer that was kept"
    )
    dissatisfied: bool | None = Field(
        default=None, description="follow_up: the next turn says that the answer did not help"
    )
    user_id: OptionalIdentifier = ""
    context: Context = Context()
    submitted_at: AwareDatetime
    anonymous: bool = False
    by_receipt: ByReceipt = False
    given_at: AwareDatetime | None = Field(
        default=None,
        description="when it happened, as the product says; submitted_at is its receipt",
    )

    @model_validator(mode="after")
    def _value_fits_type(self) -> SignalObserved:
        if (self.value is not None) != (self.type == SignalType.edit_kept):
            raise ValueError("value: edit_kept has one, other signals have none")
        return self

    @property
    def score(self) -> float | None:
        """Implied satisfaction in [0, 1], None where the signal implies none."""
        return implied_satisfaction(self.type, self.value, self.dissatisfied)


def implied_satisfaction(kind: str, value: float | None, dissatisfied: bool | None) -> float | None:
    """Implied satisfaction in [0, 1].

    copy 1; edit_kept its share; regenerate and abandon 0; follow_up 0 where the next turn is
    dissatisfied, else None.
    """
    match kind:
        case SignalType.copy:
            return 1.0
        case SignalType.edit_kept:
            return value
        case SignalType.regenerate | SignalType.abandon:
            return 0.0
        case SignalType.follow_up if dissatisfied:
            return 0.0
        case _:
            return None
