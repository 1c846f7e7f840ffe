"""Implicit feedback: counted beside explicit feedback, in judge and datasets by setting only."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.aggregator import aggregates
from services.aggregator.aggregates import Aggregates
from services.aggregator.fold import FoldRules
from services.aggregator.metrics import CheckpointCollector, PartitionGauges
from shared.contracts.events.base import Context, Event, Message
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.events.preferences import UnpairedExample
from shared.contracts.events.quality import Tick
from shared.contracts.events.rated import RatedScore
from shared.contracts.events.signals import SignalType
from tests.support.aggregator import DOWN, UP, at, feedback, interaction, signal, withdrawn
from tests.unit.aggregator.simulation import Simulation, recovered, sums_of

RATING = FeedbackType.rating
CLOSING = Tick(at=at(300), partition=0)


def day_of(*events: Event, rules: FoldRules | None = None) -> tuple[Simulation, dict[str, float]]:
    """The figures of the day, without what is 0, after these events."""
    simulation = Simulation([*events, CLOSING], rules or FoldRules())
    sums = sums_of(simulation.run(), "1d")
    named = zip(aggregates.FIGURES, sums, strict=True)
    return simulation, {name: total for name, total in named if total}


def test_each_type_counts_for_version_and_window_and_none_as_feedback() -> None:
    events = [
        signal(SignalType.regenerate),
        signal(SignalType.copy),
        signal(SignalType.edit_kept, value=0.75),
        signal(SignalType.abandon),
        signal(SignalType.follow_up, dissatisfied=True),
    ]
    simulation, figures = day_of(interaction(), *events)
    assert figures == {
        "interactions": 1, "turns": 1, "sessions": 1, "regenerated": 1, "copied": 1, "edited": 1,
        "kept_sum": 0.75, "abandoned": 1, "followed_up": 1, "dissatisfied": 1, "implied_count": 5,
        "implied_sum": 1.75,
    }  # fmt: skip
    assert not [output for output in simulation.outputs if output.topic.endswith("preferences.v1")]
    assert not any(isinstance(event, RatedScore) for event in simulation.rated)


def test_a_follow_up_that_nobody_classified_implies_nothing() -> None:
    _, figures = day_of(interaction(), signal(SignalType.follow_up))
    assert "implied_count" not in figures
    assert figures["followed_up"] == 1


SAID = st.sampled_from(
    [
        signal(SignalType.copy, seconds=2),
        signal(SignalType.edit_kept, value=0.3, seconds=3),
        signal(SignalType.edit_kept, value=0.9, seconds=90, revision=1),
        signal(SignalType.regenerate, user="u2", name="r2", seconds=130),
        feedback("f1", kind=RATING, value=5, seconds=4),
        feedback("f1", kind=RATING, value=2, seconds=70, revision=1),
        feedback("f2", kind=RATING, value=4, user="u2", seconds=150),
        withdrawn("f1", kind=RATING, seconds=200, revision=2),
        feedback("f3", kind=FeedbackType.comment, value="So so.", seconds=5),
    ]
)


@given(st.lists(SAID, max_size=8), st.integers(0, 8), st.lists(st.integers(0, 12), max_size=2))
def test_paired_figures_are_those_of_what_stands_in_any_order_with_kills(
    said: list[Any], place: int, kills: list[int]
) -> None:
    events = [*said[:place], interaction(), *said[place:]]
    simulation = Simulation([*events, CLOSING])
    found = sums_of(simulation.run(kill_after=kills), "1d")
    implied: dict[str, float] = {}
    explicit: dict[str, float] = {}
    standing: dict[str, Any] = {}
    for event in said:
        kept = standing.get(event.feedback_id)
        if kept is None or event.revision > kept.revision:
            standing[event.feedback_id] = event
    for name, event in standing.items():
        score = getattr(event, "score", None)
        if score is not None:
            signalled = type(event).__name__ == "SignalObserved"
            (implied if signalled else explicit)[name] = score
    expected = [0.0] * 6
    if implied and explicit:
        x, y = (round(sum(side.values()) / len(side) * 256) / 256 for side in (implied, explicit))
        expected = [1, x, y, x * x, y * y, x * y]
    assert [found[index] for index in aggregates.PAIRED] == expected


def test_figures_taken_back_leave_the_minute_that_they_were_put_into() -> None:
    """A later edit moves the pair's sums inside one minute, so no window has a pair without them."""
    state = Aggregates(clock_s=at(0).timestamp())
    simulation = Simulation(
        [
            interaction(),
            signal(SignalType.edit_kept, value=0.25, seconds=2),
            feedback("f1", seconds=3),
            signal(SignalType.edit_kept, value=0.75, seconds=250, revision=1),
            CLOSING,
        ]
    )
    state = simulation.run()
    for minute in state.minutes.values():
        for sums in minute.values():
            n, x = sums[aggregates.PAIRED[0]], sums[aggregates.PAIRED[1]]
            assert (n, x) in {(0, 0), (1, 0.75)}


