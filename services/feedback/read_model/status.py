"""Status of one feedback: what became of it, as far as the topics say. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

import orjson
from pydantic import AwareDatetime, BaseModel, SerializeAsAny, SkipValidation

from services.feedback.read_model.changes import VOTE
from services.feedback.read_model.listing import window_starts
from services.feedback.read_model.queries import FoundFeedback, FoundProduct, FoundRevision
from shared.contracts.events.feedback import Correction, FeedbackSubmitted, Preference
from shared.contracts.events.quality import ExampleJoined
from shared.contracts.events.signals import SignalObserved
from shared.contracts.events.versions import VersionRecord
from shared.contracts.topics import PREFERENCES
from shared.rater_marks import Suspicion
from shared.registry.versions import Registry

HORIZON = timedelta(days=30)
"""How long feedback waits for its interaction (design section 8)."""
JOINED_WITHIN = timedelta(minutes=10)
"""After that, feedback that is not in its joined row was refused there."""


class FeedbackState(StrEnum):
    """What became of a feedback."""

    waiting = "waiting"
    processing = "processing"
    counted = "counted"
    withdrawn = "withdrawn"
    unjoined = "unjoined"
    not_counted = "not_counted"


_REASONS = {
    FeedbackState.waiting: "its interaction was not joined yet: it did not arrive, or the "
    "aggregator is behind; it counts as soon as it is, within 30 days",
    FeedbackState.processing: "stored; the aggregator has not joined it yet",
    FeedbackState.counted: "it counts for the version and the windows below",
    FeedbackState.withdrawn: "withdrawn; it counts in no figure and no training data",
    FeedbackState.unjoined: "no interaction came for its trace_id within 30 days; it counts under "
    "version unjoined",
    FeedbackState.not_counted: "the aggregator refused it: it conflicts with another revision, or "
    "its trace was full; `ratchet dead-letters list` says which",
}
_ANONYMOUS = "; without a user_id it is in the figures only, and neither judges nor teaches"


class RevisionStatus(BaseModel):
    """One revision as it was received; `counts` is true for the one that counts now."""

    revision: int
    received_at: AwareDatetime
    type: str
    value: SerializeAsAny[SkipValidation[int | float | Correction | Preference | str | None]] = None
    """By type, as in a submission; of a vote the choice."""
    withdrawn: bool
    counts: bool


class CountedFor(BaseModel):
    """Where a feedback counts. `windows` are the starts of its interaction's quality windows."""

    model: str
    version: str
    windows: dict[str, AwareDatetime]
    satisfaction: float | None
    """What a signal only implies, for a signal."""


class ReadBy(BaseModel):
    """A version whose dataset was read beyond this product; the dataset's rules may leave it out."""

    version: str
    dataset_id: str


class ProductStatus(BaseModel):
    """A preference pair or an unpaired example that was made of the feedback."""

    pair_id: str
    kind: Literal["pair", "unpaired"]
    source: str
    label: bool | None
    panel: str
    created_at: AwareDatetime
    retracted_at: AwareDatetime | None
    retracted_reason: str | None
    suspicion: Literal["", "burst", "position_bias", "outlier_rater"]
    """Why anti-abuse leaves it out of datasets; empty where it does not."""
    read_by: list[ReadBy]


class FeedbackStatus(BaseModel):
    """A feedback, its revisions and what became of it."""

    feedback_id: str
    trace_id: str
    type: str
    user_id: str
    state: FeedbackState
    reason: str
    counted: CountedFor | None
    revisions: list[RevisionStatus]
    products: list[ProductStatus]


def status_of(
    feedback_id: str, trace_id: str, found: FoundFeedback, registry: Registry, now: datetime
) -> FeedbackStatus:
    """The status of the feedback of one trace; `found.revisions` has at least one of it."""
    revisions = [one for one in found.revisions if one.trace_id == trace_id]
    newest = revisions[-1]
    joined = found.examples.get(trace_id)
    example = ExampleJoined.model_validate_json(joined) if joined is not None else None
    counting = _counting(example, feedback_id)
    vote = any(one.type == VOTE for one in revisions)
    if vote:
        state = FeedbackState.withdrawn if newest.withdrawn else FeedbackState.counted
    else:
        state = _state(revisions, example, counting, now)
    bodies = [orjson.loads(one.body) for one in revisions]
    reason = _REASONS[state]
    if vote and not newest.withdrawn:
        reason = "the vote counts; a pair is made of it where it has a winner and a rater"
    elif state is not FeedbackState.withdrawn and bodies[-1].get("anonymous"):
        reason += _ANONYMOUS
    return FeedbackStatus(
        feedback_id=feedback_id,
        trace_id=trace_id,
        type=VOTE if vote else _type_of(revisions),
        user_id=bodies[-1].get("user_id", ""),
        state=state,
        reason=reason,
        counted=_counted_for(example, counting),
        revisions=[
            _revision(
                one,
                body,
                (one is newest and not one.withdrawn) if vote else _is(one, counting),
            )
            for one, body in zip(revisions, bodies, strict=True)
        ],
        products=list(_products(found.products, "" if vote else trace_id, registry)),
    )


