"""Annotation queue: what raters label next, and how a label becomes feedback."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

from services.feedback.annotation.additions import ItemBuilder, NewItem
from services.feedback.annotation.board import AnnotationBoard, AnnotationItem, ItemState
from services.feedback.annotation.leases import AnnotationLeases
from services.feedback.errors import AlreadyVoted, Busy, NotFound, invalid
from services.feedback.publisher import SOURCE, FeedbackPublisher, feedback_record, vote_record
from services.feedback.submissions import read_submission, submitted
from services.feedback.voting.corrections import correction
from services.feedback.voting.invites import Rater
from services.feedback.voting.reserve import NothingToVoteOn
from shared.clock import Clock
from shared.contracts.events.annotations import (
    LABELS,
    AnnotationGiven,
    AnnotationItemAdded,
    AnnotationKind,
    AnnotatorRole,
)
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType
from shared.contracts.events.signals import SignalObserved
from shared.contracts.events.votes import Choice, Side, VoteCast
from shared.contracts.topics import ANNOTATIONS
from shared.errors import FieldError
from shared.kafka.log import NewRecord, event_record
from shared.redaction.detection import Redact, redacted

MAX_UNSETTLED = 5_000
"""Items of a tenant that wait for labels; all are kept in memory by every replica."""
MAX_OFFERS = 50
"""Items whose slots are asked for before a rater is told that others hold them all."""
NAMESPACE = uuid.UUID("5f0f5e0a-3a34-4c64-8a4e-3a1f1d1e9a51")
PACE_WINDOW = timedelta(hours=1)
NOBODY: Mapping[str, str] = MappingProxyType({})
MIRRORED = {Choice.left.value: Choice.right.value, Choice.right.value: Choice.left.value}


@dataclass(frozen=True, slots=True)
class ShownItem:
    """An item as a rater sees it: nothing in it names a version."""

    item: AnnotationItem
    answers: Sequence[Side]
    """As shown: a preference's sides are random per rater."""
    role: AnnotatorRole
    given: Counter[str]
    """An adjudicator's view of the labels in dispute, by what is shown; empty for a rater."""


@dataclass(frozen=True, slots=True)
class QueueProgress:
    """How far the queue is."""

    mine: int
    """Labels of this rater on items that are kept."""
    labelled: int
    needed: int
    """Labels of unsettled items: given and needed in all."""
    disputed: int
    seconds_left: float | None
    """By the pace of the last hour; None where nobody labelled in it."""