def test_by_setting_signals_teach_and_judge() -> None:
    rules = FoldRules(signals_judge=True, signals_teach=True)
    simulation, _ = day_of(
        interaction(), signal(SignalType.regenerate), signal(SignalType.edit_kept, value=0.5),
        signal(SignalType.copy, user="", name="nobody"), rules=rules,
    )  # fmt: skip
    made = [one.event for one in simulation.outputs if isinstance(one.event, UnpairedExample)]
    assert {(one.label, one.raters) for one in made} == {(False, ("u1",))}
    scores = [event.score for event in simulation.rated if isinstance(event, RatedScore)]
    assert set(scores) == {0.0}


def test_session_length_is_turns_by_first_turns() -> None:
    def turn(trace: str, *roles: str) -> Event:
        messages = tuple(Message(role=role, content=role) for role in roles)
        return interaction(trace, messages=messages)

    _, figures = day_of(
        turn("a", "system", "user"),
        turn("b", "system", "user", "assistant", "user"),
        turn("c", "user", "assistant", "user", "assistant", "user"),
        turn("d", "user", "assistant", "tool"),
    )
    assert (figures["turns"], figures["sessions"], figures["interactions"]) == (3, 1, 4)


def test_correlation_can_be_computed_from_the_exported_sums() -> None:
    pairs = [(0.0, 0), (1.0, 1), (1.0, 1), (0.0, 1), (1.0, 0)]
    events: list[Event] = []
    for number, (implied, up) in enumerate(pairs):
        trace = f"t{number}"
        kind = SignalType.copy if implied else SignalType.regenerate
        events += [
            interaction(trace),
            signal(kind, trace),
            feedback(f"f{number}", trace, UP if up else DOWN),
        ]
    simulation = Simulation([*events, CLOSING])
    simulation.run()
    collector = CheckpointCollector()
    shown = recovered(changelog=simulation.changelog).checkpoint()
    collector.show(0, *shown, PartitionGauges(0, 0, 0, 0, 0))
    registry = CollectorRegistry()
    registry.register(collector)

    def read(name: str) -> float:
        labels = {"version": "assistant-v1.0", "window": "1d", "sum": name, "partition": "0"}
        value = registry.get_sample_value("ratchet_implied_satisfaction_sums", labels)
        assert value is not None
        return value

    n, x, y, xx, yy, xy = (read(name) for name in ("n", "x", "y", "xx", "yy", "xy"))
    found = (n * xy - x * y) / math.sqrt((n * xx - x * x) * (n * yy - y * y))
    assert n == len(pairs)
    assert found == pytest.approx(1 / 6)


def test_audiences_are_counted_by_known_labels_only() -> None:
    rules = FoldRules(
        categories=frozenset({"creative"}), locales=frozenset({"en", "de-AT"}),
        segments=frozenset({"pro"}),
    )  # fmt: skip
    contexts = [
        Context(category="creative", locale="en-GB", segment="pro"),
        Context(category="made up", locale="de-DE", segment="made up"),
        Context(locale="de-AT"),
    ]
    events: list[Event] = [
        interaction(f"t{number}", context=context) for number, context in enumerate(contexts)
    ]
    said = [feedback("f1", "t0"), feedback("f2", "t0", user="u2"), signal(trace="t1")]
    counted = Simulation([*events, *said, CLOSING], rules).run().audience
    assert counted == {
        ("requests", "category", "creative"): 1, ("requests", "category", "other"): 1,
        ("requests", "category", "unknown"): 1, ("requests", "locale", "en"): 1,
        ("requests", "locale", "other"): 1, ("requests", "locale", "de-AT"): 1,
        ("requests", "segment", "pro"): 1, ("requests", "segment", "other"): 1,
        ("requests", "segment", "unknown"): 1, ("feedback", "category", "creative"): 2,
        ("feedback", "locale", "en"): 2, ("feedback", "segment", "pro"): 2,
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(SignalType))
def test_a_signal_and_feedback_of_one_id_are_a_conflict(kind: SignalType) -> None:
    share = 0.5 if kind is SignalType.edit_kept else None
    said = [signal(kind, name="same", value=share), feedback("same", revision=3)]
    for events in itertools.permutations(said):
        state = Simulation([interaction(), *events, CLOSING]).run()
        assert state.outcomes == {"accepted": 1, "conflict": 1}
