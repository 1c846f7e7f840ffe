"""Webhooks of rollouts: what a receiver gets of each transition."""

from __future__ import annotations

from typing import Any

from services.rollout.views import sentence
from shared.contracts.events.rollouts import Decision, DecisionKind
from shared.http.webhooks import Webhooks


def announce(webhooks: Webhooks, decision: Decision) -> None:
    """Have a transition delivered; a hold is none."""
    if decision.kind is not DecisionKind.hold:
        webhooks.post(decision.decision_id, payload(decision))


def payload(decision: Decision) -> dict[str, Any]:
    """What a receiver gets: the transition without its evidence, which the API has."""
    shown = decision.model_dump(mode="json", exclude={"evidence", "strategy"})
    return {
        "type": f"rollout.{decision.kind.value}",
        "id": decision.decision_id,
        "sentence": sentence(decision),
        "data": shown,
    }
