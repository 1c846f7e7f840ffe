"""Ranking of versions by their votes: Bradley-Terry with intervals by the Bayesian bootstrap. Pure.

The chance that version i wins over j is 1 / (1 + exp(s_j - s_i)) (Bradley and Terry 1952, Biometrika
39, 324-345). A tie is half a win for each side, and so is a vote for both bad. Strengths are the
maximum of the likelihood with a weak normal prior, so that a version that always won stays finite.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from shared.intervals import wilson

Outcome = Literal["left", "right", "tie", "both_bad"]

PRIOR_SD = 3.0
"""Standard deviation of the prior of a strength, in logits: a chance of 95 % over the mean is one."""
ELO_PER_LOGIT = 400 / math.log(10)
MEAN_RATING = 1000.0
"""The ratings' mean. On Elo's scale 400 points more are odds of 10 to 1."""
MAX_VERSIONS = 200
MAX_STEPS = 50
TOLERANCE = 1e-8
LEVEL = 0.95
"""Of intervals."""

_Wins = dict[tuple[int, int], float]
_Pair = tuple[int, int, float, float]
"""Two versions, and how often the first and the second won."""


@dataclass(frozen=True, slots=True)
class RankedVote:
    """What the ranking takes of one vote; lengths are in characters."""

    left: str
    right: str
    outcome: Outcome
    left_length: int = 0
    right_length: int = 0


@dataclass(frozen=True, slots=True)
class RankedVersion:
    """One version: its rating with a 95 % interval, and the best rank that the intervals allow."""

    version: str
    rating: float
    low: float
    high: float
    rank: int
    votes: int


@dataclass(frozen=True, slots=True)
class ShareWithin:
    """A share of `of` votes with its Wilson interval at 95 %; without votes 0 to 1."""

    share: float
    low: float
    high: float
    of: int


@dataclass(frozen=True, slots=True)
class VersionRanking:
    """Standings, best first, and what else the votes say.

    `left_wins` and `longer_wins` are shares of decided votes: far from a half, position or length
    decided rather than the answer. `connected` is False where votes never linked some versions, whose
    ratings then say nothing of each other. Votes of a version against itself are left out.
    """

    standings: tuple[RankedVersion, ...]
    votes: int
    ties: ShareWithin
    both_bad: ShareWithin
    left_wins: ShareWithin
    longer_wins: ShareWithin
    connected: bool


class TooManyVersions(ValueError):
    """More versions than can be ranked together."""


def rank(votes: Iterable[RankedVote], *, bootstraps: int = 1000, seed: int = 0) -> VersionRanking:
    """Rank versions by votes.

    Intervals are the percentiles of `bootstraps` fits in which each vote weighs Exp(1) (Rubin 1981,
    Annals of Statistics 9, 130-134). Votes count as independent of each other.

    Raises:
        TooManyVersions: there are more than MAX_VERSIONS.

    """
    kept = [vote for vote in votes if vote.left != vote.right]
    versions = sorted({name for vote in kept for name in (vote.left, vote.right)})
    if len(versions) > MAX_VERSIONS:
        raise TooManyVersions(
            f"{len(versions)} versions; at most {MAX_VERSIONS} are ranked at once"
        )
    place = {version: index for index, version in enumerate(versions)}
    cells: Counter[tuple[int, int, float]] = Counter()
    for vote in kept:
        first, second = place[vote.left], place[vote.right]
        won = {"left": 1.0, "right": 0.0}.get(vote.outcome, 0.5)
        cells[(first, second, won) if first < second else (second, first, 1.0 - won)] += 1
    strengths = _fit(_wins(cells), [0.0] * len(versions))
    rng = random.Random(seed)
    draws = [
        _fit(
            _wins({cell: rng.gammavariate(count, 1.0) for cell, count in cells.items()}), strengths
        )
        for _ in range(bootstraps if versions else 0)
    ]
    return VersionRanking(
        standings=_standings(versions, strengths, draws, kept),
        votes=len(kept),
        ties=share_within(sum(vote.outcome == "tie" for vote in kept), len(kept)),
        both_bad=share_within(sum(vote.outcome == "both_bad" for vote in kept), len(kept)),
        left_wins=_left_wins(kept),
        longer_wins=_longer_wins(kept),
        connected=_connected(len(versions), cells),
    )


def gains(
    versions: Sequence[str], wins: Mapping[tuple[str, str], float]
) -> dict[tuple[str, str], float]:
    """What one more vote on each pair of versions tells of the ranking.

    That is p (1 - p) of the pair's next outcome times the variance of its difference of strengths,
    both from the posterior's normal approximation: how far the vote lowers the variance, to the first
    order (Glickman and Jensen 2005, Journal of Statistical Planning and Inference 127, 279-293).
    `wins` has how often the first of two versions won over the second; a tie is half of each.
    """
    place = {version: index for index, version in enumerate(versions)}
    counted: _Wins = {}
    for (first, second), won in wins.items():
        if first in place and second in place and first != second:
            i, j = place[first], place[second]
            counted[i, j] = won
            counted.setdefault((j, i), 0.0)
    strengths = _fit(counted, [0.0] * len(versions))
    _, curvature = _derivatives(_pairs(counted), strengths)
    columns: list[list[float]] = []
    for index in range(len(versions)):
        unit = [0.0] * len(versions)
        unit[index] = 1.0
        columns.append(_solve([row[:] for row in curvature], unit))
    found: dict[tuple[str, str], float] = {}
    for i, j in combinations(range(len(versions)), 2):
        chance = 1 / (1 + math.exp(strengths[j] - strengths[i]))
        variance = columns[i][i] + columns[j][j] - 2 * columns[i][j]
        found[versions[i], versions[j]] = chance * (1 - chance) * variance
    return found


def share_within(successes: int, of: int) -> ShareWithin:
    """A share with its score interval."""
    return ShareWithin(successes / of if of else 0.0, *wilson(successes, of), of)


def _wins(cells: Mapping[tuple[int, int, float], float]) -> _Wins:
    """Weight of wins of the first over the second of each ordered pair; a tie is half of each."""
    wins: _Wins = {}
    for (first, second, won), weight in cells.items():
        wins[first, second] = wins.get((first, second), 0.0) + won * weight
        wins[second, first] = wins.get((second, first), 0.0) + (1.0 - won) * weight
    return wins


def _fit(wins: _Wins, start: Sequence[float]) -> list[float]:
    """Strengths of highest posterior density, by Newton's method; their mean is 0."""
    strengths = list(start)
    pairs = _pairs(wins)
    for _ in range(MAX_STEPS):
        gradient, curvature = _derivatives(pairs, strengths)
        step = _solve(curvature, gradient)
        # Damped: far from the optimum a whole step may overshoot.
        longest = max(map(abs, step), default=0.0)
        scale = min(1.0, 2.0 / longest) if longest else 1.0
        strengths = [value + scale * change for value, change in zip(strengths, step, strict=True)]
        if longest < TOLERANCE:
            break
    return strengths


