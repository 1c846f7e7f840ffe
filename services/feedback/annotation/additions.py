"""Additions to the annotation queue: requests, the answers they need, and their events."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.feedback.comparisons import (
    MAX_TURNS,
    ComparisonRequest,
    Comparisons,
    side_of,
    turns_redacted,
)
from services.feedback.errors import Invalid, invalid
from services.feedback.voting.plan import MAX_QUESTION, VotingPlan
from services.feedback.voting.reserve import voted_model
from shared.clock import Clock
from shared.contracts.events.annotations import MAX_RATERS, AnnotationItemAdded, AnnotationKind
from shared.contracts.events.base import (
    MAX_TEXT,
    Context,
    Identifier,
    Message,
    OptionalIdentifier,
    prompt_text,
)
from shared.contracts.events.votes import Side
from shared.errors import FieldError
from shared.redaction.detection import Redact, redacted
from shared.registry.routing import RoutingTable

MAX_ADDED = 20
"""Items of one request: answers that are not given are asked of the router meanwhile."""
MAX_ITEM_CHARACTERS = 64_000
"""Texts of one item: all unsettled items are kept in memory."""


class GivenAnswer(BaseModel):
    """An answer that the caller has already."""

    model_config = ConfigDict(extra="forbid")
    version: Identifier
    text: Annotated[str, Field(max_length=MAX_TEXT)]
    trace_id: OptionalIdentifier = ""


class NewItem(BaseModel):
    """An item to add: a prompt or its turns, and the answers unless they are to be generated."""

    model_config = ConfigDict(extra="forbid")
    item_id: OptionalIdentifier = Field(
        default="", description="adding the same id again changes nothing; empty: one is made"
    )
    kind: AnnotationKind = AnnotationKind.preference
    prompt: Annotated[str, Field(max_length=MAX_QUESTION)] = ""
    messages: Annotated[tuple[Message, ...], Field(max_length=MAX_TURNS)] = ()
    model: OptionalIdentifier = Field(default="", description="empty: the voting plan's")
    versions: tuple[Identifier, Identifier] | None = Field(
        default=None, description="whose answers are generated; a rating takes the first"
    )
    answers: tuple[GivenAnswer, GivenAnswer] | None = Field(
        default=None, description="of a preference; absent: they are generated"
    )
    raters: Annotated[int, Field(ge=1, le=MAX_RATERS)] | None = None
    category: OptionalIdentifier = Field(default="", description="empty: by the classifier")
    guidelines: Annotated[str, Field(max_length=10_000)] = Field(
        default="", description="Markdown, shown beside this item"
    )
    source: Literal["manual", "traffic"] = "manual"

    @model_validator(mode="after")
    def _is_whole(self) -> NewItem:
        if bool(self.prompt.strip()) == bool(self.messages):
            raise ValueError("prompt: send either prompt or messages")
        if self.answers and self.kind is AnnotationKind.rating:
            raise ValueError(
                "answers: feedback on an answer needs its interaction, so a rating's answer is "
                "generated; leave answers out"
            )
        return self

    @property
    def turns(self) -> tuple[Message, ...]:
        """The conversation to answer."""
        return self.messages or (Message(role="user", content=self.prompt.strip()),)


class NewItems(BaseModel):
    """Body of `POST /v1/annotations`."""

    model_config = ConfigDict(extra="forbid")
    items: Annotated[tuple[NewItem, ...], Field(min_length=1, max_length=MAX_ADDED)]


class ItemBuilder:
    """Makes events of requests; asks the router for answers that are not given."""

    def __init__(
        self,
        comparisons: Comparisons,
        routing: RoutingTable,
        plan: VotingPlan,
        clock: Clock,
        redact: Redact,
    ) -> None:
        self._comparisons = comparisons
        self._routing = routing
        self._plan = plan
        self._clock = clock
        self._redact = redact

    async def build(
        self, new: NewItem, *, tenant: str, authorization: str, asker: str = ""
    ) -> AnnotationItemAdded:
        """The event of one item, texts redacted.

        Raises:
            FeedbackError: nothing can answer, the router failed, or the item is too large.

        """
        item_id = new.item_id or str(uuid.uuid4())
        category = self._plan.category_of(prompt_text(new.turns[-1:]), new.category)
        model = new.model or voted_model(self._plan, self._routing)
        answers = await self._answers(new, item_id, model, category, authorization)
        added_at = self._clock.now()

        def build(redact: Redact) -> AnnotationItemAdded:
            messages = turns_redacted(new.turns, redact)
            sides = [side(redact) for side in answers]
            size = sum(len(turn.content) for turn in messages)
            size += sum(len(one.completion) for one in sides)
            if size > MAX_ITEM_CHARACTERS:
                raise _too_long(size)
            return AnnotationItemAdded(
                item_id=item_id,
                tenant=tenant,
                model=model,
                kind=new.kind,
                messages=messages,
                answers=tuple(sides),
                raters=new.raters or self._plan.annotation.raters,
                context=Context(category=category),
                guidelines=new.guidelines,
                source=new.source,
                asker=asker,
                added_at=added_at,
            )

        return await redacted(self._redact, build)

    async def _answers(
        self, new: NewItem, item_id: str, model: str, category: str, authorization: str
    ) -> list[Callable[[Redact], Side]]:
        """What makes each answer's side, given how to redact."""
        if new.answers:
            return [
                partial(_given_side, given, given.trace_id or f"{item_id}-{number}")
                for number, given in enumerate(new.answers, 1)
            ]
        request = ComparisonRequest(
            model=model,
            messages=new.turns,
            versions=new.versions,
            metadata={"category": category},
            max_tokens=self._plan.max_tokens,
        )
        if new.kind is AnnotationKind.rating:
            answers = [await self._comparisons.answer(request, authorization)]
        else:
            answers = await self._comparisons.answers(request, authorization)
        return [partial(side_of, answer) for answer in answers]


def _given_side(given: GivenAnswer, trace_id: str, redact: Redact) -> Side:
    return Side(version=given.version, trace_id=trace_id, completion=redact(given.text))


def _too_long(size: int) -> Invalid:
    rule = f"has {size} characters with its answers, at most {MAX_ITEM_CHARACTERS} are kept"
    return invalid([FieldError("messages", rule, "shorten the conversation or the answers")])
