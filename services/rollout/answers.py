"""Answers of the control API as its OpenAPI document describes them.

They are written as `views` and its neighbours make them; tests hold every answer against these.
"""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from services.rollout.verdict import CriterionState
from shared.contracts.events.rollouts import AnalysisOutcome, Decision, Phase
from shared.contracts.events.versions import (
    Lifecycle,
    SettingsEvaluation,
    SettingsRecord,
    VersionGain,
    VersionRecord,
)
from shared.registry.deployments import Deployment


class ByArm(BaseModel):
    """A count of each arm."""

    candidate: float
    stable: float


class ArmScores(BaseModel):
    """Scores of an arm; `mean` is null without any."""

    count: float
    mean: float | None


class ScoresByArm(BaseModel):
    """Scores of each arm."""

    candidate: ArmScores
    stable: ArmScores


class ShadowAnswers(BaseModel):
    """What became of a shadow step's requests."""

    answered: int
    failed: int
    expired: int
    unsuited: int
    coverage: float = Field(description="share of them whose answers were compared")
    differences: dict[str, float] = Field(description="figures of the compared answers")


class ShadowView(BaseModel):
    """A shadow step; `answers` is null before it began."""

    share: int = Field(description="basis points of the live requests that are mirrored now")
    minimum: int = Field(description="answers that it waits for")
    answers: ShadowAnswers | None


class CriterionFinding(BaseModel):
    """One criterion at the judge's newest look."""

    criterion: str
    state: CriterionState
    candidate: float | None
    stable: float | None
    candidate_n: float
    stable_n: float
    log_e: float = Field(description="log of the evidence")
    threshold: float = Field(description="log_e that is enough")
    text: str


class VoterShare(BaseModel):
    """What one tenant or API key contributed, as shares of what each arm has."""

    by: str = Field(description="tenant or key")
    voter: str
    candidate: float
    stable: float
    candidate_scores: float
    stable_scores: float
    capped: float


class RolloutView(BaseModel):
    """One rollout."""

    rollout_id: str
    model: str
    stable: str
    candidate: str
    phase: Phase
    result: str = Field(description="how it ended, in words; empty while it runs")
    step: int
    step_name: str
    steps: int
    weight: int = Field(description="basis points of the users")
    shadow: ShadowView | None = Field(description="null without a shadow step")
    outcome: AnalysisOutcome | None
    reason: str
    actor: str
    actions: list[str] = Field(description="commands that its phase allows")
    on_behalf_of: str
    needs_person: bool
    paused_by: str
    strategy: str
    config_sha256: str
    started_at: AwareDatetime
    step_started_at: AwareDatetime
    updated_at: AwareDatetime
    ended_at: AwareDatetime | None
    requests: ByArm
    capped: ByArm
    failures: ByArm
    scores: ScoresByArm
    findings: list[CriterionFinding]
    voters: list[VoterShare]


class CurrentRollout(RolloutView):
    """A model's unfinished rollout, else its last one."""

    waiting: str = Field(description="versions that wait for a person, and why; empty: none")


class RolloutList(BaseModel):
    """Rollouts, newest first."""

    rollouts: list[RolloutView]


class DecisionView(Decision):
    """A decision with its id and a sentence that says it."""

    id: str
    sentence: str


class DecisionPage(BaseModel):
    """Decisions, oldest first."""

    decisions: list[DecisionView]
    next: str | None = Field(description="`after` of the next page; null at the end")


class ReplayDifference(BaseModel):
    """A figure of the record that does not follow from the record's slices."""

    decision: str
    criterion: str
    field: str
    recorded: float | str | None
    recomputed: float | str | None


class ReplayedRollout(BaseModel):
    """What a replay found."""

    rollout_id: str
    decisions: int
    recomputed: int
    looks: int
    gaps: list[int] = Field(description="looks whose slices the record does not have")
    differences: list[ReplayDifference]
    agrees: bool


