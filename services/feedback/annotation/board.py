"""Annotation board: the fold of `annotations.v1` and erasures into items, labels and states. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from services.feedback.voting.annotation_rules import AnnotationRules
from shared.agreement import RaterLabel
from shared.contracts.events.annotations import (
    LABELS,
    AnnotationGiven,
    AnnotationItemAdded,
    AnnotationKind,
    AnnotatorRole,
)
from shared.contracts.events.erasures import ErasureRequested
from shared.contracts.subject import subject_of

MAX_BYTES = 64 * 1024 * 1024
"""JSON of all items beyond which settled ones are forgotten; in memory it is up to four times that."""
SETTLED_KEPT = 2_000
"""Newest settled items of a tenant in memory; agreement is of these and the unsettled ones."""


class ItemState(StrEnum):
    """How far an item is."""

    open = "open"
    """It has fewer labels than it needs."""
    disputed = "disputed"
    """Its raters disagree; an adjudicator decides."""
    settled = "settled"


@dataclass(slots=True)
class AnnotationItem:
    """An item, the first label of each annotator, and what they come to."""

    added: AnnotationItemAdded
    high_stakes: bool
    bytes: int
    """Size of its event in JSON."""
    labels: dict[str, AnnotationGiven] = field(default_factory=dict[str, AnnotationGiven])
    counted: list[AnnotationGiven] = field(default_factory=list[AnnotationGiven])
    """The labels that fill slots: raters', and models' unless the category is high-stakes."""
    outcome: str = ""
    """The label that holds: an adjudicator's, else what the counted ones agree on; else empty."""

    def take(self, given: AnnotationGiven) -> None:
        """Add a label, unless the item is settled or the annotator gave one before."""
        if self.outcome or given.annotator in self.labels:
            return
        self.labels[given.annotator] = given
        is_model = given.role is AnnotatorRole.model
        if given.role is AnnotatorRole.rater or (is_model and not self.high_stakes):
            self.counted.append(given)
        adjudicated = given.role is AnnotatorRole.adjudicator
        self.outcome = given.label if adjudicated else self._agreed()

    @property
    def missing(self) -> int:
        """Labels that it still needs."""
        return max(self.added.raters - len(self.counted), 0)

    @property
    def state(self) -> ItemState:
        """How far the item is."""
        if self.outcome:
            return ItemState.settled
        return ItemState.open if self.missing else ItemState.disputed

    def _agreed(self) -> str:
        """The label on which the counted ones agree; empty where they do not, or are too few.

        All must be equal in a high-stakes category, and more than half of them in any other.
        Ratings that differ by one at most agree: the most frequent holds, the lower one of equally
        frequent ones.
        """
        if self.missing:
            return ""
        found = Counter(sorted(one.label for one in self.counted))
        (label, votes), *_ = found.most_common(1)
        if self.added.kind is AnnotationKind.rating and int(max(found)) - int(min(found)) <= 1:
            return label
        needed = len(self.counted) if self.high_stakes else len(self.counted) // 2 + 1
        return label if votes >= needed else ""


@dataclass(slots=True)
class _TenantItems:
    """A tenant's items in the order in which they were added."""

    items: dict[str, AnnotationItem] = field(default_factory=dict[str, AnnotationItem])
    settled: dict[str, None] = field(default_factory=dict[str, None])
    """Ids of settled items in the order in which they were settled."""
    bytes: int = 0
    """JSON of all of them."""

    def add(self, item: AnnotationItem) -> None:
        self.items[item.added.item_id] = item
        self.bytes += item.bytes

    def drop(self, item_id: str) -> None:
        self.bytes -= self.items.pop(item_id).bytes
        self.settled.pop(item_id, None)


