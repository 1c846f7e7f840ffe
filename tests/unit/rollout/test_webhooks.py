"""Webhooks of rollouts: what a receiver gets of a transition, and of which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from services.rollout.webhooks import announce
from shared.contracts.events.rollouts import Decision, DecisionKind, Phase
from shared.http.webhooks import Webhooks
from shared.testing.clock import START


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


class Posted(list[tuple[str, Mapping[str, Any]]]):
    """Keeps what is posted."""

    def post(self, delivery_id: str, payload: Mapping[str, Any]) -> None:
        self.append((delivery_id, payload))


def test_a_transition_is_posted_without_its_evidence_and_a_hold_is_not() -> None:
    posted = Posted()
    for one in (decision(kind=DecisionKind.hold), decision(seq=4)):
        announce(cast("Webhooks", posted), one)
    ((delivery_id, said),) = posted
    assert (delivery_id, said["id"]) == ("1:4", "1:4")
    assert (said["type"], said["data"]["weight"]) == ("rollout.weight", 500)
    assert "v2 went from 0 % to 5 %" in said["sentence"]
    assert "evidence" not in said["data"]
