"""Criteria of the judge: each with its statistic, threshold and text in one place. Pure.

A criterion keeps its own part of `JudgeState`, for most of them an e-process (see `eprocess`), and
says at any look whether the candidate keeps it. To add one, write its class in a module here and
name it in CRITERIA: the verdict, the decisions' evidence, the API and the metrics take it from
there. A figure that no arm has yet is a field of `ArmCounts` and a row of `counters.FIGURES`.
"""

# pyright: strict
from __future__ import annotations

from services.rollout.criteria.bake import BakeErrors, BakeSatisfaction
from services.rollout.criteria.behaviour import Cuts, Latency, Length, Refusals, ToolFailures
from services.rollout.criteria.criterion import Criterion
from services.rollout.criteria.limits import CrashShare, ErrorLimit, SlowShare
from services.rollout.criteria.ratios import (
    BelowBaseline,
    ErrorRatio,
    Satisfaction,
    SlowRatio,
    StallRatio,
)
from services.rollout.criteria.segments import SegmentErrors, SegmentSatisfaction
from services.rollout.criteria.stops import FailureStreak, SampleRatio
from services.rollout.strategy import JudgeSettings

CRITERIA: tuple[type[Criterion], ...] = (
    ErrorRatio,
    SlowShare,
    SlowRatio,
    StallRatio,
    CrashShare,
    Satisfaction,
    FailureStreak,
    SampleRatio,
    ErrorLimit,
    BelowBaseline,
    SegmentErrors,
    SegmentSatisfaction,
    BakeErrors,
    BakeSatisfaction,
    Refusals,
    Cuts,
    ToolFailures,
    Length,
    Latency,
)
"""All criteria, in the order of a verdict's reasons."""


def criteria(settings: JudgeSettings, error_limits: tuple[float, ...]) -> tuple[Criterion, ...]:
    """The criteria of one rollout; those that share the strategy's alpha do so evenly."""
    alpha = settings.alpha / sum(criterion.shares_alpha(settings) for criterion in CRITERIA)
    return tuple(criterion(settings, alpha, error_limits) for criterion in CRITERIA)
