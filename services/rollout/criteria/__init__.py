"""Criteria of the judge: each with its statistic, threshold and text in one place. Pure.

A criterion keeps its own part of `JudgeState`, for most of them an e-process (see `eprocess`), and
says at any look whether the candidate keeps it. To add one, write its class in a module here and
name it in CRITERIA: the verdict, the decisions' evidence, the API and the metrics take it from
there. A figure that no arm has yet is a field of `ArmCounts` and a row of `counters.FIGURES`.
"""

# pyright: strict
from __future__ import annotations

from services.rollout.criteria.bake import BakeErrors, BakeSatisfaction
from services.rollout.criteria.behaviour import (
    Cuts,
    LanguageSwitches,
    Latency,
    Length,
    Questions,
    Refusals,
    ToolFailures,
)
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
    Questions,
    LanguageSwitches,
    Length,
    Latency,
)
"""All criteria, in the order of a verdict's reasons."""


STATISTIC = 5
"""Version of the judge's rule: 1 shares alpha and stakes the bets evenly, 2 by each criterion's
`alpha_weight` and `eprocess.RATE_STAKES`; 3 also leaves a slow share beyond its limit on both arms
to `slow_ratio`, where 2 held; 4 stakes more on 2 to 10 times the margin; 5 leaves one
voter out from two that carry a criterion on, where 4 did from three of the attempts on.

Each decision records its own, so that an older record is replayed by its rule.
"""


def criteria(
    settings: JudgeSettings, error_limits: tuple[float, ...], statistic: int = STATISTIC
) -> tuple[Criterion, ...]:
    """The criteria of one rollout, each with its part of the strategy's alpha."""
    return tuple(
        criterion(settings, alpha_of(criterion, settings, statistic), error_limits, statistic)
        for criterion in CRITERIA
    )


def alpha_of(
    criterion: type[Criterion], settings: JudgeSettings, statistic: int = STATISTIC
) -> float:
    """A criterion's part of alpha; what stands beside alpha has the part it would have within."""
    weights = {one: one.alpha_weight if statistic > 1 else 1.0 for one in CRITERIA}
    whole = sum(weight for one, weight in weights.items() if one.shares_alpha(settings))
    return settings.alpha * weights[criterion] / whole
