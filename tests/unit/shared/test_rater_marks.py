"""Suspicious raters: found by tests that hold whenever one looks, honest ones hardly ever."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.rater_marks import RaterChoice, RaterRules, Suspicion, position_evidence, suspicions

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
RULES = RaterRules()


def choice(
    number: int, rater: str, seconds: float, side: str = "", better: bool | None = None
) -> RaterChoice:
    versions = {True: ("a", "b"), False: ("b", "a"), None: ("", "")}[better]
    at = START + timedelta(seconds=seconds)
    return RaterChoice(f"{rater}-{number:04}", rater, at, side, *versions)


def test_more_choices_than_can_be_read_are_a_burst_and_the_others_stay() -> None:
    slow = [choice(n, "r", 100 * n) for n in range(30)]
    fast = [choice(100 + n, "r", 10_000 + 2 * n) for n in range(21)]
    elsewhere = [choice(n, "s", 10_000 + 20 * n) for n in range(21)]
    found = suspicions([*fast, *slow, *elsewhere], RULES)
    assert found == {one.name: Suspicion.burst for one in fast}
    assert suspicions(fast[:20], RULES) == {}
    assert suspicions(fast, RaterRules(burst=0)) == {}


def test_who_takes_the_left_side_is_found_and_earlier_choices_go_too() -> None:
    biased = [choice(n, "r", 100 * n, "left") for n in range(15)]
    found = suspicions(biased, RULES)
    assert found == {one.name: Suspicion.position_bias for one in biased}
    assert suspicions(biased[:9], RULES) == {}


@pytest.mark.parametrize("seed", [1, 2])
def test_of_a_thousand_honest_raters_looked_at_after_every_choice_few_are_marked(seed: int) -> None:
    rng = random.Random(seed)
    marked = 0
    for _ in range(1000):
        left = right = 0
        for _ in range(200):
            left, right = (left + 1, right) if rng.random() < 0.5 else (left, right + 1)
            if position_evidence(left, right) >= math.log(1 / RULES.alpha):
                marked += 1
                break
    assert marked <= 4


def crowd(rng: random.Random, raters: int, votes: int, share: float) -> list[RaterChoice]:
    return [
        choice(n, f"r{who}", 1000 * n + who, better=rng.random() < share)
        for who in range(raters)
        for n in range(votes)
    ]


def test_who_votes_against_everyone_is_found_and_nobody_else() -> None:
    rng = random.Random(5)
    honest = crowd(rng, 40, 60, 0.75)
    against = [choice(n, "odd", 1000 * n + 999, better=rng.random() < 0.25) for n in range(60)]
    found = suspicions([*honest, *against], RULES)
    assert {name.partition("-")[0] for name in found} == {"odd"}
    assert set(found.values()) == {Suspicion.outlier_rater}
    assert len(found) == len(against)


def test_of_forty_times_forty_honest_raters_few_are_outliers() -> None:
    marked: set[str] = set()
    for seed in range(40):
        found = suspicions(crowd(random.Random(seed), 40, 40, 0.7), RULES)
        marked |= {f"{seed}/{name.partition('-')[0]}" for name in found}
    assert len(marked) <= 5


@given(st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_nothing(rng: random.Random) -> None:
    choices = [
        *[choice(n, "fast", n) for n in range(25)],
        *[choice(n, "left", 100 * n, "left") for n in range(15)],
    ]
    expected = suspicions(choices, RULES)
    rng.shuffle(choices)
    assert suspicions(choices, RULES) == expected
