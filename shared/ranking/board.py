"""Votes between versions as a Bradley-Terry model with effects of side and length. Pure."""

# pyright: strict
from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from shared.ranking.bradley_terry import Matrix, Row, Terms, covariance, fit, influence, versus

Outcome = Literal["left", "right", "tie", "both_bad"]
Covariate = Literal["position", "length"]

MAX_VERSIONS = 200
MAX_DOUBLINGS = 4.0
"""An answer more than 16 times as long as the other counts as 16 times as long."""
MIN_VOTES = 30
MIN_RATERS = 20
"""From so many raters on, raters are resampled and not votes: fewer say too little of others."""


@dataclass(frozen=True, slots=True)
class RankedVote:
    """What the ranking takes of one vote; lengths are in characters, a rater may be unknown."""

    left: str
    right: str
    outcome: Outcome
    left_length: int = 0
    right_length: int = 0
    rater: str = ""

    @property
    def decided(self) -> bool:
        """Whether one answer won."""
        return self.outcome in ("left", "right")

    @property
    def won(self) -> float:
        """What the left answer got: 1, 0 or, of a tie and of both bad, half."""
        return {"left": 1.0, "right": 0.0}.get(self.outcome, 0.5)

    @property
    def doublings(self) -> float:
        """How often the right length is doubled in the left one, to a tenth."""
        ratio = math.log2((self.left_length + 1) / (self.right_length + 1))
        return round(max(-MAX_DOUBLINGS, min(MAX_DOUBLINGS, ratio)), 1)


class TooManyVersions(ValueError):
    """More versions than can be ranked together."""


@dataclass(frozen=True, slots=True)
class Board:
    """Votes between different versions, and the versions by name."""

    versions: tuple[str, ...]
    votes: tuple[RankedVote, ...]

    @classmethod
    def of(cls, votes: Iterable[RankedVote]) -> Board:
        """The board of some votes; those of a version against itself are left out.

        Raises:
            TooManyVersions: there are more than MAX_VERSIONS.

        """
        kept = tuple(vote for vote in votes if vote.left != vote.right)
        versions = sorted({name for vote in kept for name in (vote.left, vote.right)})
        if len(versions) > MAX_VERSIONS:
            raise TooManyVersions(
                f"{len(versions)} versions; at most {MAX_VERSIONS} are ranked at once"
            )
        return cls(tuple(versions), kept)

    @property
    def places(self) -> dict[str, int]:
        """Each version's place among the parameters."""
        return {version: index for index, version in enumerate(self.versions)}

    @property
    def raters(self) -> frozenset[str]:
        """The raters whom votes name."""
        return frozenset(vote.rater for vote in self.votes if vote.rater)

    @property
    def by_rater(self) -> bool:
        """Whether there are raters enough to take them, and not votes, as independent."""
        return len(self.raters) >= MIN_RATERS

    def only(self, wanted: Callable[[RankedVote], bool]) -> Board:
        """The same versions with some of the votes."""
        return Board(self.versions, tuple(vote for vote in self.votes if wanted(vote)))

    def fitted(self, *covariates: Covariate) -> FittedBoard:
        """Strengths, and effects of covariates."""
        places = self.places
        effects: dict[Covariate, int] = {
            name: len(places) + index for index, name in enumerate(covariates)
        }
        margins: list[Terms] = []
        for vote in self.votes:
            terms = versus(places[vote.left], places[vote.right])
            if "position" in effects:
                terms = (*terms, (effects["position"], 1.0))
            if "length" in effects and vote.doublings:
                terms = (*terms, (effects["length"], vote.doublings))
            margins.append(terms)
        kinds = Counter((terms, vote.won) for terms, vote in zip(margins, self.votes, strict=True))
        rows = [(terms, won, float(count)) for (terms, won), count in kinds.items()]
        values = fit(rows, [0.0] * (len(places) + len(effects)))
        return FittedBoard(self, margins, rows, values, effects)

    def groups(self) -> list[list[str]]:
        """Versions that votes link, directly or through others; the largest group first."""
        group = {version: version for version in self.versions}

        def root(version: str) -> str:
            while group[version] != version:
                group[version] = group[group[version]]
                version = group[version]
            return version

        for vote in self.votes:
            group[root(vote.left)] = root(vote.right)
        found: dict[str, list[str]] = defaultdict(list)
        for version in self.versions:
            found[root(version)].append(version)
        return sorted(found.values(), key=len, reverse=True)


@dataclass(frozen=True)
class FittedBoard:
    """Strengths of a board's versions, then effects of covariates, in logits."""

    board: Board
    margins: Sequence[Terms]
    """Of the left side of each vote."""
    rows: Sequence[Row]
    values: Sequence[float]
    effects: Mapping[Covariate, int]
    """The places of effects among the values."""

    @cached_property
    def spread(self) -> Matrix:
        """The posterior's covariance."""
        return covariance(self.rows, self.values)

    def of(self, version: str) -> float:
        """A version's strength."""
        return self.values[self.board.versions.index(version)]

    def rater_influences(self) -> Iterator[tuple[str, list[float]]]:
        """How far each rater's votes move each value; a vote that names none stands alone."""
        cast: dict[str, list[Row]] = defaultdict(list)
        for terms, vote in zip(self.margins, self.board.votes, strict=True):
            row = (terms, vote.won, 1.0)
            if vote.rater:
                cast[vote.rater].append(row)
            else:
                yield "", influence([row], self.values, self.spread)
        for rater, rows in cast.items():
            yield rater, influence(rows, self.values, self.spread)

    def deviations(self, contrasts: Sequence[Terms], *, by_rater: bool) -> list[float]:
        """Standard deviations of some sums of values, with raters or votes as independent.

        Sandwich estimator (Liang and Zeger 1986, Biometrika 73, 13-22).
        """
        units: Iterable[tuple[float, list[float]]] = (
            ((1.0, moved) for _, moved in self.rater_influences())
            if by_rater
            else (
                (count, influence([(terms, won, 1.0)], self.values, self.spread))
                for terms, won, count in self.rows
            )
        )
        variances = [0.0] * len(contrasts)
        for count, moved in units:
            for index, terms in enumerate(contrasts):
                variances[index] += count * sum(factor * moved[at] for at, factor in terms) ** 2
        return list(map(math.sqrt, variances))

    def safe_deviations(self, contrasts: Sequence[Terms]) -> list[float]:
        """The wider of the deviations by votes and, of enough raters, by raters.

        Where a value has fewer than MIN_VOTES, the posterior's too: a sandwich of few votes that agree
        is too narrow.
        """
        votes: Counter[int] = Counter()
        for terms, _, count in self.rows:
            votes.update({at: int(count) for at, _ in terms})
        kinds = [self.deviations(contrasts, by_rater=False)]
        if self.board.by_rater:
            kinds.append(self.deviations(contrasts, by_rater=True))
        kinds.append(
            [
                math.sqrt(sum(a * b * self.spread[i][j] for i, a in terms for j, b in terms))
                if min(votes[at] for at, _ in terms) < MIN_VOTES
                else 0.0
                for terms in contrasts
            ]
        )
        return [max(one) for one in zip(*kinds, strict=True)]
