"""Annotation leases in memory, and items for the queue."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from services.feedback.voting.invites import Rater
from shared.clock import Clock
from shared.contracts.events.annotations import (
    AnnotationGiven,
    AnnotationItemAdded,
    AnnotationKind,
    AnnotatorRole,
)
from shared.contracts.events.base import Context, Message
from shared.contracts.events.erasures import ErasureRequested
from shared.contracts.events.votes import Side
from shared.contracts.subject import subject_of

EPOCH = datetime(2026, 11, 1, tzinfo=UTC)


class MemoryLeases:
    """AnnotationLeases in dicts."""

    def __init__(self, clock: Clock, lease: timedelta) -> None:
        self._clock = clock
        self._lease = lease
        self.until: dict[tuple[str, str], dict[str, datetime | None]] = {}
        """End of each rater's lease by tenant and item; None where the slot is filled."""
        self._held: dict[Rater, str] = {}
        self._skipped: dict[Rater, set[str]] = {}

    async def take(
        self, rater: Rater, item_id: str, *, slots: int, labelled: Collection[str]
    ) -> bool:
        now = self._clock.now()
        held = self.until.setdefault((rater.tenant, item_id), {})
        for name, until in list(held.items()):
            if until is not None and until <= now:
                del held[name]
        if rater.user_id in held:
            if held[rater.user_id] is None:
                return False
        elif len({*held, *labelled}) >= slots:
            return False
        held[rater.user_id] = now + self._lease
        self._held[rater] = item_id
        return True

    async def fill(self, rater: Rater, item_id: str) -> None:
        self.until.setdefault((rater.tenant, item_id), {})[rater.user_id] = None
        self._held.pop(rater, None)

    async def held(self, rater: Rater) -> str | None:
        return self._held.get(rater)

    async def skip(self, rater: Rater, item_id: str) -> None:
        self.until.get((rater.tenant, item_id), {}).pop(rater.user_id, None)
        self._held.pop(rater, None)
        self._skipped.setdefault(rater, set()).add(item_id)

    async def skipped(self, rater: Rater) -> set[str]:
        return self._skipped.get(rater, set())


def item(
    item_id: str = "i1",
    *,
    category: str = "factual_qa",
    raters: int = 3,
    kind: AnnotationKind = AnnotationKind.preference,
    at: datetime = EPOCH,
) -> AnnotationItemAdded:
    """An item with made-up answers."""
    answers = [
        Side(version=f"assistant-v1.{number}", trace_id=f"{item_id}-{number}", completion=text)
        for number, text in enumerate(("Paris.", "London."))
    ]
    return AnnotationItemAdded(
        item_id=item_id,
        tenant="default",
        model="assistant",
        kind=kind,
        messages=(Message(role="user", content="What is the capital of France?"),),
        answers=tuple(answers if kind is AnnotationKind.preference else answers[:1]),
        raters=raters,
        context=Context(category=category),
        added_at=at,
    )


def given(
    annotator: str,
    label: str,
    item_id: str = "i1",
    *,
    role: AnnotatorRole = AnnotatorRole.rater,
    at: datetime = EPOCH,
) -> AnnotationGiven:
    """One label."""
    return AnnotationGiven(
        item_id=item_id,
        tenant="default",
        annotator=annotator,
        role=role,
        label=label,
        given_at=at,
    )


def erasure(asker: str) -> ErasureRequested:
    """The erasure of a person."""
    return ErasureRequested(
        erasure_id="e1",
        tenant="default",
        subjects=(subject_of("default", asker),),
        actor="key-1",
        requested_at=EPOCH,
    )
