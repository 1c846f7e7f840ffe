"""Webhooks of rollouts: what a receiver gets of a transition, and of which."""

from __future__ import annotations

from typing import cast

from services.rollout.webhooks import announce
from shared.contracts.events.rollouts import Decision, DecisionKind, Phase
from shared.http.webhooks import Webhooks
from shared.testing.clock import START
from shared.webhook_message import WebhookMessage


def decision(seq: int = 0, kind: DecisionKind = DecisionKind.weight) -> Decision:
    return Decision(
        token=1,
        seq=seq,
        kind=kind,
        model="m",
        rollout_id="r",
        stable="v1",
        candidate="v2",
        phase=Phase.progressing,
        weight=500,
        actor="controller",
        reason="setWeight 5 %",
        evidence={"judge": {"much": "more"}},
        at=START,
    )


class Posted(list[WebhookMessage]):
    """Keeps what is posted."""

    def post(self, message: WebhookMessage) -> None:
        self.append(message)


def test_a_transition_is_posted_without_its_evidence_and_a_hold_is_not() -> None:
    posted = Posted()
    for one in (decision(kind=DecisionKind.hold), decision(seq=4)):
        announce(cast("Webhooks", posted), one)
    (message,) = posted
    said = message.body()
    assert said.keys() == {"type", "id", "timestamp", "text", "data"}
    assert (message.id, said["id"], said["timestamp"]) == ("1:4", "1:4", START.isoformat())
    assert (said["type"], said["data"]["weight"]) == ("rollout.weight", 500)
    assert said["text"] == "m: v2 went from 0 % to 5 % of the users: setWeight 5 %"
    assert "evidence" not in said["data"]