class DifferenceOfArms(BaseModel):
    """Candidate minus stable, with an interval that holds at every moment at once."""

    difference: float
    low: float
    high: float
    candidate: float
    stable: float
    candidate_n: float
    stable_n: float


class IntervalPoint(DifferenceOfArms):
    """The difference at one moment, and what of it is allowed."""

    at: AwareDatetime
    allowed: float


class CriterionIntervals(BaseModel):
    """A criterion over time."""

    criterion: str
    label: str
    worse: Literal["more", "less"]
    margin: float = Field(description="times stable's figure")
    points: list[IntervalPoint]


class IntervalList(BaseModel):
    """The relative criteria over time."""

    intervals: list[CriterionIntervals]


class StrategySchema(BaseModel):
    """JSON Schema (2020-12) of a strategy."""

    model_config = ConfigDict(extra="allow")
    dialect: str = Field(alias="$schema")
    type: Literal["object"]
    properties: dict[str, JsonValue]
    required: list[str] = []
    definitions: dict[str, JsonValue] = Field(default={}, alias="$defs")


class TrafficView(BaseModel):
    """The traffic that a strategy was explained by."""

    requests_per_s: float
    feedback_share: float
    error_rate: float
    score: float


class PlannedStep(BaseModel):
    """A step at that traffic; null where it never ends by itself."""

    step: str
    weight: int
    takes_s: float | None
    ends_at_s: float | None
    waits_for: str
    catches: list[str]


class ExplainedStrategy(BaseModel):
    """A valid strategy, and its steps where a traffic is known."""

    name: str
    config_sha256: str
    traffic: TrafficView | None
    steps: list[PlannedStep]


class VersionView(BaseModel):
    """One version."""

    version: str
    model: str
    method: str
    parent: str
    base: str
    rebases: str
    state: Lifecycle
    rollout: str
    reason: str
    retired_by: str = Field(description="key of who retired it by hand; empty: nobody did")
    waits_for: str = Field(description="why a person must start it; empty: nothing")
    tenants: dict[str, int] = Field(description="rows of its data by tenant")
    released: bool
    evaluated: bool | None
    gate_overridden_by: str
    erased_rows: int
    metrics: dict[str, float]
    created_at: AwareDatetime
    gain: VersionGain | None
    moved_at: AwareDatetime | None
    deployments: list[Deployment]


class VersionList(BaseModel):
    """Versions in the order of registration."""

    versions: list[VersionView]


class EvaluationProgress(BaseModel):
    """An evaluation that waits, runs or has failed."""

    against: str
    prompts: int
    answers: int
    failed: str = Field(description="why; empty: it has not")


class RegisteredVersion(VersionView):
    """A version with its record."""

    record: VersionRecord | SettingsRecord
    evaluation: SettingsEvaluation | None


class WholeVersion(RegisteredVersion):
    """A version with its record, and the evaluation that this replica runs."""

    evaluating: EvaluationProgress | None


class Holdout(BaseModel):
    """A model's holdout."""

    model: str
    share: float = Field(description="percent of the users; 0: there is none")
    reference: str
    set_by: DecisionView | None = Field(description="null before the first decision on it")


class SinceReference(DifferenceOfArms):
    """Version minus reference, on whole days on which both served."""

    days: int


class WinRate(BaseModel):
    """Share of votes for a version, ties as half, with its interval."""

    rate: float
    low: float
    high: float
    votes: float


class Gain(BaseModel):
    """What a candidate gained; null where an arm has no scored feedback, or no vote."""

    version: str
    reference: str
    rollout_id: str
    result: str
    confidence: float
    satisfaction: IntervalPoint | None
    win_rate: WinRate | None
    holdout_reference: str
    since_reference: SinceReference | None
    win_rate_since_reference: WinRate | None


class GainList(BaseModel):
    """Gains of a model's candidates, oldest first."""

    gains: list[Gain]
