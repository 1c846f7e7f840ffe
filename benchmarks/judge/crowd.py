"""A simulated rollout: users of very unequal activity, their answers, and what the judge counts.

Each user has an activity (Pareto), an error rate of its own around the arm's (gamma) and a taste
(beta). A user's place is random, so a heavy user with a bad connection falls on one arm, as in
life. Requests follow a daily cycle; scores arrive late. The limits on what one user adds are the
router's and the aggregator's (design section 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.rollout.counts import ArmCounts, Slice
from shared.contracts.events.base import WEIGHT_SCALE

DAY_S = 86_400.0
SCORES_PER_DAY = 3
"""Scores of a user that count in a day (`services/aggregator`)."""
BAD_PER_DAY = 2
ATTEMPTS_PER_DAY = 200
"""Attempts of a user that count in a day on a router, and how many bad ones."""

LATER_LOOKS = 20
"""Looks after the evenly spaced ones."""

Counts = NDArray[Any]


@dataclass(frozen=True)
class ArmTruth:
    """True shares of one arm."""

    errors: float = 0.01
    slow: float = 0.002
    score: float = 0.7


@dataclass(frozen=True)
class Hostile:
    """Users who want the candidate gone: they fail, and score 0, wherever they are.

    `share` of all users; with `on_candidate` they fell on the candidate, as bad luck has it.
    `requests_per_s` is what each of them sends.
    """

    share: float = 0.0
    users: int = 0
    on_candidate: bool = False
    requests_per_s: float = 1.0


@dataclass(frozen=True)
class SimulatedRollout:
    """One kind of rollout: arms, crowd and traffic.

    `stages` are (weight, seconds). `looks` are evenly spaced until `even_s`; after it, or from the
    start where it is 0, each is longer than the one before.
    """

    name: str
    candidate: ArmTruth = ArmTruth()
    stable: ArmTruth = ArmTruth()
    rate: float = 10.0
    stages: tuple[tuple[float, float], ...] = ((0.05, DAY_S), (0.2, 2 * DAY_S), (0.5, 3 * DAY_S))
    looks: int = 60
    even_s: float = 0.0
    users: int = 1_000
    feedback: float = 0.05
    feedback_delay_s: float = 600.0
    daily: float = 0.6
    hostile: Hostile = Hostile()
    limited: bool = True


@dataclass(frozen=True)
class SimulatedLooks:
    """What the judge sees: a slice for each look, with its end in seconds and its weight."""

    pieces: list[Slice]
    ends_s: list[float]
    weights: list[float]


def simulate(case: SimulatedRollout, generator: np.random.Generator) -> SimulatedLooks:
    """One rollout's looks."""
    edges, weights = _edges(case)
    ends, lengths = edges[1:], np.diff(edges)
    activity = generator.pareto(1.5, case.users) + 0.1
    activity /= activity.sum()
    place = generator.random(case.users)
    # Mean 1 over the requests, so that the arm's true share is the one of the case.
    nature = generator.gamma(2.0, 0.5, case.users)
    nature /= (nature * activity).sum()
    taste = generator.beta(2.0, 2.0, case.users) - 0.5
    cycle = 1 + case.daily * np.sin(2 * np.pi * (ends - lengths / 2) / DAY_S)
    mean = case.rate * activity[:, None] * (lengths * cycle)[None, :]
    hostile = _hostile(case, generator, place, weights[0])
    mean[hostile] = case.hostile.requests_per_s * lengths[None, :]
    attempts = generator.poisson(mean)
    treated = place[:, None] < weights[None, :]
    errors = np.where(treated, case.candidate.errors, case.stable.errors) * nature[:, None]
    errors[hostile] = 1.0
    slow = np.where(treated, case.candidate.slow, case.stable.slow)
    failures = _hits(generator, attempts, np.clip(errors, 0, 1))
    late = _hits(generator, attempts - failures, slow)
    liking = np.where(treated, case.candidate.score, case.stable.score) + 0.4 * taste[:, None]
    liking[hostile] = 0.0
    scores = _hits(generator, attempts, np.full(attempts.shape, case.feedback))
    scores[hostile] = attempts[hostile]
    days = (ends // DAY_S).astype(int)
    if case.limited:
        attempts, failures, late = _limited(attempts, failures, late, days)
        scores = _limit(scores, days, SCORES_PER_DAY)
    good = _hits(generator, scores, np.clip(liking, 0, 1))
    return SimulatedLooks(
        _slices(
            treated,
            {"requests": attempts, "failures": failures, "slow": late},
            {"scores": scores, "score_sum": good},
            _arrivals(case, ends, generator),
            weights,
        ),
        ends.tolist(),
        weights.tolist(),
    )


def _hits(generator: np.random.Generator, counts: Counts, chance: Counts) -> Counts:
    """Binomial draws, made only where something is counted: most users do nothing in a look."""
    hits = np.zeros_like(counts)
    busy = counts > 0
    hits[busy] = generator.binomial(counts[busy], chance[busy])
    return hits


def _edges(case: SimulatedRollout) -> tuple[Counts, Counts]:
    """The looks' edges in seconds, and the weight during each look."""
    whole = sum(seconds for _, seconds in case.stages)
    if case.even_s:
        even = np.linspace(0.0, case.even_s, case.looks + 1)
        edges = np.concatenate((even, np.geomspace(case.even_s, whole, LATER_LOOKS + 1)[1:]))
    else:
        edges = np.concatenate(([0.0], np.geomspace(5.0, whole, case.looks)))
    ends = np.cumsum([seconds for _, seconds in case.stages])
    stage = np.minimum(np.searchsorted(ends, edges[:-1], side="right"), len(ends) - 1)
    return edges, np.array([weight for weight, _ in case.stages])[stage]


def _hostile(
    case: SimulatedRollout, generator: np.random.Generator, place: Counts, weight: float
) -> Counts:
    """Which users are hostile."""
    count = case.hostile.users or round(case.hostile.share * case.users)
    chosen = generator.permutation(case.users)[:count]
    if case.hostile.on_candidate:
        place[chosen] = weight * generator.random(count)
    return chosen


def _limit(counts: Counts, days: Counts, most: int) -> Counts:
    """The first `most` of each row in a day."""
    kept = np.zeros_like(counts)
    for day in np.unique(days):
        of = days == day
        total = np.minimum(np.cumsum(counts[:, of], axis=1), most)
        kept[:, of] = np.diff(total, axis=1, prepend=0)
    return kept


def _limited(
    attempts: Counts, failures: Counts, late: Counts, days: Counts
) -> tuple[Counts, Counts, Counts]:
    """What a router counts: until a user's second bad attempt of the day, or its last allowed one."""
    bad = failures + late
    kept_bad = _limit(bad, days, BAD_PER_DAY)
    # Of the look with the last bad attempt, what came before it.
    before = np.floor(attempts * np.divide(kept_bad, bad, out=np.ones(bad.shape), where=bad > 0))
    spent = np.zeros_like(bad)
    for day in np.unique(days):
        of = days == day
        total = np.cumsum(bad[:, of], axis=1)
        spent[:, of] = total - bad[:, of]
    before[spent >= BAD_PER_DAY] = 0
    kept = np.maximum(_limit(before.astype(int), days, ATTEMPTS_PER_DAY), 0)
    kept_failures = np.minimum(failures, np.minimum(kept_bad, kept))
    kept_late = np.minimum(late, np.minimum(kept_bad, kept) - kept_failures)
    return kept, kept_failures, kept_late


def _arrivals(case: SimulatedRollout, ends: Counts, generator: np.random.Generator) -> Counts:
    """The look in which the scores given in each look arrive; past the end: never."""
    return np.searchsorted(ends, ends + generator.exponential(case.feedback_delay_s, len(ends)))


def _slices(
    treated: Counts,
    now: dict[str, Counts],
    later: dict[str, Counts],
    arrivals: Counts,
    weights: Counts,
) -> list[Slice]:
    looks = len(weights)
    arms: list[dict[str, Counts]] = []
    for of in (treated, ~treated):
        figures = {name: (counts * of).sum(axis=0) for name, counts in now.items()}
        for name, counts in later.items():
            sums = np.zeros(looks + 1)
            np.add.at(sums, arrivals, (counts * of).sum(axis=0))
            figures[name] = sums[:looks]
        arms.append(figures)
    made = [
        [
            ArmCounts(**dict(zip(figures, values, strict=True)))
            for values in zip(*(column.tolist() for column in figures.values()), strict=True)
        ]
        for figures in arms
    ]
    return [
        Slice(candidate=candidate, stable=stable, weight=round(weight * WEIGHT_SCALE))
        for candidate, stable, weight in zip(*made, weights.tolist(), strict=True)
    ]
