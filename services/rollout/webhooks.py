"""Webhooks of rollouts: what a receiver gets of each transition."""

from __future__ import annotations

from services.rollout.views import sentence
from shared.contracts.events.rollouts import Decision, DecisionKind
from shared.http.webhooks import Webhooks
from shared.webhook_message import WebhookMessage


def announce(webhooks: Webhooks, decision: Decision) -> None:
    """Have a transition delivered; a hold is none."""
    if decision.kind is not DecisionKind.hold:
        webhooks.post(message_of(decision))


def message_of(decision: Decision) -> WebhookMessage:
    """What a receiver gets: the transition without its evidence, which the API has."""
    return WebhookMessage(
        type=f"rollout.{decision.kind.value}",
        id=decision.decision_id,
        at=decision.at,
        text=f"{decision.model}: {sentence(decision)}",
        data=decision.model_dump(mode="json", exclude={"evidence", "strategy"}),
    )
