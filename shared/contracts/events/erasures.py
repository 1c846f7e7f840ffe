"""Events of erasures: what was asked, what it did, and which traces lose a person's data.

A person is named by `subject_of(tenant, user_id)`, never by the user id.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import Event, Identifier

Subject = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Subjects = Annotated[
    tuple[Subject, ...],
    Field(
        min_length=1,
        max_length=4,
        description="of the person: of the user id, and of its hash where user ids are hashed",
    ),
]


class ErasureRequested(Event):
    """A person's data are to be erased. Key: the first subject."""

    ce_type: ClassVar[str] = "ratchet.erasure.requested.v1"
    erasure_id: Identifier
    tenant: Identifier
    subjects: Subjects
    actor: Identifier = Field(description="who was authenticated; callers cannot choose it")
    on_behalf_of: str = Field(default="", max_length=200, description="whom the actor names")
    reason: str = Field(default="", max_length=2000)
    requested_at: AwareDatetime


class ErasureCompleted(Event):
    """What an erasure found and took away: its proof. Key: the first subject."""

    ce_type: ClassVar[str] = "ratchet.erasure.completed.v1"
    erasure_id: Identifier
    tenant: Identifier
    subjects: Subjects
    requested_at: AwareDatetime
    completed_at: AwareDatetime
    traces: int = Field(ge=0, description="traces that the person asked or gave feedback on")
    examples: int = Field(ge=0, description="joined examples that lost texts")
    products: int = Field(ge=0, description="pairs and unpaired examples that were retracted")


class TraceErased(Event):
    """A person's data go from what is known of one trace or comparison. Key: trace_id.

    Feedback that was received after `erased_at` stays.
    """

    ce_type: ClassVar[str] = "ratchet.trace.erased.v1"
    erasure_id: Identifier
    trace_id: Identifier
    tenant: Identifier
    subjects: Subjects
    whole: bool = Field(
        default=False, description="the person asked the question: all texts of the trace go"
    )
    erased_at: AwareDatetime
