"""Confidence sequences of the relative criteria: candidate minus stable, against the margin. Pure.

For the console and the record of people; the judge decides by its e-processes, which are sharper.
Each arm's share has an anytime-valid bound on either side (`eprocess.upper_bound`); the four share
alpha evenly, so the interval of the difference holds at every moment at once with 1 - alpha.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.rollout import eprocess
from services.rollout.counts import ArmCounts, JudgeState, Whole
from services.rollout.strategy import JudgeSettings
from services.rollout.voters import deciding_voters

SIDES = 4
"""Bounds that share an interval's alpha: above and below, on both arms."""
MAX_POINTS = 60
"""Moments of a picture."""


@dataclass(frozen=True, slots=True)
class IntervalFigure:
    """A criterion of which people see the difference. `margin` is times stable's figure."""

    criterion: str
    label: str
    whole: Whole
    part: str
    margin: float

    @property
    def worse(self) -> str:
        """Which direction is the harm."""
        return "more" if self.margin >= 1 else "less"


def figures(settings: JudgeSettings) -> tuple[IntervalFigure, ...]:
    """The criteria that are shown, with the strategy's margins."""
    return (
        IntervalFigure("errors", "Error rate", "requests", "failures", settings.error_margin),
        IntervalFigure(
            "satisfaction", "Satisfaction", "scores", "score_sum", settings.satisfaction_margin
        ),
        IntervalFigure("slow_ratio", "Slow share", "requests", "slow", settings.slow_margin),
        IntervalFigure("stalls", "Streams that stall", "streams", "stalls", settings.stall_margin),
        IntervalFigure(
            "refusals", "Refusals", "answers", "refusals", settings.behaviour.refusals.margin
        ),
    )


def interval(figure: IntervalFigure, state: JudgeState, alpha: float) -> dict[str, Any] | None:
    """One criterion's difference with its interval and margin; None without both arms' figures."""
    totals = state.totals
    if not totals.least(figure.whole):
        return None
    found = difference(_of(totals.candidate, figure), _of(totals.stable, figure), alpha)
    return {**found, "allowed": round((figure.margin - 1) * found["stable"], 6)}


def proven(settings: JudgeSettings, state: JudgeState) -> bool:
    """Whether the candidate's satisfaction is above stable's at the present weight.

    With 1 - alpha at all its looks at once; where several tenants carry the scores, without each
    of them, too. Scores at earlier weights do not count: the candidate has most of its scores from
    later days than stable, so a good day would look like a good candidate.
    """
    without = (state.without[voter] for voter in deciding_voters(state, "scores"))
    return all(_better(one, settings.alpha) for one in (state, *without))


def _better(state: JudgeState, alpha: float) -> bool:
    candidate, stable = state.stage_candidate, state.stage_stable
    if not candidate.scores or not stable.scores:
        return False
    found = difference(
        (candidate.scores, candidate.score_sum), (stable.scores, stable.score_sum), alpha
    )
    return found["low"] > 0


def difference(
    candidate: tuple[float, float], stable: tuple[float, float], alpha: float
) -> dict[str, float]:
    """Difference of two means with its interval; each arm is (count, sum of values in [0, 1])."""
    low_c, mean_c, high_c = mean_bounds(*candidate, 2 * alpha / SIDES)
    low_s, mean_s, high_s = mean_bounds(*stable, 2 * alpha / SIDES)
    return {
        "difference": round(mean_c - mean_s, 6),
        "low": round(low_c - high_s, 6),
        "high": round(high_c - low_s, 6),
        "candidate": round(mean_c, 6),
        "stable": round(mean_s, 6),
        "candidate_n": candidate[0],
        "stable_n": stable[0],
    }


def mean_bounds(count: float, total: float, alpha: float) -> tuple[float, float, float]:
    """Lower bound, mean and upper bound of values in [0, 1]; with 1 - alpha both hold for ever."""
    return (
        eprocess.lower_bound(count, total, alpha / 2),
        total / count,
        eprocess.upper_bound(count, total, alpha / 2),
    )


def interval_series(
    settings: JudgeSettings, states: Sequence[tuple[datetime, JudgeState]]
) -> list[dict[str, Any]]:
    """Each criterion over time, from the judge's states oldest first; at most MAX_POINTS each."""
    step = max(1, -(-len(states) // MAX_POINTS))
    chosen = [one for place, one in enumerate(reversed(states)) if place % step == 0][::-1]
    found: list[dict[str, Any]] = []
    for figure in figures(settings):
        points = [
            {"at": at.isoformat(), **point}
            for at, state in chosen
            if (point := interval(figure, state, settings.alpha)) is not None
        ]
        if points:
            found.append(
                {
                    "criterion": figure.criterion,
                    "label": figure.label,
                    "worse": figure.worse,
                    "margin": figure.margin,
                    "points": points,
                }
            )
    return found


def _of(arm: ArmCounts, figure: IntervalFigure) -> tuple[float, float]:
    count = getattr(arm, figure.whole)
    return count, min(max(getattr(arm, figure.part), 0.0), count)
