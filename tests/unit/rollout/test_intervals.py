"""Confidence sequences for people: they cover, they shrink, and the margin is on the harm's side."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from services.rollout.counts import ArmCounts, Arms, JudgeState
from services.rollout.intervals import MAX_POINTS, figures, interval, interval_series
from services.rollout.strategy import JudgeSettings

SETTINGS = JudgeSettings()
ERRORS, SATISFACTION = figures(SETTINGS)[:2]


def judged(candidate: ArmCounts, stable: ArmCounts) -> JudgeState:
    return JudgeState(totals=Arms(candidate=candidate, stable=stable))


def test_the_interval_covers_the_difference_at_every_look_and_shrinks() -> None:
    """40 rollouts at 2 % and 1 %: alpha 0.1 would allow 4 that leave it once."""
    generator = np.random.default_rng(1)
    misses, widths = 0, list[float]()
    for _ in range(40):
        candidate, stable, left = ArmCounts(), ArmCounts(), False
        for look in range(30):
            for_c = ArmCounts(requests=100, failures=int(generator.binomial(100, 0.02)))
            for_s = ArmCounts(requests=100, failures=int(generator.binomial(100, 0.01)))
            candidate, stable = candidate + for_c, stable + for_s
            found = interval(ERRORS, judged(candidate, stable), 0.1)
            assert found is not None
            left = left or not found["low"] <= 0.01 <= found["high"]
            if look in (0, 29):
                widths.append(found["high"] - found["low"])
        misses += left
    assert misses <= 4
    assert all(late < early for early, late in zip(widths[::2], widths[1::2], strict=True))


def test_the_margin_lies_where_the_harm_is() -> None:
    state = judged(
        ArmCounts(requests=500, failures=10, scores=100, score_sum=70),
        ArmCounts(requests=500, failures=10, scores=100, score_sum=80),
    )
    errors, scores = interval(ERRORS, state, 0.01), interval(SATISFACTION, state, 0.01)
    assert errors is not None
    assert scores is not None
    assert errors["allowed"] == 0.01
    assert round(scores["allowed"], 6) == -0.08
    assert scores["difference"] == -0.1


def test_a_series_is_bounded_and_ends_at_the_newest_state() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    arm = ArmCounts(requests=10)
    states = [(at + timedelta(minutes=n), judged(arm, arm)) for n in range(500)]
    series = interval_series(SETTINGS, states)
    assert [one["criterion"] for one in series] == ["errors", "slow_ratio"]
    points = series[0]["points"]
    assert len(points) <= MAX_POINTS
    assert points[-1]["at"] == states[-1][0].isoformat()
    assert interval_series(SETTINGS, [(at, JudgeState())]) == []
