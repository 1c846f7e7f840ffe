"""Standings of versions by votes: Bradley-Terry with intervals by the Bayesian bootstrap. Pure.

A tie is half a win for each side, and so is a vote for both bad. Beside the ratings stand the effects
of the side and of the length of an answer, and the ratings without these effects.
"""

# pyright: strict
from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal

from shared.intervals import TWO_SIDED_95, wilson
from shared.ranking.board import Board, Covariate, FittedBoard, RankedVote
from shared.ranking.bradley_terry import Row, fit, versus

ELO_PER_LOGIT = 400 / math.log(10)
MEAN_RATING = 1000.0
"""The ratings' mean. On Elo's scale 400 points more are odds of 10 to 1."""
DRAW_TOLERANCE = 1e-4
"""Of a strength in a resample, in logits: a fiftieth of a point."""
LEVEL = 0.95
"""Of intervals."""

_Cell = tuple[int, int, float]
"""Two versions, and what the first got of a vote: 1, 0 or half."""


@dataclass(frozen=True, slots=True)
class RankedVersion:
    """One version: its rating with a 95 % interval, and the best rank that the intervals allow.

    `controlled` is the rating had neither side nor length of an answer mattered.
    """

    version: str
    rating: float
    low: float
    high: float
    rank: int
    votes: int
    controlled: float


@dataclass(frozen=True, slots=True)
class ShareWithin:
    """A share of `of` votes with its Wilson interval at 95 %; without votes 0 to 1."""

    share: float
    low: float
    high: float
    of: int


@dataclass(frozen=True, slots=True)
class Effect:
    """What a side or a length is worth beside the answer, in points, with a 95 % interval."""

    points: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class VersionRanking:
    """Standings, best first, and what else the votes say.

    `left_wins` and `longer_wins` are shares of decided votes. Between versions of equal strength,
    `position` is what standing on the left is worth, and `length` what an answer twice as long is;
    None where no vote tells. `resampled` is what intervals take as independent. `connected` is False
    where votes never linked some versions, whose ratings then say nothing of each other. Votes of a
    version against itself are left out.
    """

    standings: tuple[RankedVersion, ...]
    votes: int
    raters: int
    resampled: Literal["raters", "votes"]
    ties: ShareWithin
    both_bad: ShareWithin
    left_wins: ShareWithin
    longer_wins: ShareWithin
    position: Effect | None
    length: Effect | None
    connected: bool


def rank(votes: Iterable[RankedVote], *, bootstraps: int = 1000, seed: int = 0) -> VersionRanking:
    """Rank versions by votes.

    Intervals are the percentiles of `bootstraps` fits in which each rater weighs Exp(1) (Rubin 1981,
    Annals of Statistics 9, 130-134), as votes of one rater are alike. Where votes name fewer than
    MIN_RATERS raters, each vote does: then the intervals take votes as independent.

    Raises:
        TooManyVersions: there are more than MAX_VERSIONS.

    """
    board = Board.of(votes)
    strengths = board.fitted().values
    resampled = _resampler(board, random.Random(seed))
    draws = [
        fit(resampled(), strengths, DRAW_TOLERANCE) for _ in range(bootstraps if board.votes else 0)
    ]
    controlled = board.fitted("position", "length")
    kept = board.votes
    return VersionRanking(
        standings=_standings(board, strengths, controlled, draws),
        votes=len(kept),
        raters=len(board.raters),
        resampled="raters" if board.by_rater else "votes",
        ties=share_within(sum(vote.outcome == "tie" for vote in kept), len(kept)),
        both_bad=share_within(sum(vote.outcome == "both_bad" for vote in kept), len(kept)),
        left_wins=_left_wins(kept),
        longer_wins=_longer_wins(kept),
        position=effect(controlled, "position"),
        length=effect(controlled, "length"),
        connected=len(board.groups()) <= 1,
    )


