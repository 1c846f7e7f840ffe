"""Foreign answers: the interaction that feedback with a `source` brings along. Pure."""

from __future__ import annotations

from shared.contracts.events.base import Message
from shared.contracts.events.feedback import FeedbackSubmitted
from shared.contracts.events.interactions import Arm, InteractionRecorded, Outcome, Purpose

API = "import"
"""Value of an interaction's `api` where no API of a router was asked."""


def foreign_interaction(event: FeedbackSubmitted) -> InteractionRecorded:
    """What was asked and answered elsewhere, outside all figures of traffic.

    It is dated by its receipt: the log's own time may lie beyond the join's horizon.
    """
    labels = {**event.context.labels, "source": event.source}
    return InteractionRecorded(
        trace_id=event.trace_id,
        tenant=event.tenant,
        model=event.model,
        version=event.version or event.source,
        arm=Arm.none,
        rollout="",
        purpose=Purpose.evaluation,
        user_id=event.user_id,
        context=event.context.model_copy(update={"labels": labels}),
        endpoint="chat",
        api=API,
        stream=False,
        messages=(Message(role="user", content=event.prompt),),
        completion=event.completion,
        outcome=Outcome.ok,
        attempts=(),
        started_at=event.submitted_at,
        duration_ms=0.0,
    )
