"""Bodies and answers of the annotation API, as its OpenAPI document describes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from services.feedback.annotation.additions import MAX_ADDED
from services.feedback.annotation.board import ItemState
from shared.contracts.events.annotations import MAX_RATERS, AnnotationKind, AnnotatorRole
from shared.contracts.events.base import Identifier, OptionalIdentifier

MAX_LISTED = 500


class AddedItems(BaseModel):
    """Items as they are in the queue now; those known before are left out."""

    added: list[str] = Field(description="item ids")


class LabelOfItem(BaseModel):
    """One label of an item. Of a preference, left is the first answer of the listing."""

    annotator: str
    role: AnnotatorRole
    label: str
    given_at: AwareDatetime


class ListedItem(BaseModel):
    """An item, its labels and what they came to."""

    item_id: str
    kind: AnnotationKind
    state: ItemState
    category: str
    high_stakes: bool
    question: str
    versions: list[str]
    raters: int
    missing: int
    labels: list[LabelOfItem]
    outcome: str = Field(description="the label that holds; empty while there is none")
    added_at: AwareDatetime


class AnnotationList(BaseModel):
    """Items of the key's tenant, newest first."""

    items: list[ListedItem]


class AnnotationQuery(BaseModel):
    """Query parameters of a listing."""

    state: ItemState | None = None
    category: OptionalIdentifier = ""
    limit: int = Field(default=50, ge=1, le=MAX_LISTED)


class CategoryStates(BaseModel):
    """Items of a category by state."""

    category: str
    high_stakes: bool
    open: int
    disputed: int
    settled: int


class LabelAgreement(BaseModel):
    """How far raters agree on items that several of them labelled; null where undefined."""

    items: int
    raters: int
    alpha: float | None = Field(description="Krippendorff's alpha")
    low: float | None
    high: float | None = Field(description="95 % bootstrap interval of alpha")
    raw: float | None = Field(description="share of pairs of labels that are equal")
    kappa: float | None
    kappa_of: str = Field(description="cohen, fleiss, or empty where neither fits")


class AnnotationStatus(BaseModel):
    """How far the tenant's queue is."""

    labelled: int = Field(description="labels of unsettled items")
    needed: int = Field(description="labels that those items need in all")
    disputed: int
    seconds_left: float | None = Field(description="by the pace of the last hour")
    categories: list[CategoryStates]
    agreement: LabelAgreement


class SampleRequest(BaseModel):
    """Body of `POST /v1/annotations/sample`."""

    model_config = ConfigDict(extra="forbid")
    count: int = Field(default=MAX_ADDED, ge=1, le=MAX_ADDED)
    kind: AnnotationKind = AnnotationKind.preference
    raters: Annotated[int, Field(ge=1, le=MAX_RATERS)] | None = None


class CategoryCoverage(BaseModel):
    """A category in recent traffic and in the queue."""

    category: str
    prompts: int = Field(description="different conversations among the newest requests")
    share: float = Field(description="of all those conversations")
    failing: int
    items: int = Field(description="in the queue, settled ones that are kept included")
    share_of_items: float


class CoverageReport(BaseModel):
    """Categories of recent traffic beside those of the queue, the most asked first."""

    categories: list[CategoryCoverage]


class TurnToLabel(BaseModel):
    """One turn of an item's conversation."""

    role: str
    content: str


class ItemToLabel(BaseModel):
    """An item for another tool to show: nothing in it names a version."""

    item_id: str
    kind: AnnotationKind
    state: ItemState
    category: str
    guidelines: str = Field(description="Markdown")
    messages: list[TurnToLabel]
    answers: list[str] = Field(
        description="two of a preference, the left one first; one of a rating"
    )
    missing: int = Field(description="labels that it still needs")


class NewLabel(BaseModel):
    """Body of `POST /v1/annotations/{item_id}/labels`: a program's label, or a person's elsewhere."""

    model_config = ConfigDict(extra="forbid")
    annotator: Identifier
    label: Identifier
    by: Literal["model", "person"] = Field(
        default="model",
        description="person: it was given in another tool, and is feedback like one of the page",
    )
    turned: bool = Field(
        default=False, description="of a person's: the tool showed the second answer on the left"
    )
