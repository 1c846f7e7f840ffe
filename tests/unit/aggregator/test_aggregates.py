"""Live windows, quality windows, scores by voter, and what is forgotten."""

from __future__ import annotations

from services.aggregator.aggregates import (
    ENDED_ROLLOUT_S,
    FEEDBACK,
    INTERACTIONS,
    KEPT_S,
    POSITIVE,
    QUALITY_EVERY_S,
    WINDOWS_S,
    Aggregates,
)
from services.aggregator.checkpoint import decode_checkpoint
from services.aggregator.contributions import (
    FiguresChanged,
    ScoreCounted,
)
from services.aggregator.metrics import by_bounded_voter
from shared.voters import MAX_OWN, SHARED, voter_label
from tests.unit.aggregator.simulation import whole

HOUR = 3600
T0 = 500_000 * HOUR


def shown(at_s: float) -> FiguresChanged:
    return FiguresChanged("v1", at_s, int(at_s // 60), ((INTERACTIONS, 1),))


def test_live_windows_hold_what_arrived_in_them() -> None:
    aggregates = Aggregates()
    aggregates.tick(T0)
    for ago in (0, 90, 240, 1800, 5 * HOUR, 23 * HOUR):
        aggregates.apply([shown(T0 - ago)])
    live = aggregates.live()
    found = {window: live["v1", window][INTERACTIONS] for window in WINDOWS_S}
    assert found == {"1m": 1, "5m": 3, "1h": 4, "1d": 6}


def test_minutes_become_hours_and_hours_end() -> None:
    aggregates = Aggregates()
    aggregates.tick(T0)
    aggregates.apply([shown(T0 - 30), shown(T0 - 30)])
    aggregates.tick(T0 + 2 * HOUR)
    assert aggregates.minutes == {}
    assert aggregates.live()["v1", "1d"][INTERACTIONS] == 2
    assert aggregates.live()["v1", "1h"][INTERACTIONS] == 0
    aggregates.tick(T0 + 26 * HOUR)
    assert aggregates.live() == {}


def test_late_feedback_changes_the_window_of_the_interaction_not_of_its_own_time() -> None:
    aggregates = Aggregates()
    aggregates.apply([shown(T0)])
    assert {key[0] for key in aggregates.tick(T0 + 1)} == set(WINDOWS_S)
    late = T0 + 2 * HOUR
    aggregates.apply([FiguresChanged("v1", T0, late // 60, ((FEEDBACK, 1), (POSITIVE, 1)))])
    changed = aggregates.tick(late)
    assert {(window, start) for window, start, _ in changed} == {
        ("1m", T0),
        ("5m", T0),
        ("1h", T0),
        ("1d", T0 // 86_400 * 86_400),
    }
    assert aggregates.windows["1h"][T0]["v1"][:5] == [1, 0, 0, 1, 1]


def test_windows_are_emitted_at_most_every_few_seconds_and_forgotten_in_the_end() -> None:
    aggregates = Aggregates()
    aggregates.apply([shown(T0)])
    assert aggregates.tick(T0 + 1)
    aggregates.apply([shown(T0)])
    assert aggregates.tick(T0 + QUALITY_EVERY_S) == []
    assert aggregates.tick(T0 + 1 + QUALITY_EVERY_S)
    aggregates.tick(T0 + 60 + KEPT_S["1m"] + 1)
    aggregates.forget()
    assert aggregates.windows["1m"] == {}
    assert aggregates.windows["5m"].keys() == {T0}


def test_series_of_ended_rollouts_are_dropped() -> None:
    aggregates = Aggregates()
    aggregates.apply([ScoreCounted("v1", "candidate", "r1", "", 1.0, T0)])
    aggregates.apply([ScoreCounted("v1", "", "", "", 0.5, T0)])
    aggregates.tick(T0 + ENDED_ROLLOUT_S + 1)
    aggregates.forget()
    assert list(aggregates.scores) == [("v1", "", "", "")]


def test_a_voter_that_was_silent_for_long_keeps_its_series_while_its_rollout_goes_on() -> None:
    """The judge takes a counter that begins anew for a copy that lags, and counts none of it."""
    aggregates = Aggregates()
    late = T0 + ENDED_ROLLOUT_S
    silent = [voter_label(f"silent-{number}") for number in range(MAX_OWN)]
    for who in silent:
        aggregates.apply([ScoreCounted("v1", "candidate", "r1", "gold", 1.0, T0, who, "00000001")])
    other = voter_label("acme")
    aggregates.apply([ScoreCounted("v1", "stable", "r1", "", 0.0, late, other, "00000002")])
    before = by_bounded_voter(aggregates)
    aggregates.tick(late + 1)
    aggregates.forget()
    assert by_bounded_voter(aggregates) == before
    assert aggregates.scores["v1", "candidate", "r1", "gold"][1] == MAX_OWN
    aggregates.tick(late + ENDED_ROLLOUT_S + 1)
    aggregates.forget()
    assert not aggregates.scores
    assert not aggregates.voter_scores


def test_however_many_keys_score_a_checkpoint_holds_a_few_series_and_goes_on_with_them() -> None:
    aggregates = Aggregates()
    for number in range(20_000):
        key = voter_label(f"key-{number}")
        aggregates.apply([ScoreCounted("v1", "stable", "r", "", 0.5, T0, "", key)])
        if number % 5_000 == 0:
            aggregates = decode_checkpoint(*whole(aggregates))
            aggregates.forget()
    labels = {label: count for (*_, label), (_, count, _) in aggregates.voter_scores.items()}
    assert len(labels) == MAX_OWN + SHARED
    assert sum(labels.values()) == 20_000
    assert list(labels)[:MAX_OWN] == [voter_label(f"key-{number}") for number in range(MAX_OWN)]
    shown = {label: count for (*_, label), (_, count) in by_bounded_voter(aggregates).items()}
    assert shown == labels


def test_scores_are_counted_by_tenant_and_key_and_the_labels_are_bounded() -> None:
    aggregates = Aggregates()
    for number in range(50):
        who = voter_label(f"acme-{number}")
        aggregates.apply([ScoreCounted("v1", "stable", "r", "", 0.5, T0, who, "00000001")])
        aggregates.apply([ScoreCounted("v1", "", "", "", 0.5, T0, who, "00000001")])
    shown = by_bounded_voter(aggregates)
    tenants = {series: sums for series, sums in shown.items() if series[3] == "tenant"}
    assert len(tenants) <= MAX_OWN + SHARED
    assert sum(count for _, count in tenants.values()) == 50
    assert shown["v1", "stable", "r", "key", "00000001"] == (25.0, 50)
    aggregates.tick(T0 + ENDED_ROLLOUT_S + 1)
    aggregates.forget()
    assert not aggregates.voter_scores
