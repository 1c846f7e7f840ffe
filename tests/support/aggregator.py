"""Events for the aggregator's tests, and a recount of the log that shares no code with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from services.aggregator.codec import SourceRecord
from shared.contracts.events.base import Context, Event, Message
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType, FeedbackWithdrawn
from shared.contracts.events.interactions import Arm, Attempt, InteractionRecorded, Outcome, Purpose
from shared.contracts.events.signals import SignalObserved, SignalType
from shared.contracts.events.votes import Choice, Side, VoteCast
from shared.kafka.envelope import encode

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
UP, DOWN = FeedbackType.thumbs_up, FeedbackType.thumbs_down


def at(seconds: float) -> datetime:
    """A moment of the tests' own time."""
    return START + timedelta(seconds=seconds)


def source_record(
    topic: str,
    partition: int,
    offset: int,
    event: Event,
    *,
    key: str = "",
    traceparent: str = "",
) -> SourceRecord:
    """An event as it is fetched from its topic."""
    headers = encode(event, source="/test", event_id="test", time=at(0), traceparent=traceparent)
    value = event.to_json()
    return SourceRecord(
        topic, partition, offset, timestamp=0, timestamp_type=0, key=key.encode(), value=value,
        checksum=None, serialized_key_size=len(key), serialized_value_size=len(value),
        headers=headers,
    )  # fmt: skip


def interaction(
    trace: str = "t1",
    *,
    tenant: str = "acme",
    version: str = "assistant-v1.0",
    arm: str = "stable",
    rollout: str = "r1",
    purpose: Purpose = Purpose.live,
    user: str = "",
    prompt: str = "How do I return a parcel?",
    completion: str = "Print the label from your account page.",
    outcome: Outcome = Outcome.ok,
    finish_reason: str = "",
    seconds: float = 0.0,
    context: Context | None = None,
    **more: Any,
) -> InteractionRecorded:
    """An interaction; `more` are fields that take the place of those made here."""
    made = InteractionRecorded(
        trace_id=trace,
        tenant=tenant,
        model="assistant",
        version=version,
        arm=Arm(arm),
        rollout=rollout,
        purpose=purpose,
        user_id=user,
        context=context or Context(category="explanation"),
        endpoint="chat",
        stream=False,
        messages=(Message(role="user", content=prompt),),
        completion=completion,
        finish_reason=finish_reason,
        outcome=outcome,
        attempts=(
            Attempt(version=version, arm=Arm(arm), outcome=outcome, status=200, duration_ms=80.0),
        ),
        started_at=at(seconds),
        duration_ms=80.0,
    )
    return made.model_copy(update=more)


def feedback(
    feedback_id: str = "f1",
    trace: str = "t1",
    kind: FeedbackType = UP,
    value: object = None,
    *,
    tenant: str = "acme",
    revision: int = 0,
    user: str = "u1",
    seconds: float = 1.0,
    anonymous: bool = False,
) -> FeedbackSubmitted:
    return FeedbackSubmitted.model_validate(
        {
            "feedback_id": feedback_id,
            "revision": revision,
            "trace_id": trace,
            "tenant": tenant,
            "type": kind,
            "value": value,
            "user_id": user,
            "submitted_at": at(seconds),
            "anonymous": anonymous,
        }
    )


def signal(
    kind: SignalType = SignalType.copy,
    trace: str = "t1",
    *,
    tenant: str = "acme",
    name: str = "",
    value: float | None = None,
    dissatisfied: bool | None = None,
    user: str = "u1",
    seconds: float = 1.0,
    revision: int = 0,
) -> SignalObserved:
    """A signal; its id is its type's unless named."""
    return SignalObserved(
        feedback_id=name or kind.value,
        revision=revision,
        trace_id=trace,
        tenant=tenant,
        type=kind,
        value=value,
        dissatisfied=dissatisfied,
        user_id=user,
        submitted_at=at(seconds),
        anonymous=not user,
    )


def withdrawn(
    feedback_id: str = "f1",
    trace: str = "t1",
    kind: FeedbackType = UP,
    *,
    tenant: str = "acme",
    revision: int = 1,
    seconds: float = 5.0,
) -> FeedbackWithdrawn:
    return FeedbackWithdrawn(
        feedback_id=feedback_id,
        revision=revision,
        trace_id=trace,
        tenant=tenant,
        type=kind,
        submitted_at=at(seconds),
    )


def vote(
    comparison: str = "c1",
    choice: Choice = Choice.left,
    *,
    revision: int = 0,
    tenant: str = "acme",
    panel: str = "",
    user: str = "u1",
    left: str = "A clear and friendly answer.",
    left_cut: bool = False,
    right: str = "No.",
    anonymous: bool = False,
) -> VoteCast:
    return VoteCast.model_validate(
        {
            "comparison_id": comparison,
            "revision": revision,
            "tenant": tenant,
            "model": "assistant",
            "messages": [Message(role="user", content="Where is my parcel?")],
            "left": Side(
                version="assistant-v1.1",
                trace_id=f"{comparison}-l",
                completion=left,
                cut=left_cut,
            ),
            "right": Side(version="assistant-v1.0", trace_id=f"{comparison}-r", completion=right),
            "choice": choice,
            "user_id": user,
            "context": Context(category="creative"),
            "panel": panel,
            "submitted_at": at(2.0),
            "anonymous": anonymous,
        }
    )


def key_of(event: Event) -> str:
    """The key an event travels under."""
    return event.comparison_id if isinstance(event, VoteCast) else event.trace_id  # type: ignore[attr-defined]


@dataclass
class FeedbackRecount:
    """Counts from raw records alone, as an auditor would take them."""

    feedback: Counter[tuple[str, str]] = field(default_factory=Counter)
    scores: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    score_sum: float = 0.0
    interactions: int = 0

    @classmethod
    def of(cls, interactions: Iterable[bytes], feedback: Iterable[bytes]) -> FeedbackRecount:
        """Count each (tenant, trace, feedback id) that has an interaction once."""
        counts = cls()
        known: dict[tuple[str, str], dict[str, str]] = {}
        for raw in interactions:
            item = json.loads(raw)
            known.setdefault((item["tenant"], item["trace_id"]), item)
        counts.interactions = len(known)
        seen: set[tuple[str, str, str]] = set()
        capped: Counter[tuple[str, str, str, str]] = Counter()
        scored: set[tuple[str, str]] = set()
        for raw in feedback:
            item = json.loads(raw)
            if "comparison_id" in item:
                continue
            place = (item["tenant"], item["trace_id"])
            name = (*place, item["feedback_id"])
            origin = known.get(place)
            if origin is None or name in seen or "context" not in item:
                continue
            seen.add(name)
            counts.feedback[origin["version"], item["type"]] += 1
            score = {"thumbs_up": 1.0, "thumbs_down": 0.0, "text_correction": 0.0}.get(item["type"])
            if item["type"] == "rating":
                score = (item["value"] - 1) / 4
            if score is None or place in scored or origin["purpose"] != "live":
                continue
            scored.add(place)
            user = item["user_id"] or origin["user_id"] or item["trace_id"]
            day = item["submitted_at"][:10]
            cap = (item["tenant"], user, origin["rollout"], day)
            capped[cap] += 1
            if capped[cap] <= 3:
                counts.scores[origin["version"], origin["arm"], origin["rollout"]] += 1
                counts.score_sum += score
        return counts
