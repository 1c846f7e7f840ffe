"""Rater marks: bursts, position bias and outlier raters, found in the choices of raters. Pure.

The tests of position bias and of outliers are tests by betting: a rater is marked once a wager
against honesty has grown 1 / alpha fold, so looking after every choice is valid (Ville 1939; Shafer
2021, JRSS A 184, 407-431). Choices are folded in the order of their times, and of their names.
"""

# pyright: strict
from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

BEFORE = 10
"""Choices that each side of a pair of versions is taken to have had: it draws a share that few others
gave towards a half, so that a bet on it is careful."""
MIN_OTHERS = 20
"""Choices of others between two versions before a rater is compared with them."""


class Suspicion(StrEnum):
    """Why a choice is kept out of datasets."""

    burst = "burst"
    """More choices in a short time than a person reads."""
    position_bias = "position_bias"
    """The rater prefers a side, and sides are random."""
    outlier_rater = "outlier_rater"
    """The rater disagrees with the others beyond chance."""


class RaterRules(BaseModel):
    """When a choice is suspicious."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    burst: int = Field(default=20, ge=0, description="choices in `burst_s` that are read; 0: any")
    burst_s: float = Field(default=60.0, gt=0)
    alpha: float = Field(
        default=0.001, ge=0, lt=0.5, description="honest raters marked by a test; 0: no test"
    )


@dataclass(frozen=True, slots=True)
class RaterChoice:
    """One rater's choice."""

    name: str
    rater: str
    at: datetime
    side: str = ""
    """left or right, where the chosen answer stood; empty where there are no sides."""
    chosen_version: str = ""
    rejected_version: str = ""


@dataclass(slots=True)
class _Rater:
    left: int = 0
    right: int = 0
    log_disagreement: float = 0.0
    biased: bool = False
    outlier: bool = False


def suspicions(choices: Iterable[RaterChoice], rules: RaterRules) -> dict[str, Suspicion]:
    """Suspicious choices by name. A marked rater's earlier choices are suspicious too."""
    ordered = sorted(choices, key=lambda one: (one.at, one.name))
    found: dict[str, Suspicion] = {}
    raters: defaultdict[str, _Rater] = defaultdict(_Rater)
    duels: defaultdict[tuple[str, str], defaultdict[str, int]] = defaultdict(
        lambda: defaultdict(int)
    )
    limit = math.log(1 / rules.alpha) if rules.alpha else math.inf
    for one in ordered:
        state = raters[one.rater]
        state.left += one.side == "left"
        state.right += one.side == "right"
        state.biased |= position_evidence(state.left, state.right) >= limit
        if one.chosen_version and one.rejected_version not in ("", one.chosen_version):
            state.log_disagreement += _disagreement(one, duels)
            state.outlier |= state.log_disagreement >= limit
    for one in ordered:
        state = raters[one.rater]
        if state.outlier and one.chosen_version:
            found[one.name] = Suspicion.outlier_rater
        elif state.biased and one.side:
            found[one.name] = Suspicion.position_bias
    for name in _bursts(ordered, rules):
        found.setdefault(name, Suspicion.burst)
    return found


def position_evidence(left: int, right: int) -> float:
    """Logarithm of the wager against sides that do not matter, after so many choices of each.

    Krichevsky and Trofimov's mixture over all shares of left choices against a half (1981, IEEE
    Transactions on Information Theory 27, 199-207).
    """
    both = left + right
    mixture = math.lgamma(left + 0.5) + math.lgamma(right + 0.5) - math.lgamma(both + 1)
    return mixture - 2 * math.lgamma(0.5) + both * math.log(2)


def _disagreement(
    one: RaterChoice, duels: defaultdict[tuple[str, str], defaultdict[str, int]]
) -> float:
    """Growth of the wager that a rater chooses at random or against the others' majority.

    What the others chose before is the share that an honest rater is expected to have. The rater's
    own choices are not among them.
    """
    wins = duels[one.chosen_version, one.rejected_version]
    losses = duels[one.rejected_version, one.chosen_version]
    agree = sum(wins.values()) - wins[one.rater]
    differ = sum(losses.values()) - losses[one.rater]
    wins[one.rater] += 1
    if agree + differ < MIN_OTHERS:
        return 0.0
    expected = (agree + BEFORE) / (agree + differ + 2 * BEFORE)
    return math.log((0.5 * 0.5 + 0.5 * (1 - expected)) / expected)


def _bursts(ordered: list[RaterChoice], rules: RaterRules) -> set[str]:
    """Choices in any stretch of `burst_s` seconds that holds more than `burst` of one rater's."""
    found: set[str] = set()
    if not rules.burst:
        return found
    recent: defaultdict[str, deque[RaterChoice]] = defaultdict(deque)
    for one in ordered:
        window = recent[one.rater]
        window.append(one)
        while (one.at - window[0].at).total_seconds() > rules.burst_s:
            window.popleft()
        if len(window) > rules.burst:
            found.update(choice.name for choice in window)
    return found
