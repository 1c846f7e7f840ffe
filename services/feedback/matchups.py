"""Matchups: which two versions a comparison shows, and on which side. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from shared.ranking.gains import gains
from shared.registry.routing import RoutingState
from shared.registry.versions import Version

MAX_SEED = 2**31 - 1
COVERAGE = 0.25
"""Share of the mean pair's votes that every pair gets."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One side: the version that answers, and the seed it samples with."""

    version: str
    seed: int


@dataclass(frozen=True, slots=True)
class Matchup:
    """The two sides as shown. `stand_in`, if set, is the fallback version of a side that fails."""

    left: Contender
    right: Contender
    stand_in: str = ""

    @property
    def same_version(self) -> bool:
        """True where only sampling tells the sides apart."""
        return self.left.version == self.right.version


def opponents(state: RoutingState, versions: Iterable[Version]) -> tuple[str, str]:
    """The versions to compare where the caller names none.

    Stable meets the candidate of a rollout, else the version retired last (the one that the
    engines keep loaded), else itself.
    """
    if state.candidate:
        return state.stable, state.candidate
    retired = [
        version
        for version in versions
        if version.record.model == state.model and version.is_way_back
    ]
    if not retired:
        return state.stable, state.stable
    latest = max(retired, key=lambda version: version.state.at if version.state else state.at)
    return state.stable, latest.record.version


def informative_pair(
    versions: Sequence[str], wins: Mapping[tuple[str, str], float], rng: random.Random
) -> tuple[str, str]:
    """The two of several versions whose comparison tells most of their ranking.

    A pair that has less than COVERAGE of the mean pair's votes comes first, so that all pairs are
    covered over time. `wins` has how often the first of two versions won over the second.
    """
    pairs = list(combinations(versions, 2))
    votes = {
        (first, second): wins.get((first, second), 0.0) + wins.get((second, first), 0.0)
        for first, second in pairs
    }
    least = min(votes.values())
    if least <= COVERAGE * sum(votes.values()) / len(pairs):
        return rng.choice([pair for pair in pairs if votes[pair] == least])
    gained = gains(versions, wins)
    most = max(gained.values())
    return rng.choice([pair for pair in pairs if gained[pair] == most])


def matchup(first: str, second: str, *, rng: random.Random, stand_in: str = "") -> Matchup:
    """Two versions on random sides, each with a seed of its own."""
    seeds = rng.sample(range(MAX_SEED), 2)
    contenders = [Contender(first, seeds[0]), Contender(second, seeds[1])]
    rng.shuffle(contenders)
    return Matchup(contenders[0], contenders[1], stand_in)
