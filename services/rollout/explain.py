"""What a strategy means at some traffic: how long each step takes, and which harm it catches. Pure.

The evidence of a test grows with its data as if every count were the expected one, so the figures
are those of a typical rollout: half of the rollouts catch the same harm sooner.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log
from typing import Any

from services.rollout import eprocess
from services.rollout.counts import ArmCounts
from services.rollout.criteria import alpha_of
from services.rollout.criteria.ratios import ErrorRatio, Satisfaction
from services.rollout.strategy import Analysis, JudgeSettings, Pause, SetWeight, Shadow, Strategy
from services.rollout.units import UNITS_S
from shared.contracts.events.base import WEIGHT_SCALE

ERRORS = (0.3, 0.1, 0.05, 0.03)
"""Error rates of a candidate whose time to rollback is told."""
SCORES = (0.5, 0.8)
"""Parts of stable's satisfaction for which it is told."""
LONGEST_S = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a model's users do, and how the stable version fares."""

    requests_per_s: float
    feedback_share: float = 0.05
    error_rate: float = 0.005
    score: float = 0.7

    @classmethod
    def of(cls, counts: ArmCounts, spent_s: float) -> Traffic:
        """That of counts (at least one request) over so many seconds; bounded away from 0 and 1."""
        return cls(
            requests_per_s=counts.requests / max(1.0, spent_s),
            feedback_share=counts.scores / counts.requests,
            error_rate=min(max(counts.failures / counts.requests, 1e-4), 0.99),
            score=min(max(counts.score_sum / counts.scores, 0.01), 0.99) if counts.scores else 0.7,
        )


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step at that traffic. Times are in seconds; None where it never ends by itself."""

    name: str
    weight: int
    takes_s: float | None
    ends_at_s: float | None
    waits_for: str
    catches: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For the API."""
        return {
            "step": self.name,
            "weight": self.weight,
            "takes_s": self.takes_s,
            "ends_at_s": self.ends_at_s,
            "waits_for": self.waits_for,
            "catches": list(self.catches),
        }


def explain(strategy: Strategy, traffic: Traffic) -> list[StepPlan]:
    """Each step in order, with the harm that its weight catches by its end."""
    plans: list[StepPlan] = []
    weight, at = 0, 0.0
    ends: float | None = 0.0
    for index, step in enumerate(strategy.steps):
        catches: tuple[str, ...] = ()
        if isinstance(step, SetWeight):
            weight, takes, waits = step.set_weight, 0.0, "the judge's word on the weight before"
            if strategy.freeze:
                waits += ", and the end of a freeze window"
            spent = _stage_s(strategy, index, traffic)
            catches = _catches(strategy.judge, weight, traffic, spent)
        else:
            takes, waits = _takes(step, weight, traffic)
        if ends is not None:
            ends = None if takes is None else at + takes
            at = ends if ends is not None else at
        plans.append(StepPlan(step.name, weight, takes, ends, waits, catches))
    return plans


def _stage_s(strategy: Strategy, index: int, traffic: Traffic) -> float:
    """Seconds from a setWeight to the next one; without an end a year."""
    step = strategy.steps[index]
    assert isinstance(step, SetWeight)
    total = 0.0
    for following in strategy.steps[index + 1 :]:
        if isinstance(following, SetWeight):
            break
        takes, _ = _takes(following, step.set_weight, traffic)
        if takes is None:
            return LONGEST_S
        total += takes
    return total


def _takes(
    step: Shadow | Pause | Analysis, weight: int, traffic: Traffic
) -> tuple[float | None, str]:
    if isinstance(step, Shadow):
        share, minimum = step.shadow.share / WEIGHT_SCALE, step.shadow.minimum
        takes = max(step.shadow.duration, minimum / (traffic.requests_per_s * share))
        return takes, f"{minimum} answers that were compared"
    if isinstance(step, Pause):
        if step.pause.duration is None:
            return None, "a person"
        return step.pause.duration, "time"
    share, minimum = weight / WEIGHT_SCALE, step.analysis.minimum
    needs = (
        (minimum.requests, traffic.requests_per_s * share, "requests"),
        (minimum.feedback, traffic.requests_per_s * share * traffic.feedback_share, "feedback"),
    )
    # Counted since the weight was set; a pause before it has brought some already, so this is
    # the longest that it can take.
    waits = [
        (count / rate if rate else inf, f"{count} {what}") for count, rate, what in needs if count
    ]
    takes, what = max(waits, default=(0.0, "the judge"))
    return (None, f"{what}, which never come") if takes == inf else (takes, what)


def _catches(
    judge: JudgeSettings, weight: int, traffic: Traffic, spent_s: float
) -> tuple[str, ...]:
    """In words: when which harm is caught at a weight, and the smallest caught by its end."""
    if not 0 < weight < WEIGHT_SCALE or not traffic.requests_per_s:
        return ()
    errors_need = log(1 / alpha_of(ErrorRatio, judge))
    scores_need = log(1 / alpha_of(Satisfaction, judge))
    share, rate = weight / WEIGHT_SCALE, traffic.requests_per_s

    def errors(p: float, seconds: float) -> bool:
        n_c, n_s = rate * share * seconds, rate * (1 - share) * seconds
        wealth = eprocess.rate_ratio(
            judge.error_margin, (n_c, n_c * p), (n_s, n_s * traffic.error_rate)
        )
        staked = eprocess.added(eprocess.RATE_STAKES, wealth)
        return eprocess.mixture(staked) >= errors_need

    def scores(part: float, seconds: float) -> bool:
        n = rate * traffic.feedback_share * seconds
        n_c, n_s = n * share, n * (1 - share)
        wealth = eprocess.mean_ratio(
            judge.satisfaction_margin,
            traffic.score,
            (n_c, n_c * traffic.score * part),
            (n_s, n_s * traffic.score),
        )
        return eprocess.mixture(wealth) >= scores_need

    said = [
        f"{p:.0%} errors in {_time(when)} ({rate * share * when:.0f} requests)"
        for p in ERRORS
        if p > judge.error_margin * traffic.error_rate
        and (when := _first_s(lambda s, p=p: errors(p, s))) < LONGEST_S
    ]
    said += [
        f"satisfaction at {part:.0%} of stable's in {_time(when)}"
        for part in SCORES
        if part < judge.satisfaction_margin
        and (when := _first_s(lambda s, part=part: scores(part, s))) < LONGEST_S
    ]
    if spent_s and errors(0.99, spent_s):
        least = _bisect(lambda p: errors(p, spent_s), traffic.error_rate, 0.99)
        said.append(f"by the end of the stage: error rates from {least:.1%} on")
    if spent_s and scores(0.01, spent_s):
        part = _bisect(lambda part: scores(1 - part, spent_s), 0.0, 0.99)
        said.append(f"by the end of the stage: satisfaction below {1 - part:.0%} of stable's")
    return tuple(said)


def _first_s(caught: Callable[[float], bool]) -> float:
    """The first second at which something is caught; LONGEST_S where it is not within a year."""
    if not caught(LONGEST_S):
        return LONGEST_S
    return _bisect(caught, 0.0, LONGEST_S)


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The least value between at which a monotone condition holds; it does at `high`."""
    for _ in range(60):
        middle = (low + high) / 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _time(seconds: float) -> str:
    for unit in ("d", "h", "m"):
        if seconds >= 2 * UNITS_S[unit]:
            return f"{seconds / UNITS_S[unit]:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"
