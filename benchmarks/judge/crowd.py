"""A simulated rollout: users of very unequal activity, their answers, and what the judge counts.

Each user has an activity (Pareto), an error rate of its own around the arm's (gamma) and a taste
(beta). A user's place is random, so a heavy user with a bad connection falls on one arm, as in
life. Requests follow a daily cycle; scores arrive late. The limits on what one user adds are the
router's and the aggregator's (design section 7). Many rollouts are drawn at once, one look after
the other, and each as far as a rule asks for it: a candidate that is caught in a minute costs no
simulated week.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.rollout.counts import NO_SLICE, ArmCounts, Arms, Slice, unchecked
from services.rollout.voters import voter_key
from shared.contracts.events.base import WEIGHT_SCALE
from shared.voters import VoterKind

DAY_S = 86_400.0
SCORES_PER_DAY = 3
"""Scores of a user that count in a day (`services/aggregator`)."""
BAD_PER_DAY = 2
ATTEMPTS_PER_DAY = 200
"""Attempts of a user that count in a day on a router, and how many bad ones."""

LATER_LOOKS = 20
"""Looks after the evenly spaced ones."""
SPARSE = 4
"""Events are drawn one by one where fewer than a user in so many has one."""
FIGURES = ("requests", "failures", "slow", "scores", "score_sum")
_NOTHING = ArmCounts().model_dump()

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

    `share` of all users; with `on_candidate` they fell on the candidate, as bad luck has it, or
    were made up until they did. `requests_per_s` is what each of them sends. With `voter` they are
    all of one tenant, or use one API key, of `of` that the crowd has.
    """

    share: float = 0.0
    users: int = 0
    on_candidate: bool = False
    requests_per_s: float = 1.0
    voter: VoterKind | None = None
    of: int = 3


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
    looks: int = 48
    even_s: float = 0.0
    users: int = 1_000
    feedback: float = 0.05
    feedback_delay_s: float = 600.0
    daily: float = 0.6
    hostile: Hostile = Hostile()
    limited: bool = True


@dataclass(frozen=True)
class SimulatedLook:
    """What the judge sees at a look: a slice, with its end in seconds and its weight."""

    piece: Slice
    end_s: float
    weight: float


class SimulatedRollouts:
    """Rollouts of one kind, drawn look by look; one that is over for its rules is drawn no more."""

    def __init__(
        self, case: SimulatedRollout, rollouts: int, generator: np.random.Generator
    ) -> None:
        self._case, self._generator = case, generator
        self._going = list(range(rollouts))
        self._over: set[int] = set()

    def end(self, number: int) -> None:
        """Draw no more looks of a rollout."""
        self._over.add(number)

    def __iter__(self) -> Iterator[dict[int, SimulatedLook]]:
        """The same look of each rollout that goes on, by its number."""
        case, generator = self._case, self._generator
        edges, weights = _edges(case)
        ends, lengths = edges[1:], np.diff(edges)
        crowds = _Crowds(case, len(self._going), generator)
        # The look in which the scores given in each look arrive; past the end: never.
        delays = generator.exponential(case.feedback_delay_s, (len(self._going), len(ends)))
        arrivals = np.searchsorted(ends, ends + delays)
        waiting = np.zeros((len(self._going), len(ends) + 1, 2, case.hostile.of, 2))
        for place, (end_s, seconds, weight) in enumerate(
            zip(ends.tolist(), lengths.tolist(), weights.tolist(), strict=True)
        ):
            if self._over:
                staying = np.array([number not in self._over for number in self._going])
                self._going = [number for number in self._going if number not in self._over]
                self._over.clear()
                crowds.keep(staying)
                arrivals, waiting = arrivals[staying], waiting[staying]
            if not self._going:
                return
            kept, scored = crowds.look(end_s, seconds, weight)
            waiting[np.arange(len(self._going)), arrivals[:, place]] += scored
            figures = np.concatenate((kept, waiting[:, place]), axis=3)
            slices = _slices(figures, weight, case.hostile)
            yield {
                number: SimulatedLook(piece, end_s, weight)
                for number, piece in zip(self._going, slices, strict=True)
            }