def rating(strength: float) -> float:
    """A strength in logits on Elo's scale."""
    return MEAN_RATING + ELO_PER_LOGIT * strength


def effect(fitted: FittedBoard, covariate: Covariate) -> Effect | None:
    """A covariate's effect with its interval; None where no vote tells."""
    at = fitted.effects[covariate]
    if not any(place == at for terms, _, _ in fitted.rows for place, _ in terms):
        return None
    (deviation,) = fitted.safe_deviations([((at, 1.0),)])
    points, half = (ELO_PER_LOGIT * one for one in (fitted.values[at], TWO_SIDED_95 * deviation))
    return Effect(points, points - half, points + half)


def share_within(successes: int, of: int) -> ShareWithin:
    """A share with its score interval."""
    return ShareWithin(successes / of if of else 0.0, *wilson(successes, of), of)


def _resampler(board: Board, rng: random.Random) -> Callable[[], list[Row]]:
    """Draws of a bootstrap: a row for each two versions, with the weights of its votes."""
    places, by_rater = board.places, board.by_rater
    number: dict[str, int] = {}
    alone: Counter[_Cell] = Counter()
    cast: dict[_Cell, list[int]] = defaultdict(list)
    for vote in board.votes:
        first, second, won = places[vote.left], places[vote.right], vote.won
        cell = (first, second, won) if first < second else (second, first, 1.0 - won)
        if vote.rater and by_rater:
            cast[cell].append(number.setdefault(vote.rater, len(number)))
        else:
            alone[cell] += 1
    # The weights' last is 0: with it a getter of one rater's weight gives a tuple, too.
    getters = {cell: itemgetter(*raters, -1) for cell, raters in cast.items()}
    cells = sorted({*alone, *getters})

    def draw() -> list[Row]:
        weights = [*(rng.expovariate(1.0) for _ in number), 0.0]
        won: dict[tuple[int, int], float] = defaultdict(float)
        votes: dict[tuple[int, int], float] = defaultdict(float)
        for cell in cells:
            # The sum of so many Exp(1) is a gamma variate.
            weight = rng.gammavariate(alone[cell], 1.0) if cell in alone else 0.0
            if getter := getters.get(cell):
                weight += sum(getter(weights))
            first, second, share = cell
            won[first, second] += share * weight
            votes[first, second] += weight
        return [(versus(*pair), won[pair] / cast, cast) for pair, cast in votes.items() if cast]

    return draw


def _standings(
    board: Board,
    strengths: Sequence[float],
    controlled: FittedBoard,
    draws: Sequence[Sequence[float]],
) -> tuple[RankedVersion, ...]:
    counts = Counter(name for vote in board.votes for name in (vote.left, vote.right))
    found: list[tuple[float, float, float, int]] = []
    for index, strength in enumerate(strengths):
        drawn = sorted(draw[index] for draw in draws) or [strength]
        cut = int((1 - LEVEL) / 2 * len(drawn))
        low, high = drawn[cut], drawn[len(drawn) - 1 - cut]
        found.append((rating(strength), rating(low), rating(high), index))
    found.sort(key=lambda one: (-one[0], one[3]))
    return tuple(
        RankedVersion(
            version=board.versions[index],
            rating=value,
            low=low,
            high=high,
            rank=1 + sum(other[1] > high for other in found),
            votes=counts[board.versions[index]],
            controlled=rating(controlled.values[index]),
        )
        for value, low, high, index in found
    )


def _left_wins(votes: Iterable[RankedVote]) -> ShareWithin:
    decided = [vote.outcome for vote in votes if vote.decided]
    return share_within(decided.count("left"), len(decided))


def _longer_wins(votes: Iterable[RankedVote]) -> ShareWithin:
    decided = [
        (vote.left_length > vote.right_length) == (vote.outcome == "left")
        for vote in votes
        if vote.decided and vote.left_length != vote.right_length
    ]
    return share_within(sum(decided), len(decided))