class AnnotationBoard:
    """Each tenant's items that are open or disputed, and its newest settled ones.

    Memory is shared fairly: beyond the limit of all, whoever has more than an equal part of it
    loses settled items and may add none.
    """

    def __init__(
        self,
        rules: AnnotationRules,
        *,
        settled_kept: int = SETTLED_KEPT,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.rules = rules
        self._settled_kept = settled_kept
        self._max_bytes = max_bytes
        self._tenants: defaultdict[str, _TenantItems] = defaultdict(_TenantItems)
        self._erased: set[str] = set()
        """Subjects of all erased people."""

    def apply(self, event: AnnotationItemAdded | AnnotationGiven | ErasureRequested) -> None:
        """Fold one event; a repeat changes nothing, nor does a label that the item cannot have.

        Two replicas may each have added an item under one id, of which the log's first counts
        here: a label of the other may be of another kind.
        """
        match event:
            case AnnotationItemAdded():
                self._add(event)
            case AnnotationGiven():
                self._label(event)
            case ErasureRequested():
                self._erase(event)

    def _add(self, event: AnnotationItemAdded) -> None:
        if self.is_erased(event.tenant, event.asker) or self.get(event.tenant, event.item_id):
            return
        high_stakes = event.context.category in self.rules.high_stakes
        self._tenants[event.tenant].add(AnnotationItem(event, high_stakes, len(event.to_json())))
        self._forget_settled()

    def _label(self, event: AnnotationGiven) -> None:
        item = self.get(event.tenant, event.item_id)
        if item is None or event.label not in LABELS[item.added.kind]:
            return
        item.take(event)
        if item.state is ItemState.settled:
            own = self._tenants[event.tenant]
            own.settled[event.item_id] = None
            if len(own.settled) > self._settled_kept:
                own.drop(next(iter(own.settled)))
            self._forget_settled()

    def _forget_settled(self) -> None:
        """Drop the items that were settled first of who has most, until the rest is within limits."""
        while self._bytes > self._max_bytes:
            of_most = max(
                (own for own in self._tenants.values() if own.settled),
                key=lambda own: own.bytes,
                default=None,
            )
            if of_most is None:
                return
            of_most.drop(next(iter(of_most.settled)))

    def forget_until(self, then: datetime) -> None:
        """Drop all items that were added before a moment, as the log does."""
        self._drop_where(lambda item: item.added.added_at < then)

    def _erase(self, event: ErasureRequested) -> None:
        """Drop what the person asked; no order holds between two topics, so the person is kept."""
        self._erased.update(event.subjects)
        self._drop_where(lambda item: self.is_erased(item.added.tenant, item.added.asker))

    def _drop_where(self, gone: Callable[[AnnotationItem], bool]) -> None:
        for tenant, own in list(self._tenants.items()):
            for item_id in [name for name, item in own.items.items() if gone(item)]:
                own.drop(item_id)
            if not own.items:
                del self._tenants[tenant]

    def is_erased(self, tenant: str, asker: str) -> bool:
        """Whether a person was erased: no prompt of theirs is in the queue from then on."""
        return subject_of(tenant, asker) in self._erased

    def get(self, tenant: str, item_id: str) -> AnnotationItem | None:
        """The tenant's item, or None where it is unknown or was settled too long ago."""
        own = self._tenants.get(tenant)
        return own.items.get(item_id) if own else None

    def items(self, tenant: str) -> Iterator[AnnotationItem]:
        """The tenant's items in the order in which they were added."""
        own = self._tenants.get(tenant)
        return iter(own.items.values() if own else ())

    @property
    def _bytes(self) -> int:
        return sum(own.bytes for own in self._tenants.values())

    def is_full_for(self, tenant: str) -> bool:
        """Whether all items take more memory than they may, and the tenant's more than its part."""
        own = self._tenants.get(tenant)
        if own is None or self._bytes <= self._max_bytes:
            return False
        return own.bytes > self._max_bytes / len(self._tenants)

    def unsettled(self, tenant: str) -> int:
        """The tenant's items that are not settled."""
        own = self._tenants.get(tenant)
        return len(own.items) - len(own.settled) if own else 0

    def wanted_of(self, tenant: str, annotator: str) -> list[AnnotationItem]:
        """Items that this person may label now, in the order in which they should.

        Adjudicators get disputed items first. Then come high-stakes items, then those that lack
        fewest labels, so that what was begun is ended first.
        """
        found = [item for item in self.items(tenant) if self.is_open_to(item, annotator)]
        found.sort(
            key=lambda item: (
                item.state is not ItemState.disputed,
                not item.high_stakes,
                item.missing,
                item.added.added_at,
            )
        )
        return found

    def is_open_to(self, item: AnnotationItem, annotator: str) -> bool:
        """Whether this person may label an item: an open one, or as adjudicator a disputed one."""
        if annotator in item.labels:
            return False
        disputed = item.state is ItemState.disputed
        return item.state is ItemState.open or (disputed and annotator in self.rules.adjudicators)

    def rater_labels(self) -> dict[str, list[RaterLabel]]:
        """What people said as raters, by tenant: no adjudicator, who saw that they disagree."""
        found: defaultdict[str, list[RaterLabel]] = defaultdict(list)
        for tenant, own in self._tenants.items():
            found[tenant] += [
                RaterLabel(f"{tenant}/{item_id}", label.annotator, _opinion(item, label.label))
                for item_id, item in own.items.items()
                for label in item.labels.values()
                if label.role is AnnotatorRole.rater
            ]
        return dict(found)

    def coverage(self, tenant: str) -> dict[str, Counter[str]]:
        """Items by category and state."""
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for item in self.items(tenant):
            found[item.added.context.category][item.state.value] += 1
        return dict(found)


def _opinion(item: AnnotationItem, label: str) -> str:
    """A label as agreement takes it: of ratings only good, between or bad."""
    if item.added.kind is not AnnotationKind.rating:
        return label
    return ("bad", "bad", "between", "good", "good")[int(label) - 1]