class _Crowds:
    """The users of some rollouts, one after the other, and what each has left of a day's votes."""

    def __init__(
        self, case: SimulatedRollout, rollouts: int, generator: np.random.Generator
    ) -> None:
        self._case, self._generator = case, generator
        self._rollouts = rollouts
        shape = (rollouts, case.users)
        activity = generator.pareto(1.5, shape) + 0.1
        activity /= activity.sum(axis=1, keepdims=True)
        place = generator.random(shape)
        # Mean 1 over the requests, so that the arm's true share is the one of the case.
        nature = generator.gamma(2.0, 0.5, shape)
        nature /= (nature * activity).sum(axis=1, keepdims=True)
        taste = 0.4 * (generator.beta(2.0, 2.0, shape) - 0.5)
        voter = generator.permuted(np.broadcast_to(np.arange(case.users), shape), axis=1)
        voter %= case.hostile.of
        hostile = np.zeros(shape, dtype=bool)
        for number in range(rollouts if case.hostile.users or case.hostile.share else 0):
            chosen = self._chosen(voter[number])
            hostile[number, chosen] = True
            if case.hostile.on_candidate:
                place[number, chosen] = case.stages[0][0] * generator.random(len(chosen))
        self._place, self._nature, self._taste = place.ravel(), nature.ravel(), taste.ravel()
        self._rate, self._voter = case.rate * activity.ravel(), voter.ravel()
        self._hostile = hostile.ravel()
        self._day = -1
        self._new_day(0)

    def keep(self, staying: Counts) -> None:
        """Go on with some of the rollouts."""
        self._rollouts = int(staying.sum())
        for name in _OF_USERS:
            of_users = getattr(self, name).reshape(len(staying), -1)
            setattr(self, name, of_users[staying].ravel())

    def look(self, end_s: float, seconds: float, weight: float) -> tuple[Counts, Counts]:
        """Draw a look: sums by (rollout, arm, voter) of requests, failures, slow; of scores, their sum."""
        self._new_day(int(end_s // DAY_S))
        case, generator = self._case, self._generator
        cycle = 1 + case.daily * np.sin(2 * np.pi * (end_s - seconds / 2) / DAY_S)
        mean = self._rate * (seconds * cycle)
        mean[self._hostile] = case.hostile.requests_per_s * seconds
        counted = (self._bad < BAD_PER_DAY) & (self._attempts < ATTEMPTS_PER_DAY)
        heard = self._scores < SCORES_PER_DAY
        mean[~(counted | heard)] = 0.0
        users, attempts = _poisson(generator, mean)
        treated = self._place[users] < weight
        kept = self._kept(users, attempts, treated)
        scored = self._scored(users, attempts, treated)
        shape = (self._rollouts, 2, case.hostile.of)
        group = (users // case.users * 2 + treated) * shape[2] + self._voter[users]
        return _sums(group, shape, kept), _sums(group, shape, scored)

    def _kept(self, users: Counts, attempts: Counts, treated: Counts) -> tuple[Counts, ...]:
        """Requests, failures and slow ones that count: until a user's second bad one of the day."""
        case, generator = self._case, self._generator
        errors = np.where(treated, case.candidate.errors, case.stable.errors)
        errors = np.clip(errors * self._nature[users], 0, 1)
        errors[self._hostile[users]] = 1.0
        failures = generator.binomial(attempts, errors)
        slow = np.where(treated, case.candidate.slow, case.stable.slow)
        late = generator.binomial(attempts - failures, slow)
        if not case.limited:
            return attempts, failures, late
        room = np.maximum(BAD_PER_DAY - self._bad[users], 0)
        bad = failures + late
        # Where the bad ones are the room or more, the last that counts is this far on in the mean.
        until = np.where(bad >= room, np.ceil(room * (attempts + 1) / (bad + 1)), attempts)
        until = np.minimum(until, np.maximum(ATTEMPTS_PER_DAY - self._attempts[users], 0))
        until = np.minimum(until, attempts)
        kept_bad = np.minimum(np.minimum(bad, room), until)
        kept_failures = np.minimum(failures, kept_bad)
        self._bad[users] += kept_bad.astype(int)
        self._attempts[users] += until.astype(int)
        return until, kept_failures, np.minimum(late, kept_bad - kept_failures)

    def _scored(self, users: Counts, attempts: Counts, treated: Counts) -> tuple[Counts, ...]:
        """Scores that count, and their sum."""
        case, generator = self._case, self._generator
        hostile = self._hostile[users]
        scores = np.where(hostile, attempts, generator.binomial(attempts, case.feedback))
        if case.limited:
            scores = np.minimum(scores, np.maximum(SCORES_PER_DAY - self._scores[users], 0))
            self._scores[users] += scores
        liking = np.where(treated, case.candidate.score, case.stable.score) + self._taste[users]
        liking = np.where(hostile, 0.0, np.clip(liking, 0, 1))
        return scores, generator.binomial(scores, liking)

    def _new_day(self, day: int) -> None:
        if day != self._day:
            self._day = day
            self._bad, self._attempts, self._scores = (
                np.zeros(len(self._place), dtype=int) for _ in range(3)
            )

    def _chosen(self, voter: Counts) -> Counts:
        """Which users of a rollout are hostile."""
        case, generator = self._case, self._generator
        count = case.hostile.users or round(case.hostile.share * case.users)
        pool = np.arange(case.users)
        if case.hostile.voter is not None:
            pool = np.flatnonzero(voter == 0)
        return generator.permutation(pool)[:count]


_OF_USERS = (
    *("_place", "_nature", "_taste", "_rate", "_voter", "_hostile"),
    *("_bad", "_attempts", "_scores"),
)
"""What the crowds know of each user."""


def simulate(
    case: SimulatedRollout, generator: np.random.Generator, rollouts: int = 1
) -> SimulatedRollouts:
    """Rollouts of one kind."""
    return SimulatedRollouts(case, rollouts, generator)


def _slices(figures: Counts, weight: float, hostile: Hostile) -> Iterator[Slice]:
    """Slices of (rollout, arm, voter, figure) sums; by voter where the case has some."""
    weight_bp = round(weight * WEIGHT_SCALE)
    totals = figures.sum(axis=2).tolist()
    if hostile.voter is None:
        for arms in totals:
            yield NO_SLICE.but(**_arms(*arms), weight=weight_bp)
        return
    names = [voter_key(hostile.voter, f"{number:08x}") for number in range(hostile.of)]
    for arms, parts in zip(totals, figures.tolist(), strict=True):
        by_voter = zip(names, *parts, strict=True)
        voters = {
            name: unchecked(Arms, _arms(stable, candidate)) for name, stable, candidate in by_voter
        }
        yield NO_SLICE.but(**_arms(*arms), weight=weight_bp, voters=voters)


def _arms(stable: list[float], candidate: list[float]) -> dict[str, ArmCounts]:
    return {"candidate": _counts(candidate), "stable": _counts(stable)}


def _counts(figures: list[float]) -> ArmCounts:
    return unchecked(ArmCounts, {**_NOTHING, **dict(zip(FIGURES, figures, strict=True))})


def _poisson(generator: np.random.Generator, mean: Counts) -> tuple[Counts, Counts]:
    """Who has any of Poisson counts with these means, and how many: few draws where few have."""
    whole = mean.sum()
    if whole * SPARSE > len(mean):
        counts = generator.poisson(mean)
        some = np.flatnonzero(counts)
        return some, counts[some]
    events = generator.random(generator.poisson(whole)) * whole
    return np.unique(np.searchsorted(np.cumsum(mean), events), return_counts=True)


def _sums(group: Counts, shape: tuple[int, int, int], figures: tuple[Counts, ...]) -> Counts:
    """(rollout, arm, voter, figure) sums of what users have, each of one group."""
    groups = shape[0] * shape[1] * shape[2]
    sums = [np.bincount(group, weights=one, minlength=groups) for one in figures]
    return np.stack(sums, axis=1).reshape(*shape, len(figures))


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
