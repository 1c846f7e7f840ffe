"""Feedback events: one person's feedback on one answer, and its withdrawal."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from shared.contracts.events.base import (
    Context,
    Event,
    Identifier,
    OptionalIdentifier,
    PersonalEvent,
    Text,
    unless_empty,
)


class FeedbackType(StrEnum):
    """Feedback types of requirement F1."""

    thumbs_up = "thumbs_up"
    thumbs_down = "thumbs_down"
    rating = "rating"
    text_correction = "text_correction"
    preference = "preference"
    demonstration = "demonstration"
    comment = "comment"


GOOD_SCORE = 0.75
"""Lowest score of a good answer: a thumb up, or a rating of 4."""

BAD_SCORE = 0.25
"""Highest score of a bad answer: a thumb down, or a rating of 2."""

MAX_FEEDBACKS = 200
"""Feedbacks kept per trace; more than that is no person any more."""

MAX_TRACE_BYTES = 900_000
"""Largest interaction with all its feedback, as the aggregator keeps them."""

RATINGS = frozenset({FeedbackType.thumbs_up, FeedbackType.thumbs_down, FeedbackType.rating})
"""Types that say how good an answer is as a whole; a person has one such opinion of it."""

ByReceipt = Annotated[
    bool,
    Field(description="it came without id and revision: of these the one received last counts"),
]


class Correction(BaseModel):
    """The model's answer and its corrected text."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    original: Text = ""
    corrected: Text = Field(min_length=1)


class Preference(BaseModel):
    """Two versions' answers to one prompt, the better one first."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    chosen: Text = Field(min_length=1)
    rejected: Text = Field(min_length=1)
    chosen_version: OptionalIdentifier = ""
    rejected_version: OptionalIdentifier = ""


class FeedbackSubmitted(PersonalEvent):
    """One revision of one person's feedback on one interaction. Key: trace_id.

    `value` by type: thumbs_* null; rating 1-5; text_correction Correction; preference Preference;
    demonstration and comment a text.
    """

    ce_type: ClassVar[str] = "ratchet.feedback.submitted.v1"
    feedback_id: Identifier
    revision: int = Field(default=0, ge=0, le=2**31 - 1)
    trace_id: Identifier
    tenant: Identifier
    type: FeedbackType
    value: int | Correction | Preference | str | None = None
    user_id: OptionalIdentifier = ""
    version: OptionalIdentifier = ""
    prompt: Text = ""
    completion: Text = ""
    source: OptionalIdentifier = unless_empty(
        "",
        description="where the answer is from if no router gave it; prompt, completion and model are then its interaction's",
    )
    model: OptionalIdentifier = unless_empty("", description="of the answer; with source only")
    asker: OptionalIdentifier = unless_empty(
        "", description="who asked the prompt that the annotation queue sampled, by user id"
    )
    context: Context = Context()
    submitted_at: AwareDatetime
    anonymous: bool = False
    by_receipt: ByReceipt = False
    given_at: AwareDatetime | None = Field(
        default=None,
        description="when the person gave it, as the product says; submitted_at is its receipt",
    )

    @model_validator(mode="after")
    def _value_fits_type(self) -> FeedbackSubmitted:
        check_value(self.type, self.value)
        return self

    def to_json(self) -> bytes:
        """See Event.to_json. By way of plain objects it takes a third of the time."""
        written = vars(self).copy()
        for name in _UNLESS_EMPTY:
            if not written[name]:
                del written[name]
        return orjson.dumps(written, _fields, orjson.OPT_UTC_Z)

    @property
    def score(self) -> float | None:
        """Satisfaction in [0, 1], or None for a type that carries none (design section 7)."""
        return satisfaction(self.type, self.value)


_UNLESS_EMPTY = tuple(
    name for name, field in FeedbackSubmitted.model_fields.items() if field.exclude_if
)


def _fields(model: BaseModel) -> dict[str, Any]:
    """A model within feedback as plain objects; none of them leaves a field out."""
    return vars(model)


class FeedbackWithdrawn(Event):
    """Withdrawal of feedback, as a revision. Key: trace_id."""

    ce_type: ClassVar[str] = "ratchet.feedback.withdrawn.v1"
    feedback_id: Identifier
    revision: int = Field(ge=1, le=2**31 - 1)
    trace_id: Identifier
    tenant: Identifier
    type: FeedbackType
    user_id: OptionalIdentifier = ""
    submitted_at: AwareDatetime
    by_receipt: ByReceipt = False


def check_value(kind: FeedbackType, value: object) -> None:
    """Raise ValueError naming the rule when `value` does not fit the feedback type."""
    match kind:
        case FeedbackType.thumbs_up | FeedbackType.thumbs_down:
            if value is not None:
                raise ValueError(f"value: must be absent for {kind}; send the type alone")
        case FeedbackType.rating:
            if type(value) is not int or not 1 <= value <= 5:
                raise ValueError(
                    "value: a rating is a whole number from 1 to 5; send 1, 2, 3, 4 or 5"
                )
        case FeedbackType.text_correction:
            if not isinstance(value, Correction):
                raise ValueError(  # noqa: TRY004 pydantic reports ValueError only
                    'value: must be {"original": …, "corrected": …}'
                )
        case FeedbackType.preference:
            if not isinstance(value, Preference):
                raise ValueError(  # noqa: TRY004 pydantic reports ValueError only
                    'value: must be {"chosen": …, "rejected": …}'
                )
        case FeedbackType.demonstration | FeedbackType.comment:
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"value: must be a non-empty text for {kind}")


def satisfaction(kind: FeedbackType, value: object) -> float | None:
    """Satisfaction in [0, 1]: thumbs 1/0, rating (r-1)/4, correction 0, else None."""
    match kind:
        case FeedbackType.thumbs_up:
            return 1.0
        case FeedbackType.thumbs_down | FeedbackType.text_correction:
            return 0.0
        case FeedbackType.rating if isinstance(value, int):
            return (value - 1) / 4
        case _:
            return None
