"""When a policy games its reward model: proxy and judge part beyond chance, twice in a row."""

from __future__ import annotations

from services.training.trainers.overoptimisation import Check, best, parted

PROMPTS = 16


def checks(*means: tuple[float, float]) -> list[Check]:
    """Checks with these mean scores by proxy and judge; each prompt differs by its own constant."""
    return [
        Check(step, [proxy + n for n in range(PROMPTS)], [judge + n for n in range(PROMPTS)])
        for step, (proxy, judge) in enumerate(means)
    ]


def test_a_judge_that_falls_twice_while_the_proxy_rises_has_parted() -> None:
    assert parted(checks((0, 0), (1, 1), (2, 0.5), (3, 0.2)))


def test_one_fall_alone_is_not_enough() -> None:
    assert not parted(checks((0, 0), (1, 1), (2, 0.5)))
    assert not parted(checks((0, 0), (1, 1), (2, 0.5), (3, 1.0)))


def test_both_scores_that_fall_are_no_gaming() -> None:
    assert not parted(checks((0, 0), (1, 1), (0.9, 0.5), (0.8, 0.2)))


def test_both_scores_that_rise_are_no_gaming() -> None:
    assert not parted(checks((0, 0), (1, 1), (2, 2), (3, 3)))


def test_a_fall_within_chance_is_none() -> None:
    first = Check(0, [0.0] * PROMPTS, [0.0] * PROMPTS)
    noisy = [0.9 if n % 2 else -1.0 for n in range(PROMPTS)]
    later = [Check(step, [1.0] * PROMPTS, noisy) for step in (1, 2)]
    assert not parted([first, *later])


def test_the_first_of_the_best_is_kept() -> None:
    assert best(checks((0, 0), (1, 2), (2, 2), (3, 1))).step == 1
