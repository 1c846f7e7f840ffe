"""Revisions of one feedback: which of them counts, in whichever order they come.

Revisions have two orders: those that a product numbered, of which the highest counts and the first
body of a number, and those ordered by receipt, of which the last received counts. Of the two that
are left, the one received later counts. Each order keeps its best revision.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.aggregator.rows import FeedbackEntry, Revised
from shared.contracts.events.feedback import (
    RATINGS,
    FeedbackSubmitted,
    FeedbackType,
    FeedbackWithdrawn,
)
from shared.contracts.events.signals import SignalObserved
from shared.contracts.feedback_id import default_feedback_id

VOTE = "vote"
_NOT_BODY = frozenset({"submitted_at"})
"""What may differ between two sendings of one revision: when the service received it."""


def may_follow(kind: str, event: FeedbackSubmitted | SignalObserved | FeedbackWithdrawn) -> bool:
    """Whether feedback of a type may get this revision.

    Thumbs and ratings share a default id; a vote is withdrawn as the preference it is.
    """
    if event.type == kind:
        return True
    if isinstance(event, SignalObserved):
        return False
    if kind == VOTE:
        return isinstance(event, FeedbackWithdrawn) and event.type is FeedbackType.preference
    place = (event.tenant, event.trace_id, event.user_id)
    return (
        event.type in RATINGS
        and kind in RATINGS
        and event.feedback_id == default_feedback_id(*place, event.type)
    )


def revised(
    old: FeedbackEntry | None, new: Revised, kind: str, ts_ms: int
) -> tuple[str, FeedbackEntry]:
    """What a revision is to an entry, and the entry after it.

    The outcome is accepted, edited, withdrawn, duplicate, conflict or stale. Where it is one of the
    last three, the entry at most remembers the revision.
    """
    if old is None:
        entry = FeedbackEntry(
            new.revision, kind, new.body, new.received_s, ts_ms, seen=False,
            received_s=new.received_s, by_receipt=new.by_receipt,
        )  # fmt: skip
        return ("withdrawn" if new.body is None else "accepted"), entry
    present = old.present
    same_order, other = (
        (present, old.rival) if present.by_receipt == new.by_receipt else (old.rival, present)
    )
    if same_order is not None and (outcome := _not_above(same_order, new)):
        return outcome, old
    if other is None or _counts_before(other, new):
        best, rival = new, other
    else:
        best, rival = other, new
    if best is present:
        return "stale", replace(old, rival=rival)
    changed = replace(
        old, revision=best.revision, received_s=best.received_s, by_receipt=best.by_receipt,
        edition=old.number, body=best.body, rival=rival,
    )  # fmt: skip
    if best.by_receipt and present.by_receipt and _same_body(present.body, best.body):
        return "duplicate", changed
    edition = old.number + 1 if best.by_receipt else max(old.number + 1, best.revision)
    entry = replace(changed, edition=edition, ts_ms=ts_ms, figures=(), products=[])
    return ("withdrawn" if best.body is None else "edited"), entry


def _not_above(best: Revised, new: Revised) -> str:
    """Why a revision is not above the best of its order; empty where it is."""
    one, other = (
        (best.received_s, new.received_s) if new.by_receipt else (best.revision, new.revision)
    )
    if other > one:
        return ""
    if other < one:
        return "stale"
    return "duplicate" if _same_body(best.body, new.body) else "conflict"


def _counts_before(one: Revised, other: Revised) -> bool:
    """Whether the second of two revisions of different orders counts; at one time, by receipt."""
    if one.received_s == other.received_s:
        return other.by_receipt
    return one.received_s < other.received_s


def _same_body(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    if one is None or other is None:
        return one is other
    return _body(one) == _body(other)


def _body(stored: dict[str, Any]) -> dict[str, Any]:
    """What says the same in two sendings; a field younger than a stored body is at its default."""
    return {
        key: value
        for key, value in stored.items()
        if key not in _NOT_BODY and value is not None and value is not False
    }
