"""Hidden tastes: signs, noise, and that they read text alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo import tastes
from demo.settings import DEMO_SEED
from shared.intervals import wilson

PROMPT = "How do I fix the router?"
BEST = "Happy to help! Unplug the router for 30 seconds."


@given(st.text(max_size=300), st.text(max_size=600))
def test_features_stay_in_bounds(prompt: str, answer: str) -> None:
    assert all(-1 <= value <= 1 for value in tastes.notice(prompt, answer).values())


@pytest.mark.parametrize(
    ("feature", "worse"),
    [
        ("tone", "Obviously. Unplug the router for 30 seconds."),
        ("relevance", "Happy to help! Unplug the printer for 30 seconds."),
        ("concreteness", "Happy to help! The router is usually fine somehow."),
        ("brevity", BEST + " Many customers ask the same every week." * 2),
        ("stopping", BEST + " Unplug the router for 30 sec"),
    ],
)
def test_each_feature_sees_what_it_is_named_for(feature: str, worse: str) -> None:
    good, bad = tastes.notice(PROMPT, BEST), tastes.notice(PROMPT, worse)
    assert getattr(good, feature) > getattr(bad, feature)


def test_repeating_oneself_is_not_stopping() -> None:
    assert tastes.notice(PROMPT, "The router reaches 40 metres. " * 2).stopping < 0


def test_seeds_differ_in_the_signs_of_tone_and_brevity() -> None:
    drawn = [tastes.population(seed, size=5) for seed in range(12)]
    assert {(each.likes_blunt, each.likes_terse) for each in drawn} == {
        (blunt, terse) for blunt in (True, False) for terse in (True, False)
    }


def test_the_demo_and_the_terse_blunt_seed_are_what_the_readme_says() -> None:
    assert not tastes.population(DEMO_SEED, size=1).likes_blunt
    other = tastes.population(11, size=1)
    assert other.likes_blunt
    assert other.likes_terse


def test_a_population_is_the_same_for_the_same_seed_with_some_careless_people() -> None:
    people = tastes.population(3)
    assert people == tastes.population(3)
    careless = sum(person.careless for person in people.people) / len(people.people)
    assert 0.04 < careless < 0.13


def test_people_mostly_prefer_what_the_crowd_likes_but_not_always() -> None:
    crowd = tastes.population(3)
    rng = random.Random(0)
    bad = "Obviously. The printer is usually fine somehow."
    wins = sum(rng.choice(crowd.people).prefers(PROMPT, BEST, bad, rng) for _ in range(2000))
    assert 0.9 < wins / 2000 < 1.0


def test_equal_answers_tie_and_bad_ones_are_both_bad() -> None:
    crowd = tastes.population(3)
    reader = next(person for person in crowd.people if not person.careless)
    rng = random.Random(0)
    assert reader.compare(PROMPT, BEST, f" {BEST} ", rng) == "tie"
    assert reader.compare(PROMPT, "Obviously. No", "Not again. No", rng) == "both_bad"


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_contains_the_share(wins: int, trials: int) -> None:
    wins = min(wins, trials)
    low, high = wilson(wins, trials)
    assert 0 <= low <= wins / trials + 1e-9
    assert wins / trials - 1e-9 <= high <= 1


def test_wilson_of_a_known_share() -> None:
    low, high = wilson(65, 100)
    assert (low, high) == pytest.approx((0.5525, 0.7364), abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0)
