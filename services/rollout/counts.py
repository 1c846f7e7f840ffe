"""Counts of both arms, and the judge's state between two looks."""

# pyright: strict
from __future__ import annotations

from operator import add
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from services.rollout import eprocess

M = TypeVar("M", bound=BaseModel)
Whole = Literal["requests", "scores", "streams", "answers", "tool_calls"]
"""What a criterion's figure is a share or mean of."""
Counted = Literal["requests", "scores"]
"""What carries a criterion: attempts, or scored feedback."""


def unchecked(kind: type[M], values: dict[str, Any]) -> M:
    """A model of values that are valid and whole, without validation: the judge makes many.

    It is what `model_construct` gives, in a fifth of the time.
    """
    made = kind.__new__(kind)
    put = object.__setattr__
    put(made, "__dict__", values)
    put(made, "__pydantic_fields_set__", kind.__pydantic_fields__.keys())
    put(made, "__pydantic_extra__", None)
    put(made, "__pydantic_private__", None)
    return made


class ArmCounts(BaseModel):
    """What one arm did in a slice, or in all."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    requests: float = Field(default=0.0, description="attempts that count (design section 7)")
    failures: float = Field(default=0.0, description="server errors, timeouts and crashes")
    crashes: float = 0.0
    slow: float = Field(default=0.0, description="attempts longer than the latency limit")
    over_250ms: float = Field(default=0.0, description="attempts longer than 250 ms")
    over_500ms: float = Field(default=0.0, description="attempts longer than 500 ms")
    over_1s: float = Field(default=0.0, description="attempts longer than 1,000 ms")
    streams: float = Field(default=0.0, description="streams of at least two tokens")
    stalls: float = Field(default=0.0, description="streams with a gap over 2,000 ms")
    scores: float = Field(default=0.0, description="scored feedback")
    score_sum: float = Field(default=0.0, description="sum of the scores, each in [0, 1]")
    answers: float = Field(default=0.0, description="complete answers, read by rule")
    refusals: float = Field(default=0.0, description="answers that refuse")
    cuts: float = Field(default=0.0, description="answers cut at the limit of tokens")
    questions: float = Field(default=0.0, description="short answers that ask back")
    language_switches: float = Field(
        default=0.0, description="answers in another language than the user's"
    )
    length_sum: float = Field(default=0.0, description="sum of lengths, each in [0, 1]")
    tool_calls: float = Field(default=0.0, description="answers that call tools")
    tool_failures: float = Field(default=0.0, description="of them, with a call that is invalid")
    keys: float = Field(default=0.0, description="distinct keys assigned")
    capped: float = Field(
        default=0.0, description="attempts beyond a user's votes of the day, or of nobody"
    )

    def __add__(self, other: ArmCounts) -> ArmCounts:
        """Both together."""
        # Both have the fields in the model's order; by name it takes half as long again.
        mine, theirs = self.__dict__, other.__dict__
        added = map(add, mine.values(), theirs.values())
        return unchecked(ArmCounts, dict(zip(mine, added, strict=True)))


class Arms(BaseModel):
    """Counts of the two arms."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    candidate: ArmCounts = ArmCounts()
    stable: ArmCounts = ArmCounts()

    def __add__(self, other: Arms) -> Arms:
        """Both together."""
        both = {
            "candidate": self.candidate + other.candidate,
            "stable": self.stable + other.stable,
        }
        return unchecked(Arms, both)

    def least(self, whole: Whole) -> float:
        """How many the arm with fewer has."""
        return min(getattr(self.candidate, whole), getattr(self.stable, whole))


class Slice(Arms):
    """What both arms did between two looks; `segments` holds the parts of it by segment."""

    segments: dict[str, Arms] = Field(default_factory=dict)
    keys_weight: int = Field(
        default=0, description="basis points in force for all keys of the slice; 0: do not test"
    )
    keys_copies: int = Field(default=1, ge=1, description="how often one key may be counted")
    weight: int = Field(default=0, description="basis points when it was taken")
    bake: bool = Field(default=False, description="everybody was on the candidate")
    voters: dict[str, Arms] = Field(
        default_factory=dict,
        description='the part of each tenant and API key ("tenant:3fa9c1d2"), of this slice and of '
        "those before it whose voters came later",
    )
    voters_later: bool = Field(default=False, description="a later slice has its voters' parts")

    def but(self, **changes: object) -> Slice:
        """The same with some fields changed."""
        return unchecked(Slice, {**self.__dict__, **changes})


NO_ARMS = Arms()
NO_SLICE = Slice()


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


NO_RUN = FailureRun()


class Baseline(BaseModel):
    """Limits for the bake time, from the parent's figures up to then."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    error_limit: float | None = None
    score_limit: float | None = None


class JudgeState(BaseModel):
    """State of the judge for one rollout. Starts empty for every candidate.

    `blocks` holds what is not yet bet on, by what is counted and the segment ("scores/gold").
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
    looks: int = 0
    totals: Arms = Arms()
    segments: dict[str, Arms] = Field(default_factory=dict)
    stage_weight: int = 0
    stage_stable: ArmCounts = Field(
        default=ArmCounts(), description="what stable did at the present weight"
    )
    stage_candidate: ArmCounts = ArmCounts()
    blocks: dict[str, Arms] = Field(default_factory=dict)
    wealth: dict[str, eprocess.LogWealth] = Field(default_factory=dict)
    keys: KeyTest = KeyTest()
    run: FailureRun = FailureRun()
    baseline: Baseline | None = None
    voters: dict[str, Arms] = Field(
        default_factory=dict, description="what each tenant and API key added to the totals"
    )
    without: dict[str, JudgeState] = Field(
        default_factory=dict,
        description='the state of a judge that never saw that voter; of "": that saw all',
    )
    apart: Arms = Field(
        default=Arms(), description="counts of the newest slices, whose voters come later"
    )

    def but(self, **changes: object) -> JudgeState:
        """The same with some fields changed."""
        return unchecked(JudgeState, {**self.__dict__, **changes})
