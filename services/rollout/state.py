"""State of one rollout, what an observation gives, and the transition that follows. Pure data."""

# pyright: strict
from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from services.rollout.counts import ArmCounts
from services.rollout.shadow import ShadowResult, ShadowTally
from services.rollout.strategy import Shadow, Strategy
from services.rollout.verdict import Verdict
from shared.contracts.events.rollouts import AnalysisOutcome, DecisionKind, Phase
from shared.contracts.events.versions import Lifecycle

CONTROLLER = "controller"
"""The actor of decisions that no person asked for."""


class EngineMark(BaseModel):
    """Last known state of one engine: its generation, and whether it is up."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    generation: int
    up: bool = True
    loaded: bool = Field(default=False, description="it had the candidate when last seen")
    silent_since: AwareDatetime | None = Field(
        default=None, description="the first look since its last answer"
    )


class RolloutState(BaseModel):
    """Where a rollout is. Each decision carries it whole, so the last one is enough to go on."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    rollout_id: str
    model: str
    stable: str
    candidate: str
    came_from: Lifecycle = Field(
        default=Lifecycle.registered, description="the candidate's state before the rollout"
    )
    strategy: Strategy = Field(exclude=True)
    asked_by: str = Field(default="", description="the actor of the start")
    phase: Phase = Phase.progressing
    step: int = 0
    weight: int = 0
    weight_set_at: AwareDatetime | None = None
    started_at: AwareDatetime
    step_started_at: AwareDatetime
    updated_at: AwareDatetime
    stage_requests: float = Field(default=0.0, description="candidate's when the weight was set")
    stage_scores: float = 0.0
    paused_by: Literal["", "person", "gate", "engine"] = ""
    paused_at: AwareDatetime | None = None
    losses: int = 0
    engines: dict[str, EngineMark] = Field(default_factory=dict)
    unjudged_until: AwareDatetime | None = Field(
        default=None, description="samples up to here are not judged, because of a lost engine"
    )
    shadow: ShadowTally | None = Field(
        default=None, description="answers of the shadow step, from its beginning on"
    )
    outcome: AnalysisOutcome | None = None
    needs_person: bool = False

    def but(self, **changes: object) -> RolloutState:
        """The same with some fields changed."""
        return self.model_copy(update=changes)

    @property
    def step_name(self) -> str:
        """The present step in an operator's words."""
        steps = self.strategy.steps
        return steps[self.step].name if self.step < len(steps) else "done"

    @property
    def shadow_step(self) -> Shadow | None:
        """The present step, where it is a shadow step."""
        step = self.strategy.steps[min(self.step, len(self.strategy.steps) - 1)]
        return step if isinstance(step, Shadow) and not self.phase.finished else None

    @property
    def mirrored(self) -> int:
        """Share of live requests that the candidate answers unseen, in basis points."""
        step = self.shadow_step
        begun = self.shadow is not None and self.phase is Phase.progressing
        return step.shadow.share if step is not None and begun else 0

    @property
    def error_limit(self) -> float | None:
        """The error limit in force."""
        return self.strategy.error_limit(min(self.step, len(self.strategy.steps) - 1))


@dataclass(frozen=True, slots=True)
class EngineReport:
    """Report of one adapter agent.

    `ready` is None where it could not be asked. `refused` says why the adapter is not the
    registered one; `undecided` means that a person has to say whether it may serve. The engine is
    `elsewhere` where it serves another base than the candidate's, which it then neither refuses nor
    serves.
    """

    ready: bool | None
    generation: int = 0
    candidate_ready: bool = False
    refused: str = ""
    undecided: bool = False
    elsewhere: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """All inputs of one look.

    `candidate_at` is the unix time of the newest sample that counted a request of the candidate.
    `withheld` says why evidence that would fail the candidate is not judged yet; empty without any.
    `copies` are the routers that several scrapes read; each is counted once. `breakers` are those
    that send the candidate nothing, as it failed time after time there. `proven`: satisfaction is
    shown to be above stable's.
    """

    at: datetime
    agents: dict[str, EngineReport] = field(default_factory=dict)
    zeros_missing: str = "no router was scraped yet"
    verdict: Verdict | None = None
    error: str = ""
    copies: tuple[str, ...] = ()
    breakers: tuple[str, ...] = ()
    withheld: str = ""
    silent_s: float = 0.0
    idle_s: float = 0.0
    candidate_at: float = 0.0
    no_data_after_s: float = 30.0
    candidate: ArmCounts = field(default_factory=ArmCounts)
    proven: bool = False
    shadow: tuple[ShadowResult, ...] = ()

    @property
    def elsewhere(self) -> str:
        """What the agents say where all engines serve another base; empty where one does not."""
        reports = sorted(self.agents.items())
        if not all(one.elsewhere for _, one in reports):
            return ""
        return "; ".join(f"{url}: {one.detail}" for url, one in reports)

    @property
    def not_served(self) -> str:
        """Why the candidate cannot answer yet; empty where it can."""
        if not self.agents:
            return "no adapter agent is configured"
        if self.elsewhere:
            return f"no engine serves its base: {self.elsewhere}"
        for url, report in sorted(self.agents.items()):
            if report.elsewhere:
                continue
            if report.ready is None:
                return f"agent {url} does not answer: {report.detail}"
            if not report.ready:
                return f"the engine of {url} is not ready"
            if not report.candidate_ready:
                return f"{url} does not serve the candidate yet: {report.detail or 'unknown to it'}"
        return ""

    @property
    def not_ready(self) -> str:
        """What the first weight above 0 still waits for; empty where nothing."""
        missing = self.zeros_missing or (f"evidence: {self.error}" if self.error else "")
        return self.not_served or missing


@dataclass(frozen=True, slots=True)
class Move:
    """A state transition. `urgent` ones are written at once, others as the next sign of life."""

    kind: DecisionKind
    state: RolloutState
    weight_before: int
    reason: str
    urgent: bool = True


def hold(state: RolloutState, reason: str, *, urgent: bool = False) -> Move:
    """Hold the present step, with the reason."""
    return Move(DecisionKind.hold, state, state.weight, reason, urgent=urgent)


def ended(state: RolloutState, kind: DecisionKind, reason: str) -> Move:
    """Degraded: everybody back on stable."""
    after = state.but(phase=Phase.degraded, weight=0, needs_person=False)
    return Move(kind, after, state.weight, reason)
