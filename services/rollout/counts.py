"""Counts of both arms, and the judge's state between two looks."""

# pyright: strict
from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from services.rollout import eprocess


class ArmCounts(BaseModel):
    """What one arm did in a slice, or in all."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    requests: float = Field(default=0.0, description="attempts that count (design section 7)")
    failures: float = Field(default=0.0, description="server errors, timeouts and crashes")
    crashes: float = 0.0
    slow: float = Field(default=0.0, description="attempts longer than 2,000 ms")
    scores: float = Field(default=0.0, description="scored feedback")
    score_sum: float = Field(default=0.0, description="sum of the scores, each in [0, 1]")
    keys: float = Field(default=0.0, description="distinct keys assigned")

    def __add__(self, other: ArmCounts) -> ArmCounts:
        """Both together."""
        both = {name: getattr(self, name) + getattr(other, name) for name in ArmCounts.model_fields}
        return ArmCounts(**both)


class Slice(BaseModel):
    """What both arms did between two looks."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    candidate: ArmCounts = ArmCounts()
    stable: ArmCounts = ArmCounts()
    keys_weight: int = Field(
        default=0, description="basis points in force for all keys of the slice; 0: do not test"
    )
    keys_copies: int = Field(default=1, ge=1, description="how often one key may be counted")
    weight: int = Field(default=0, description="basis points when it was taken")
    bake: bool = Field(default=False, description="everybody was on the candidate")

    def __add__(self, other: Slice) -> Slice:
        """The counts of both together, with the circumstances of the later one."""
        return other.model_copy(
            update={
                "candidate": self.candidate + other.candidate,
                "stable": self.stable + other.stable,
            }
        )


class KeyTest(BaseModel):
    """The sample-ratio test of one stretch of constant weight."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    weight: int = 0
    candidate: float = 0.0
    stable: float = 0.0
    wealth: eprocess.LogWealth = eprocess.none_yet(eprocess.SHARE_ALTERNATIVES)
    intervals: int = 0


class FailureRun(BaseModel):
    """The candidate's failures in a row, and how stable fared meanwhile."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    failures: float = 0.0
    stable_requests: float = 0.0
    stable_failures: float = 0.0


class Baseline(BaseModel):
    """Limits for the bake time, from the parent's figures up to then."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    error_limit: float | None = None
    score_limit: float | None = None


class JudgeState(BaseModel):
    """State of the judge for one rollout. Starts empty for every candidate."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    looks: int = 0
    totals: Slice = Slice()
    stage_weight: int = 0
    stage_stable: ArmCounts = Field(
        default=ArmCounts(), description="what stable did at the present weight"
    )
    rates: Slice = Field(default=Slice(), description="not yet in a block of the error criterion")
    scores: Slice = Field(default=Slice(), description="not yet in a block of satisfaction")
    wealth: dict[str, eprocess.LogWealth] = Field(default_factory=dict)
    keys: KeyTest = KeyTest()
    run: FailureRun = FailureRun()
    baseline: Baseline | None = None

    def but(self, **changes: object) -> JudgeState:
        """The same with some fields changed."""
        return self.model_copy(update=changes)
