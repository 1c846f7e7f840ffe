"""Who meets whom, and on which side."""

from __future__ import annotations

import math
import random
from datetime import timedelta

from services.feedback.matchups import COVERAGE, informative_pair, matchup, opponents
from shared.contracts.events.versions import Lifecycle, state_key
from shared.registry.routing import RoutingTable
from shared.registry.versions import Registry
from shared.testing.clock import START
from tests.support.rollouts import add_version, set_routing, version_state


def meet(registry: Registry, *, stable: str, candidate: str = "") -> tuple[str, str]:
    table = RoutingTable()
    set_routing(table, stable=stable, candidate=candidate)
    state = table.get("assistant")
    assert state is not None
    return opponents(state, registry.versions())


def test_the_candidate_of_a_rollout_comes_first() -> None:
    registry = Registry()
    add_version(registry, "v1.0", Lifecycle.retired)
    assert meet(registry, stable="v1.1", candidate="v1.2") == ("v1.1", "v1.2")


def test_else_the_version_retired_last_and_never_a_rejected_one() -> None:
    registry = Registry()
    add_version(registry, "v1.0", Lifecycle.retired, at=START)
    add_version(registry, "v1.1", Lifecycle.retired, at=START + timedelta(days=2))
    add_version(registry, "v1.2", Lifecycle.stable, at=START + timedelta(days=2))
    add_version(registry, "v1.3", Lifecycle.rejected, at=START + timedelta(days=3))
    add_version(
        registry, "other-v1", Lifecycle.retired, model="other", at=START + timedelta(days=9)
    )
    assert meet(registry, stable="v1.2") == ("v1.2", "v1.1")


def test_a_version_that_a_person_retired_meets_nobody() -> None:
    registry = Registry()
    add_version(registry, "v1.0", Lifecycle.retired)
    by_hand = version_state("v1.0", Lifecycle.retired).model_copy(update={"actor": "key"})
    registry.apply(state_key("v1.0"), by_hand.to_json())
    add_version(registry, "v1.1", Lifecycle.stable)
    assert meet(registry, stable="v1.1") == ("v1.1", "v1.1")


def test_else_stable_meets_itself() -> None:
    assert meet(Registry(), stable="v1.0") == ("v1.0", "v1.0")


def test_sides_and_seeds_are_random_and_seeds_differ() -> None:
    rng = random.Random(3)
    matches = [matchup("a", "b", rng=rng) for _ in range(1000)]
    assert 420 < sum(match.left.version == "a" for match in matches) < 580
    assert all(match.left.seed != match.right.seed for match in matches)
    assert all({match.left.version, match.right.version} == {"a", "b"} for match in matches)


def test_of_several_versions_all_pairs_are_covered_and_close_ones_most() -> None:
    strengths = {"a": 2.0, "b": 0.1, "c": 0.0, "d": -2.0}
    rng = random.Random(4)
    wins: dict[tuple[str, str], float] = {}
    for _ in range(600):
        first, second = informative_pair(tuple(strengths), wins, rng)
        chance = 1 / (1 + math.exp(strengths[second] - strengths[first]))
        won = (first, second) if rng.random() < chance else (second, first)
        wins[won] = wins.get(won, 0.0) + 1.0
    votes = {
        pair: wins.get(pair, 0.0) + wins.get(pair[::-1], 0.0)
        for pair in (("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d"))
    }
    assert sum(votes.values()) == 600
    assert min(votes.values()) >= COVERAGE * 600 / 6 - 1
    # Whoever wins nearly always tells little: the far pair is shown no more than coverage asks.
    assert votes["a", "d"] == min(votes.values())
    assert votes["b", "c"] > 1.5 * votes["a", "d"]


def test_versions_without_votes_are_shown_in_any_order() -> None:
    shown = {informative_pair(("a", "b", "c"), {}, random.Random(seed)) for seed in range(40)}
    assert shown == {("a", "b"), ("a", "c"), ("b", "c")}