class AnnotationQueue:
    """What raters and operators may do; every method may raise a FeedbackError."""

    def __init__(
        self,
        *,
        board: AnnotationBoard,
        leases: AnnotationLeases,
        builder: ItemBuilder,
        publisher: FeedbackPublisher,
        clock: Clock,
        redact: Redact,
    ) -> None:
        self.board = board
        self._leases = leases
        self._builder = builder
        self._publisher = publisher
        self._clock = clock
        self._redact = redact

    async def add(
        self,
        items: Sequence[NewItem],
        *,
        tenant: str,
        authorization: str = "",
        askers: Mapping[str, str] = NOBODY,
    ) -> list[AnnotationItemAdded]:
        """Add all items or none; one whose id is known stays as it is.

        `askers` are the stored user ids of those whose prompts were sampled, by item id.
        """
        fresh = [item for item in items if not self.board.get(tenant, item.item_id)]
        if self.board.unsettled(tenant) + len(fresh) > MAX_UNSETTLED:
            raise Busy(f"{MAX_UNSETTLED} items wait for labels; add more when some are settled")
        if self.board.is_full_for(tenant):
            raise Busy(
                "the items that wait fill the queue's memory; add more when some are settled"
            )
        events = await asyncio.gather(
            *(
                self._builder.build(
                    item,
                    tenant=tenant,
                    authorization=authorization,
                    asker=askers.get(item.item_id, ""),
                )
                for item in fresh
            )
        )
        await self._store(
            [_record(event, f"{event.item_id}:added", event.added_at) for event in events]
        )
        for event in events:
            self.board.apply(event)
        return events

    async def next(self, rater: Rater) -> ShownItem:
        """The item that the rater holds already, else the next one with a free slot.

        Raises:
            NothingToVoteOn: there is none for this rater now.

        """
        wanted = self.board.wanted_of(rater.tenant, rater.user_id)
        skipped = await self._leases.skipped(rater)
        held = await self._leases.held(rater)
        # Sorting is stable: what is held comes first, the rest stays in its order.
        offers = [item for item in wanted if _slot(item) not in skipped]
        offers.sort(key=lambda item: _slot(item) != held)
        for item in offers[:MAX_OFFERS]:
            if await self._take(rater, item):
                return _shown(item, rater)
        if offers:
            raise NothingToVoteOn(
                "others are labelling all that is left; look again in some minutes"
            )
        raise NothingToVoteOn("nothing waits for your label; look again later")

    async def label(
        self,
        rater: Rater,
        item_id: str,
        label: str,
        corrections: Sequence[str | None] = (),
        *,
        turned: bool | None = None,
    ) -> AnnotationGiven:
        """Store a rater's label, as shown to the rater, and what it says as feedback.

        A repeat of the same label counts once.

        Args:
            rater: who labels.
            item_id: the item.
            label: one of its kind's, by the sides shown.
            corrections: better texts of the answers in the order shown.
            turned: whether another tool showed the second answer on the left; None is this page.

        """
        item = self.board.get(rater.tenant, item_id)
        if item is None:
            raise NotFound("there is no such item, or it was settled long ago; take the next one")
        shown = _shown(item, rater, turned)
        _check_label(item.added.kind, label)
        true_label = _mirrored(label) if shown.answers != item.added.answers else label
        before = item.labels.get(rater.user_id)
        if before is not None:
            if before.label == true_label:
                return before
            raise AlreadyVoted("this item has your label already; take the next one")
        if not (self.board.is_open_to(item, rater.user_id) and await self._take(rater, item)):
            raise AlreadyVoted(
                "your time for this item is over and others labelled it; take the next one"
            )
        now = self._clock.now()
        given = AnnotationGiven(
            item_id=item_id,
            tenant=rater.tenant,
            annotator=rater.user_id,
            role=shown.role,
            label=true_label,
            feedback_id=_feedback_id(item, rater),
            given_at=now,
        )
        feedback = await redacted(
            self._redact,
            lambda redact: [
                self._feedback_of(shown, rater, label, given, redact),
                *self._corrections(shown, rater, corrections, now, redact),
            ],
        )
        # Feedback first: a process that dies between the two frees the slot, and the label given
        # again is the same feedback.
        slot = _slot(item)
        await self._store(feedback)
        await self._store_label(given)
        await self._leases.fill(rater, slot)
        return given

    async def label_by_model(
        self, tenant: str, item_id: str, *, model: str, label: str
    ) -> AnnotationGiven:
        """Store a program's label: no feedback, and no slot of a high-stakes item."""
        item = self.board.get(tenant, item_id)
        if item is None:
            raise NotFound(f"no item {item_id}; ratchet annotations list shows them")
        _check_label(item.added.kind, label)
        if before := item.labels.get(model):
            return before
        given = AnnotationGiven(
            item_id=item_id,
            tenant=tenant,
            annotator=model,
            role=AnnotatorRole.model,
            label=label,
            given_at=self._clock.now(),
        )
        await self._store_label(given)
        return given

    async def skip(self, rater: Rater, item_id: str) -> None:
        """Free the rater's slot; the item is not offered to them for a day."""
        if item := self.board.get(rater.tenant, item_id):
            await self._leases.skip(rater, _slot(item))

    def progress(self, tenant: str, annotator: str = "") -> QueueProgress:
        """How far the tenant's queue is."""
        items = list(self.board.items(tenant))
        unsettled = [item for item in items if item.state is not ItemState.settled]
        disputed = sum(item.state is ItemState.disputed for item in unsettled)
        since = self._clock.now() - PACE_WINDOW
        labels = [label for item in items for label in item.labels.values()]
        recent = sum(
            label.given_at >= since and label.role is not AnnotatorRole.model for label in labels
        )
        missing = sum(item.missing for item in unsettled) + disputed
        return QueueProgress(
            mine=sum(label.annotator == annotator for label in labels),
            labelled=sum(len(item.counted) for item in unsettled),
            needed=sum(item.added.raters for item in unsettled),
            disputed=disputed,
            seconds_left=missing * PACE_WINDOW.total_seconds() / recent if recent else None,
        )

    async def _take(self, rater: Rater, item: AnnotationItem) -> bool:
        if item.state is ItemState.disputed:
            slots, labelled = 1, list[str]()
        else:
            slots, labelled = item.added.raters, [label.annotator for label in item.counted]
        return await self._leases.take(rater, _slot(item), slots=slots, labelled=labelled)

    def _feedback_of(
        self,
        shown: ShownItem,
        rater: Rater,
        label: str,
        given: AnnotationGiven,
        redact: Redact,
    ) -> NewRecord:
        """The label as an ordinary vote or rating."""
        added = shown.item.added
        labels = {
            "vote_source": "annotation",
            "annotation_item": added.item_id,
            "annotation_role": given.role.value,
        }
        if added.kind is AnnotationKind.preference:
            left, right = shown.answers
            vote = VoteCast(
                comparison_id=given.feedback_id,
                tenant=rater.tenant,
                model=added.model,
                messages=added.messages,
                left=left,
                right=right,
                choice=Choice(label),
                user_id=rater.user_id,
                asker=added.asker,
                context=added.context.model_copy(update={"labels": {**labels, "vote_side": label}}),
                submitted_at=given.given_at,
            )
            return vote_record(vote)
        submission = read_submission(
            {
                "feedback_id": given.feedback_id,
                "trace_id": shown.answers[0].trace_id,
                "type": FeedbackType.rating.value,
                "value": int(label),
                "user_id": rater.user_id,
                "metadata": {"category": added.context.category, **labels},
            }
        )
        rated = submitted(submission, tenant=rater.tenant, at=given.given_at, redact=redact)
        return feedback_record(_asked_by(added.asker, rated))

    def _corrections(
        self,
        shown: ShownItem,
        rater: Rater,
        corrected: Sequence[str | None],
        at: datetime,
        redact: Redact,
    ) -> list[NewRecord]:
        """Corrections of the answers whose text was changed."""
        added = shown.item.added
        return [
            feedback_record(
                _asked_by(
                    added.asker,
                    correction(
                        answer,
                        text,
                        rater,
                        category=added.context.category,
                        source="annotation",
                        at=at,
                        redact=redact,
                    ),
                )
            )
            for answer, text in zip(shown.answers, corrected, strict=False)
            if text is not None and text.strip() and text != answer.completion
        ]

    async def _store_label(self, given: AnnotationGiven) -> None:
        await self._store([_record(given, f"{given.item_id}:{given.annotator}", given.given_at)])
        self.board.apply(given)

    async def _store(self, records: Sequence[NewRecord]) -> None:
        if records:
            for refused in (await self._publisher.store_batch(records)).values():
                raise refused


