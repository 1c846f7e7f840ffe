"""Audit of a ranking: what its order rests on beside the answers. Pure.

Each check fires only where an interval leaves the range that is of no matter, so that chance alone
raises nothing. Checks of many things at once share the error of 5 % (Bonferroni).
"""

# pyright: strict
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from statistics import NormalDist
from typing import Literal

from shared.intervals import wilson
from shared.ranking.board import Board, Covariate, FittedBoard, RankedVote
from shared.ranking.bradley_terry import versus
from shared.ranking.standings import ELO_PER_LOGIT, effect

Check = Literal[
    "order_unresolved",
    "versions_unlinked",
    "few_votes",
    "position_bias",
    "length_bias",
    "order_by_position",
    "order_by_length",
    "order_by_ties",
    "cycle",
    "votes_alike",
    "one_rater",
]

ERROR = 0.05
"""Of all questions of one check together."""
UNRESOLVED = 0.25
"""Share of neighbours that votes may fail to tell apart."""
FEW = 0.2
"""A version with less than this share of the mean version's votes has few."""
NO_MATTER = 10.0
"""Points that a side or a doubled length may be worth: 1.4 % of wins between equals."""
ALIKE = 1.15
"""How much wider intervals by raters may be than intervals by votes."""


@dataclass(frozen=True, slots=True)
class Defect:
    """What a check found, in words, and the versions that it concerns."""

    check: Check
    message: str
    versions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Two versions that follow each other in the order of those that votes link."""

    upper: str
    lower: str
    told_apart: bool


def audit(votes: Iterable[RankedVote]) -> tuple[Defect, ...]:
    """Audit the ranking by some votes.

    Raises:
        TooManyVersions: there are more than MAX_VERSIONS.

    """
    board = Board.of(votes)
    if not board.votes:
        return ()
    fitted = board.fitted()
    near = neighbours(fitted)
    return tuple(
        chain(
            _unlinked(board),
            _unresolved(near),
            _few_votes(board),
            _effects(board, near),
            _order_by_ties(board, near),
            _cycle(board),
            _votes_alike(fitted),
            _one_rater(fitted),
        )
    )


def neighbours(fitted: FittedBoard) -> list[Neighbours]:
    """Neighbours in the order of strengths, and whether votes tell them apart, all at once."""
    places = fitted.board.places
    pairs = [
        pair
        for group in fitted.board.groups()
        for pair in pairwise(sorted(group, key=fitted.of, reverse=True))
    ]
    deviations = fitted.safe_deviations([versus(places[a], places[b]) for a, b in pairs])
    return [
        Neighbours(
            upper, lower, fitted.of(upper) - fitted.of(lower) > _quantile(len(pairs)) * deviation
        )
        for (upper, lower), deviation in zip(pairs, deviations, strict=True)
    ]


def _quantile(questions: int) -> float:
    """Standard normal quantile at which so many two-sided questions share ERROR."""
    return NormalDist().inv_cdf(1 - ERROR / 2 / max(1, questions))


def _unlinked(board: Board) -> Iterator[Defect]:
    groups = board.groups()
    if len(groups) > 1:
        yield Defect(
            "versions_unlinked",
            "votes do not link all versions: compare ratings only within "
            + " | ".join(map(", ".join, groups)),
            tuple(chain.from_iterable(groups[1:])),
        )


def _unresolved(near: Sequence[Neighbours]) -> Iterator[Defect]:
    open_ones = [one for one in near if not one.told_apart]
    if len(open_ones) > UNRESOLVED * len(near):
        yield Defect(
            "order_unresolved",
            f"votes do not tell {len(open_ones)} of {len(near)} neighbours apart; more votes are "
            "needed on " + ", ".join(f"{one.upper} / {one.lower}" for one in open_ones),
            tuple(dict.fromkeys(name for one in open_ones for name in (one.upper, one.lower))),
        )


def _few_votes(board: Board) -> Iterator[Defect]:
    counts = Counter(name for vote in board.votes for name in (vote.left, vote.right))
    mean = counts.total() / len(counts)
    if few := tuple(name for name in board.versions if counts[name] < FEW * mean):
        yield Defect(
            "few_votes",
            f"the mean version has {mean:.0f} votes, but "
            + ", ".join(f"{name} {counts[name]}" for name in few),
            few,
        )


def _effects(board: Board, near: Sequence[Neighbours]) -> Iterator[Defect]:
    """Biases for a side and a length, and neighbours whose order is due to them."""
    both = board.fitted("position", "length")
    named: tuple[tuple[Covariate, Check, Check, str], ...] = (
        ("position", "position_bias", "order_by_position", "the left side"),
        ("length", "length_bias", "order_by_length", "twice the length"),
    )
    for covariate, bias, order, words in named:
        found = effect(both, covariate)
        if found is None:
            continue
        if found.low > NO_MATTER or found.high < -NO_MATTER:
            yield Defect(
                bias,
                f"{words} is worth {found.points:+.0f} points "
                f"({found.low:+.0f} to {found.high:+.0f}) between equals",
            )
        yield from _reversed(near, board.fitted(covariate), order, f"the worth of {words}")


def _order_by_ties(board: Board, near: Sequence[Neighbours]) -> Iterator[Defect]:
    decided = board.only(lambda vote: vote.decided)
    if len(decided.votes) < len(board.votes):
        yield from _reversed(near, decided.fitted(), "order_by_ties", "ties and both bad")


def _reversed(
    near: Sequence[Neighbours], other: FittedBoard, check: Check, without: str
) -> Iterator[Defect]:
    turned = [one for one in near if one.told_apart and other.of(one.upper) <= other.of(one.lower)]
    if turned:
        yield Defect(
            check,
            f"without {without} "
            + ", ".join(f"{one.lower} stands above {one.upper}" for one in turned),
            tuple(dict.fromkeys(name for one in turned for name in (one.lower, one.upper))),
        )


def _cycle(board: Board) -> Iterator[Defect]:
    """Versions of which each beats the next and the last the first, beyond chance."""
    places = board.places
    wins: Counter[tuple[int, int]] = Counter()
    for vote in board.votes:
        if vote.decided:
            left, right = places[vote.left], places[vote.right]
            wins[(left, right) if vote.outcome == "left" else (right, left)] += 1
    met = {(min(pair), max(pair)) for pair in wins}
    # As bits of an integer: the versions that a version beats, then those that it beats by others.
    beats = [0] * len(places)
    for (winner, loser), won in wins.items():
        low, _ = wilson(won, won + wins[loser, winner], _quantile(len(met)))
        if low > 0.5:
            beats[winner] |= 1 << loser
    for via in range(len(beats)):
        beats = [one | beats[via] if one >> via & 1 else one for one in beats]
    if circle := tuple(name for name in board.versions if beats[places[name]] >> places[name] & 1):
        yield Defect(
            "cycle",
            f"{', '.join(circle)} beat each other in a circle, which no rating can say",
            circle,
        )


def _votes_alike(fitted: FittedBoard) -> Iterator[Defect]:
    if not fitted.board.by_rater:
        return
    each = [((at, 1.0),) for at in range(len(fitted.board.versions))]
    by_rater, by_vote = (sum(fitted.deviations(each, by_rater=one)) for one in (True, False))
    if by_rater > ALIKE * by_vote:
        yield Defect(
            "votes_alike",
            f"votes of one rater are alike: intervals are {by_rater / by_vote:.2f} times as wide "
            "as if every vote were another person's",
        )


def _one_rater(fitted: FittedBoard) -> Iterator[Defect]:
    """A rater without whom a version leaves the interval that independent votes would give it."""
    board = fitted.board
    if len(board.raters) < 2:
        return
    size = len(board.versions)
    each = [((at, 1.0),) for at in range(size)]
    limits = [_quantile(size) * deviation for deviation in fitted.deviations(each, by_rater=False)]

    def beyond(moved: Sequence[float]) -> tuple[float, int]:
        return max(
            ((abs(moved[at]) / limits[at], at) for at in range(size) if limits[at]),
            default=(0.0, 0),
        )

    moves = [(beyond(moved), rater) for rater, moved in fitted.rater_influences() if rater]
    _, rater = max(moves)
    # To the first order above, to find the rater; now without the rater's votes.
    rest = board.only(lambda vote: vote.rater != rater)
    if not rest.votes:
        return
    moved = [one - other for one, other in zip(fitted.values, rest.fitted().values, strict=True)]
    how_far, at = beyond(moved)
    if how_far > 1:
        share = 1 - len(rest.votes) / len(board.votes)
        yield Defect(
            "one_rater",
            f"rater {rater}, with {share:.0%} of the votes, moves {board.versions[at]} by "
            f"{ELO_PER_LOGIT * moved[at]:+.0f} points, beyond "
            f"{ELO_PER_LOGIT * limits[at]:.0f} of chance",
            (board.versions[at],),
        )