def _pairs(wins: _Wins) -> list[_Pair]:
    return [(i, j, won, wins.get((j, i), 0.0)) for (i, j), won in wins.items() if i < j]


def _derivatives(
    pairs: Sequence[_Pair], strengths: Sequence[float]
) -> tuple[list[float], list[list[float]]]:
    """Gradient of the log posterior, and the negative of its Hessian."""
    size, precision = len(strengths), 1 / PRIOR_SD**2
    gradient = [-precision * strength for strength in strengths]
    curvature = [[0.0] * size for _ in range(size)]
    for index in range(size):
        curvature[index][index] = precision
    for i, j, won, lost in pairs:
        chance = 1 / (1 + math.exp(strengths[j] - strengths[i]))
        slope = won - (won + lost) * chance
        gradient[i] += slope
        gradient[j] -= slope
        bend = (won + lost) * chance * (1 - chance)
        curvature[i][i] += bend
        curvature[j][j] += bend
        curvature[i][j] -= bend
        curvature[j][i] -= bend
    return gradient, curvature


def _solve(matrix: list[list[float]], vector: list[float]) -> list[float]:
    """The solution of a symmetric positive definite system, by Cholesky's factors; eats its input."""
    size = len(vector)
    for i in range(size):
        row = matrix[i]
        for j in range(i):
            other = matrix[j]
            row[j] = (row[j] - sum(a * b for a, b in zip(row[:j], other[:j], strict=True))) / other[
                j
            ]
        row[i] = math.sqrt(row[i] - sum(a * a for a in row[:i]))
    for i in range(size):
        row = matrix[i]
        vector[i] = (
            vector[i] - sum(a * b for a, b in zip(row[:i], vector[:i], strict=True))
        ) / row[i]
    for i in reversed(range(size)):
        rest = sum(matrix[k][i] * vector[k] for k in range(i + 1, size))
        vector[i] = (vector[i] - rest) / matrix[i][i]
    return vector


def _standings(
    versions: Sequence[str],
    strengths: Sequence[float],
    draws: Sequence[Sequence[float]],
    votes: Iterable[RankedVote],
) -> tuple[RankedVersion, ...]:
    counts = Counter(name for vote in votes for name in (vote.left, vote.right))
    found: list[tuple[float, float, float, str]] = []
    for index, version in enumerate(versions):
        drawn = sorted(draw[index] for draw in draws) or [strengths[index]]
        cut = int((1 - LEVEL) / 2 * len(drawn))
        low, high = drawn[cut], drawn[len(drawn) - 1 - cut]
        found.append((rating(strengths[index]), rating(low), rating(high), version))
    found.sort(key=lambda one: (-one[0], one[3]))
    return tuple(
        RankedVersion(
            version=version,
            rating=value,
            low=low,
            high=high,
            rank=1 + sum(other[1] > high for other in found),
            votes=counts[version],
        )
        for value, low, high, version in found
    )


def rating(strength: float) -> float:
    """A strength in logits on Elo's scale."""
    return MEAN_RATING + ELO_PER_LOGIT * strength


def _left_wins(votes: Iterable[RankedVote]) -> ShareWithin:
    decided = [vote.outcome for vote in votes if vote.outcome in ("left", "right")]
    return share_within(decided.count("left"), len(decided))


def _longer_wins(votes: Iterable[RankedVote]) -> ShareWithin:
    decided = [
        (vote.left_length > vote.right_length) == (vote.outcome == "left")
        for vote in votes
        if vote.outcome in ("left", "right") and vote.left_length != vote.right_length
    ]
    return share_within(sum(decided), len(decided))


def _connected(size: int, cells: Iterable[tuple[int, int, float]]) -> bool:
    """Whether votes link all versions, directly or through others."""
    group = list(range(size))

    def root(index: int) -> int:
        while group[index] != index:
            group[index] = group[group[index]]
            index = group[index]
        return index

    for first, second, _ in cells:
        group[root(first)] = root(second)
    return len({root(index) for index in range(size)}) <= 1