def _shown(item: AnnotationItem, rater: Rater, turned: bool | None = None) -> ShownItem:
    """The item as this rater sees it, the same way each time."""
    answers = item.added.answers
    if turned is None:
        turned = uuid.UUID(_feedback_id(item, rater)).int % 2 == 1
    turned = turned and len(answers) > 1
    given: Counter[str] = Counter()
    role = AnnotatorRole.rater
    if item.state is ItemState.disputed:
        role = AnnotatorRole.adjudicator
        given = Counter(_mirrored(label.label) if turned else label.label for label in item.counted)
    return ShownItem(item, answers[::-1] if turned else answers, role, given)


def _slot(item: AnnotationItem) -> str:
    """The name of an item's slots: raters' and the adjudicator's are apart."""
    adjudicated = item.state is ItemState.disputed
    return f"{item.added.item_id}:adjudication" if adjudicated else item.added.item_id


def _asked_by(
    asker: str, event: FeedbackSubmitted | SignalObserved
) -> FeedbackSubmitted | SignalObserved:
    """Feedback with the person whose prompt it is on: an erasure finds it when the item is gone."""
    if asker and isinstance(event, FeedbackSubmitted):
        return event.model_copy(update={"asker": asker})
    return event


def _mirrored(label: str) -> str:
    return MIRRORED.get(label, label)


def _feedback_id(item: AnnotationItem, rater: Rater) -> str:
    """The same rater's label of an item is the same feedback, however often it is sent."""
    parts = (rater.tenant, item.added.item_id, rater.user_id)
    # Where a part has the separator, another split would have the same name. No part has NUL.
    separator = "\0" if any("/" in part for part in parts) else "/"
    return str(uuid.uuid5(NAMESPACE, separator.join(parts)))


def _check_label(kind: AnnotationKind, label: str) -> None:
    allowed = LABELS[kind]
    if label not in allowed:
        rule = f"is not one of the labels of a {kind.value}"
        raise invalid([FieldError("label", rule, f"send {', '.join(allowed)}")])


def _record(event: AnnotationItemAdded | AnnotationGiven, event_id: str, at: datetime) -> NewRecord:
    return event_record(
        ANNOTATIONS, event, key=event.item_id, source=SOURCE, event_id=event_id, time=at
    )
