"""Freeze windows: when they hold, and that no weight rises in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rollout import steps
from services.rollout.errors import BadStrategy
from services.rollout.freeze import FreezeWindow, frozen_until
from services.rollout.strategy_files import parse
from shared.contracts.events.rollouts import AnalysisOutcome, DecisionKind, Phase
from tests.unit.rollout.test_steps import BAD, begun, seen

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


def window(**fields: Any) -> FreezeWindow:
    return FreezeWindow.model_validate(fields)


WEEKEND = window(**{"days": ["Fri"], "from": "16:00", "to": "00:00"}), window(days=["Sat", "Sun"])


@pytest.mark.parametrize(
    ("hours", "ends"),
    [
        (0, None),
        (4 * 24 + 15.9, None),
        (4 * 24 + 16, 7 * 24),
        (5 * 24 + 3, 7 * 24),
        (7 * 24, None),
    ],
)
def test_windows_that_follow_each_other_are_one_freeze(hours: float, ends: float | None) -> None:
    end = frozen_until(WEEKEND, MONDAY + timedelta(hours=hours))
    assert end == (None if ends is None else MONDAY + timedelta(hours=ends))


def test_a_window_over_midnight_belongs_to_the_day_it_begins_on() -> None:
    nights = (window(**{"days": ["Mon"], "from": "22:00", "to": "06:00"}),)
    assert frozen_until(nights, MONDAY + timedelta(hours=5)) is None
    for hours in (22, 25, 29.9):
        end = frozen_until(nights, MONDAY + timedelta(hours=hours))
        assert end == MONDAY + timedelta(hours=30)


def test_a_window_is_in_its_own_time_zone() -> None:
    berlin = (
        window(**{"days": ["Mon"], "from": "09:00", "to": "10:00", "timezone": "Europe/Berlin"}),
    )
    assert frozen_until(berlin, MONDAY + timedelta(hours=8, minutes=30)) is not None
    assert frozen_until(berlin, MONDAY + timedelta(hours=9, minutes=30)) is None


@given(st.floats(0, 14 * 24))
def test_a_freeze_is_bounded_and_over_at_its_end(hours: float) -> None:
    at = MONDAY + timedelta(hours=hours)
    assert frozen_until((window(),), at) == at + timedelta(days=7)
    end = frozen_until(WEEKEND, at)
    assert end is None or (at < end and frozen_until(WEEKEND, end) is None)


def test_no_weight_rises_in_a_freeze_and_it_still_falls() -> None:
    raw = {**begun().strategy.to_dict(), "freeze": [{"timezone": "UTC"}]}
    frozen = begun().but(strategy=parse(raw))
    move = steps.look(frozen, seen())
    assert (move.kind, move.state.weight) == (DecisionKind.hold, 0)
    assert "frozen until 2026-01-08 00:00 UTC" in move.reason
    canary = frozen.but(weight=500, weight_set_at=begun().started_at, step=1)
    taken = steps.look(canary, seen(verdict=BAD))
    assert (taken.state.phase, taken.state.weight) == (Phase.degraded, 0)
    assert taken.state.outcome is AnalysisOutcome.failed


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"timezone": "Mars/Olympus"}, "no time zone"),
        ({"days": ["Funday"]}, "Mon"),
        ({"from": "10:00Z"}, "wall clock"),
        ({"until": "10:00"}, "not a known field"),
    ],
)
def test_a_wrong_window_names_field_and_rule(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(BadStrategy, match=rule) as raised:
        parse({**begun().strategy.to_dict(), "freeze": [fields]})
    assert "freeze.0" in raised.value.detail
