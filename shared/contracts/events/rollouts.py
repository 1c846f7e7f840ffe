"""Events of rollouts: leadership and every decision with its evidence."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import (
    WEIGHT_SCALE,
    Event,
    Identifier,
    ModelName,
    Name,
    OptionalName,
    unless_empty,
)

MAX_HOLDOUT = 500
"""Basis points of the users who may be held out at most."""


class Phase(StrEnum):
    """Phase of a rollout, in Argo Rollouts' words."""

    progressing = "Progressing"
    paused = "Paused"
    healthy = "Healthy"
    degraded = "Degraded"

    @property
    def finished(self) -> bool:
        """True once no decision can follow."""
        return self in (Phase.healthy, Phase.degraded)


class AnalysisOutcome(StrEnum):
    """Outcome of one evaluation by the judge."""

    successful = "Successful"
    failed = "Failed"
    inconclusive = "Inconclusive"
    no_data = "NoData"
    error = "Error"


class DecisionKind(StrEnum):
    """Kind of a rollout decision."""

    stable_set = "stable_set"
    start = "start"
    weight = "weight"
    hold = "hold"
    pause = "pause"
    resume = "resume"
    promote = "promote"
    abort = "abort"
    rollback = "rollback"
    complete = "complete"
    supersede = "supersede"


class LeaderElected(Event):
    """A controller takes the lead; the offset of this record is its token."""

    ce_type: ClassVar[str] = "ratchet.rollout.leader-elected.v1"
    holder: Identifier
    at: AwareDatetime


class Decision(Event):
    """One decision with its evidence, written before it acts. Key: rollout_id.

    A `stable_set` decision belongs to no rollout: its rollout_id is empty and its key is the
    model. It sets the holdout, too. `hold` records are also the heartbeat that keeps the weight
    above 0 (invariant 4); those that change nothing are in a topic of their own.
    """

    ce_type: ClassVar[str] = "ratchet.rollout.decision.v1"
    token: int = Field(ge=0)
    seq: int = Field(ge=0, description="counts the records of this token, from 0")
    kind: DecisionKind
    model: ModelName
    rollout_id: OptionalName
    stable: Name
    candidate: OptionalName = ""
    phase: Phase
    step: int = Field(default=0, ge=0, description="index into the strategy's steps")
    weight_before: int = Field(default=0, ge=0, le=WEIGHT_SCALE)
    weight: int = Field(default=0, ge=0, le=WEIGHT_SCALE)
    shadow: int = Field(
        default=0,
        ge=0,
        le=WEIGHT_SCALE,
        description="share of live requests that the candidate answers unseen",
    )
    outcome: AnalysisOutcome | None = None
    holdout: int = unless_empty(
        0, ge=0, le=MAX_HOLDOUT, description="basis points of the users who stay on the reference"
    )
    holdout_reference: OptionalName = unless_empty("")
    actor: Identifier = Field(description="the controller, or the id of the key that asked")
    on_behalf_of: str = Field(default="", max_length=200, description="whom the actor names")
    reason: str = Field(max_length=2000)
    evidence: dict[str, Any] = Field(default_factory=dict)
    config_sha256: str = ""
    strategy: dict[str, Any] | None = Field(
        default=None, description="the whole strategy, on `start` only"
    )
    at: AwareDatetime

    @property
    def order(self) -> tuple[int, int]:
        """Sorts decisions by age, newest highest, whichever topic they are in."""
        return (self.token, self.seq)

    @property
    def decision_id(self) -> str:
        """Token and number: the record's `ce_id`."""
        return f"{self.token}:{self.seq}"
