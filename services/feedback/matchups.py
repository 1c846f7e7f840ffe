"""Matchups: which two versions a comparison shows, and on which side. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from shared.contracts.events.versions import Lifecycle
from shared.registry.routing import RoutingState
from shared.registry.versions import Version

MAX_SEED = 2**31 - 1


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
        if version.record.model == state.model
        and version.state is not None
        and version.lifecycle is Lifecycle.retired
    ]
    if not retired:
        return state.stable, state.stable
    latest = max(retired, key=lambda version: version.state.at if version.state else state.at)
    return state.stable, latest.record.version


def matchup(first: str, second: str, *, rng: random.Random, stand_in: str = "") -> Matchup:
    """Two versions on random sides, each with a seed of its own."""
    seeds = rng.sample(range(MAX_SEED), 2)
    contenders = [Contender(first, seeds[0]), Contender(second, seeds[1])]
    rng.shuffle(contenders)
    return Matchup(contenders[0], contenders[1], stand_in)
