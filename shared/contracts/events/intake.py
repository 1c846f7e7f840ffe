"""Intake events: a submission and a withdrawal as products send them, over HTTP or on a topic.

The feedback service makes a stored event of it. Tenant and time of receipt are not the product's to
say: the API key or the topic names the tenant, and that time is the request's or the record's.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AwareDatetime, ConfigDict, Field, SkipValidation

from shared.contracts.events.base import Event, Identifier, OptionalIdentifier, Text
from shared.contracts.events.feedback import (
    Correction,
    FeedbackSubmitted,
    FeedbackType,
    FeedbackWithdrawn,
    Preference,
)
from shared.contracts.events.signals import SignalObserved, SignalType

MAX_LABEL = 500
"""Longest value of a metadata label in characters."""

Label = Annotated[str, Field(max_length=MAX_LABEL)]
Metadata = Annotated[
    dict[OptionalIdentifier, Label],
    Field(
        max_length=32,
        description="session_id, locale, segment and category become the context, the rest labels",
    ),
]
Revision = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]


class Submission(Event):
    """One piece of feedback as a product sends it. A null is an absent field.

    `value` by type: thumbs_* absent; rating 1-5; text_correction Correction; preference Preference;
    demonstration and comment a text. Without a feedback_id, one follows from tenant, trace and
    user, and from the type unless it is a thumb or a rating; without a revision too, it replaces
    what was received before.
    """

    model_config = ConfigDict(extra="forbid", frozen=False)
    ce_type: ClassVar[str] = FeedbackSubmitted.ce_type
    trace_id: Identifier
    type: FeedbackType
    value: SkipValidation[int | Correction | Preference | str | None] = None
    feedback_id: OptionalIdentifier = ""
    revision: Revision = 0
    user_id: OptionalIdentifier = ""
    source: OptionalIdentifier = Field(
        default="",
        description="where the answer is from if no router gave it, such as langfuse; prompt, completion and model are then required, else refused",
    )
    model: OptionalIdentifier = Field(
        default="", description="whose datasets the answer may enter; with source only"
    )
    version: OptionalIdentifier = Field(
        default="", description="what answered; with source only, and the source's name by default"
    )
    prompt: Text = Field(default="", description="with source only")
    completion: Text = Field(default="", description="with source only")
    timestamp: AwareDatetime | None = Field(
        default=None, description="when the person gave it; orders and caps go by its receipt"
    )
    metadata: Metadata = Field(default_factory=dict)


class SignalSubmission(Event):
    """One signal as a product sends it. A null is an absent field.

    `value` by type: edit_kept the share of the answer that was kept, from 0 to 1; follow_up may
    carry the next turn's text, which is read and not stored; others have none. Identity is as for
    Submission: without a feedback_id, one follows from tenant, trace, user and type.
    """

    model_config = ConfigDict(extra="forbid")
    ce_type: ClassVar[str] = SignalObserved.ce_type
    trace_id: Identifier
    type: SignalType
    value: SkipValidation[float | str | None] = None
    feedback_id: OptionalIdentifier = ""
    revision: Revision = 0
    user_id: OptionalIdentifier = ""
    timestamp: AwareDatetime | None = Field(
        default=None, description="when it happened; orders go by its receipt"
    )
    metadata: Metadata = Field(default_factory=dict)


class Withdrawal(Event):
    """A withdrawal of feedback as a product sends it. A null is an absent field.

    Without a revision it withdraws every edit so far. The type may be left out where feedback_id is
    the one that follows from tenant, trace, user and type. Feedback given afterwards counts again
    where it has neither a feedback_id nor a revision.
    """

    model_config = ConfigDict(extra="forbid")
    ce_type: ClassVar[str] = FeedbackWithdrawn.ce_type
    trace_id: Identifier
    feedback_id: Identifier
    type: FeedbackType | None = None
    revision: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    user_id: OptionalIdentifier = ""