def _type_of(revisions: list[FoundRevision]) -> str:
    """Type of the newest submission: a withdrawal may name another that shares the default id."""
    submitted = [one for one in revisions if not one.withdrawn]
    return (submitted or revisions)[-1].type


def _counting(
    example: ExampleJoined | None, feedback_id: str
) -> FeedbackSubmitted | SignalObserved | None:
    if example is None:
        return None
    joined = (*example.feedback, *example.signals)
    return next((one for one in joined if one.feedback_id == feedback_id), None)


def _state(
    revisions: list[FoundRevision],
    example: ExampleJoined | None,
    counting: FeedbackSubmitted | SignalObserved | None,
    now: datetime,
) -> FeedbackState:
    if counting is not None:
        return FeedbackState.counted
    newest = _moment(revisions[-1].received_us)
    if example is None:
        if revisions[-1].withdrawn:
            return FeedbackState.withdrawn
        old = newest + HORIZON < now
        return FeedbackState.unjoined if old else FeedbackState.waiting
    if any(one.withdrawn for one in revisions):
        return FeedbackState.withdrawn
    refused = newest + JOINED_WITHIN < now
    return FeedbackState.not_counted if refused else FeedbackState.processing


def _is(found: FoundRevision, counting: FeedbackSubmitted | SignalObserved | None) -> bool:
    return (
        counting is not None
        and not found.withdrawn
        and found.revision == counting.revision
        and _moment(found.received_us) == counting.submitted_at
    )


def _revision(found: FoundRevision, body: dict[str, Any], counts: bool) -> RevisionStatus:
    return RevisionStatus(
        revision=found.revision,
        received_at=_moment(found.received_us),
        type=found.type,
        value=body.get("choice") if found.type == VOTE else body.get("value"),
        withdrawn=found.withdrawn,
        counts=counts,
    )


def _counted_for(
    example: ExampleJoined | None, counting: FeedbackSubmitted | SignalObserved | None
) -> CountedFor | None:
    if example is None or counting is None:
        return None
    return CountedFor(
        model=example.model,
        version=example.version,
        windows=window_starts(example.started_at),
        satisfaction=counting.score,
    )


def _products(
    found: Iterable[FoundProduct], trace_id: str, registry: Registry
) -> Iterable[ProductStatus]:
    """Products of the trace's feedback; of other traces' feedback under the same id are none."""
    for one in found:
        body = orjson.loads(one.body)
        traces = body.get("traces") or [trace_id]
        if trace_id and trace_id not in traces:
            continue
        yield ProductStatus(
            pair_id=one.name,
            kind="unpaired" if "label" in body else "pair",
            source=body.get("source", "thumb"),
            label=body.get("label"),
            panel=body.get("panel", ""),
            created_at=body["created_at"],
            retracted_at=_moment(one.retracted_us) if one.retracted_us is not None else None,
            retracted_reason=one.retracted_reason,
            suspicion=Suspicion(one.suspicion).value if one.suspicion else "",
            read_by=list(_read_by(one, body["model"], registry)),
        )


def _read_by(found: FoundProduct, model: str, registry: Registry) -> Iterable[ReadBy]:
    """Versions whose dataset covers the product's record and not its retraction."""
    for version in registry.versions(model):
        if not isinstance(version.record, VersionRecord):
            continue
        dataset = version.record.dataset
        end = dataset.offsets.get(f"{PREFERENCES}/{found.partition}", 0)
        taken_back = found.retracted_offset is not None and found.retracted_offset < end
        if found.offset < end and not taken_back:
            yield ReadBy(version=version.record.version, dataset_id=dataset.dataset_id)


def _moment(at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).replace(microsecond=at_us % 1_000_000)
