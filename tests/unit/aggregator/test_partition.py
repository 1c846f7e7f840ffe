"""Exactly once, whatever is killed, whenever: the reducers under every schedule hypothesis finds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.aggregator.aggregates import Aggregates
from services.aggregator.errors import EventRefused
from services.aggregator.fold import FoldRules
from services.aggregator.partition import PartitionState
from services.aggregator.rows import checkpoint_key, trace_key
from shared.contracts.events.base import Event
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.events.interactions import Outcome, Purpose
from shared.contracts.events.preferences import UnpairedExample
from shared.contracts.events.quality import Tick
from shared.contracts.events.votes import Choice
from shared.contracts.topics import FEEDBACK, INTERACTIONS, QUALITY, TICKS
from tests.support.aggregator import DOWN, UP, at, feedback, interaction, vote, withdrawn
from tests.unit.aggregator.simulation import Simulation, log_ms, recovered, stored_aggregates

pytestmark = pytest.mark.timeout(180)  # hypothesis on a busy machine

TRACES = ("t1", "t2", "t3")
BODIES: tuple[tuple[FeedbackType, Any], ...] = (
    (UP, None),
    (DOWN, None),
    (FeedbackType.rating, 5),
    (FeedbackType.rating, 2),
    (FeedbackType.text_correction, {"corrected": "A better answer."}),
    (FeedbackType.demonstration, "What a person writes."),
    (FeedbackType.comment, "hm"),
)


@st.composite
def interactions(draw: st.DrawFn) -> Event:
    trace = draw(st.sampled_from(TRACES))
    return interaction(
        trace,
        version=f"v{TRACES.index(trace) % 2}",
        completion=f"Answer of {trace}.",
        purpose=Purpose.explicit if trace == "t3" else Purpose.live,
        seconds=60.0 * TRACES.index(trace),
    )


@st.composite
def submissions(draw: st.DrawFn) -> Event:
    trace = draw(st.sampled_from(TRACES))
    kind, value = draw(st.sampled_from(BODIES))
    return feedback(
        draw(st.sampled_from(("f1", "f2"))),
        trace,
        kind,
        value,
        revision=draw(st.integers(0, 2)),
        user=draw(st.sampled_from(("u1", "u2", ""))),
        tenant=draw(st.sampled_from(("acme", "acme", "acme", "other"))),
        seconds=200.0,
    )


@st.composite
def withdrawals(draw: st.DrawFn) -> Event:
    kind, _ = draw(st.sampled_from(BODIES))
    trace = draw(st.sampled_from(TRACES))
    name = draw(st.sampled_from(("f1", "f2")))
    return withdrawn(name, trace, kind, revision=draw(st.integers(1, 3)), seconds=200.0)


votes = st.builds(
    vote,
    st.sampled_from(("c1", "c2")),
    st.sampled_from(Choice),
    revision=st.integers(0, 1),
)
ticks = st.builds(
    lambda second: Tick(at=at(second), partition=0), st.integers(0, 20).map(lambda n: n * 400.0)
)
logs = st.lists(
    st.one_of(interactions(), submissions(), submissions(), withdrawals(), votes, ticks),
    max_size=24,
)


def comparable(aggregates: Aggregates) -> dict[str, Any]:
    """What must be the same however the worker came there. A capped score seen twice may show twice."""
    outcomes = {key: count for key, count in aggregates.outcomes.items() if key != "score_capped"}
    return {
        "feedback": aggregates.feedback,
        "scores": aggregates.scores,
        "votes": aggregates.votes,
        "outcomes": outcomes,
        "windows": aggregates.windows,
        "minutes": {k: v for k, v in aggregates.minutes.items() if any(any(s) for s in v.values())},
    }


@given(events=logs, kills=st.lists(st.integers(0, 12), max_size=12), batch=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_kills_between_any_two_writes_change_neither_counts_nor_outputs(
    events: list[Event], kills: list[int], batch: int
) -> None:
    # A last tick brings what a replay may have counted one tick earlier to the same end.
    events = [*events, Tick(at=at(8000), partition=0)]
    rules = FoldRules(horizon_s=3000.0, scores_per_day=2)
    calm = Simulation(events, rules)
    counted = calm.run(batch=batch)
    rough = Simulation(events, rules)
    assert comparable(rough.run(batch=batch, kill_after=kills)) == comparable(counted)

    def lasting(simulation: Simulation) -> dict[str, tuple[str, str, bytes]]:
        return {key: value for key, value in simulation.by_id().items() if value[0] != QUALITY}

    assert lasting(rough) == lasting(calm)
    assert rough.standing() == calm.standing()
    newest = {out.key: out.event.to_json() for out in rough.outputs if out.topic == QUALITY}
    expected = {out.key: out.event.to_json() for out in calm.outputs if out.topic == QUALITY}
    assert newest == expected


@given(events=logs, data=st.data())
@settings(max_examples=60, deadline=None)
def test_topics_may_interleave_in_any_way(events: list[Event], data: st.DataObject) -> None:
    events = [event for event in events if not isinstance(event, Tick)]
    shown = [event for event in events if event.ce_type == "ratchet.interaction.recorded.v1"]
    told = [event for event in events if event not in shown]
    order = data.draw(st.permutations([True] * len(shown) + [False] * len(told)))
    left, right = iter(shown), iter(told)
    mixed = [next(left) if first else next(right) for first in order]
    one, other = Simulation([*shown, *told]), Simulation(mixed)
    if not events:
        return
    first, second = one.run(), other.run(batch=2)
    assert first.feedback == second.feedback
    assert first.windows == second.windows
    assert first.votes == second.votes
    assert first.scores == second.scores
    assert one.standing() == other.standing()


@given(events=logs.filter(bool), repeats=st.data())
@settings(max_examples=50, deadline=None)
def test_records_sent_twice_count_once(events: list[Event], repeats: st.DataObject) -> None:
    events = [event for event in events if not isinstance(event, Tick)]
    if not events:
        return
    again = repeats.draw(st.lists(st.sampled_from(events), max_size=8))
    one, other = Simulation(events), Simulation([*events, *again])
    first, second = one.run(), other.run()
    assert first.feedback == second.feedback
    assert first.windows == second.windows
    assert first.votes == second.votes
    assert first.scores.keys() == second.scores.keys()
    assert one.standing() == other.standing()


def test_an_event_at_or_below_the_checkpoint_is_ignored() -> None:
    state = recovered()
    event = interaction()
    assert state.apply(INTERACTIONS, 4, event, event.to_json(), 0)
    assert not state.apply(INTERACTIONS, 4, event, event.to_json(), 0)
    assert not state.apply(INTERACTIONS, 3, event, event.to_json(), 0)
    assert state.expects(INTERACTIONS) == 5
    assert state.expects(FEEDBACK) == 0


def test_feedback_waits_until_the_horizon_and_then_counts_once_as_unjoined() -> None:
    rules = FoldRules(horizon_s=100.0)
    late = interaction(seconds=500.0)
    events = [
        feedback(seconds=0.0),
        Tick(at=at(99), partition=0),
        Tick(at=at(4000), partition=0),
        Tick(at=at(4001), partition=0),
        late,
        feedback("f1", revision=1, kind=UP, value=None, user="u9", seconds=510.0),
    ]
    simulation = Simulation(events, rules)
    aggregates = simulation.run(batch=1)
    assert aggregates.feedback == {("unjoined", "thumbs_up"): 1}
    state = recovered(rules, simulation.changelog)
    assert state.pending == 0


def test_pending_is_what_waits() -> None:
    state = recovered()
    for offset, event in enumerate((feedback("f1"), feedback("f2"), withdrawn("f3"))):
        state.apply(FEEDBACK, offset, event, b"", 0)
    assert state.pending == 2
    event = interaction()
    state.apply(INTERACTIONS, 0, event, event.to_json(), 0)
    assert state.pending == 0


def test_feedback_on_a_trace_that_no_router_made_is_seen_soon() -> None:
    state = recovered(FoldRules(unknown_trace_s=300.0))
    for offset, (name, minute) in enumerate((("f1", 0), ("f2", 0), ("f3", 4))):
        told = feedback(name, f"t-{name}")
        state.apply(FEEDBACK, offset, told, told.to_json(), minute * 60_000)
    assert [state.unknown(60.0 * minute) for minute in (5, 6, 9, 10)] == [0, 2, 2, 3]
    late = interaction("t-f2")
    state.apply(INTERACTIONS, 0, late, late.to_json(), 360_000)
    assert (state.unknown(360.0), state.pending) == (1, 2)
    successor = recovered(state.rules, dict(state.take().rows))
    assert (successor.unknown(360.0), successor.pending) == (1, 2)


def waiting_since_start() -> PartitionState:
    state = recovered()
    told = feedback(seconds=0.0)
    state.apply(FEEDBACK, 0, told, told.to_json(), log_ms(0))
    state.apply(TICKS, 0, Tick(at=at(1), partition=0), b"", log_ms(1))
    return state


DAYS_40 = 40 * 86_400.0


@pytest.mark.parametrize("skew_s", [DAYS_40, -DAYS_40])
def test_a_tick_of_a_wrong_clock_neither_expires_rows_nor_stops_stream_time(skew_s: float) -> None:
    state = waiting_since_start()
    for second in range(2, 30):
        tick = Tick(at=at(second + skew_s), partition=0)
        state.apply(TICKS, second, tick, b"", log_ms(second))
    assert state.pending == 1
    assert state.aggregates.feedback == {}
    assert state.aggregates.clock_s == at(29).timestamp()


@pytest.mark.parametrize(("at_s", "log_s"), [(DAYS_40, 3600.0), (2.0, DAYS_40)])
def test_a_jump_that_only_one_clock_shows_is_refused_and_counted(at_s: float, log_s: float) -> None:
    state = waiting_since_start()
    state.apply(TICKS, 1, Tick(at=at(at_s), partition=0), b"", log_ms(log_s))
    assert state.pending == 1
    assert state.aggregates.clock_s == at(1).timestamp()
    assert state.aggregates.outcomes["tick_refused"] == 1


def test_after_an_outage_stream_time_jumps_with_both_clocks() -> None:
    state = waiting_since_start()
    state.apply(TICKS, 1, Tick(at=at(DAYS_40), partition=0), b"", log_ms(DAYS_40))
    assert state.pending == 0
    assert state.aggregates.feedback == {("unjoined", "thumbs_up"): 1}


def test_stream_time_that_a_wrong_clock_left_far_ahead_is_put_back() -> None:
    state = waiting_since_start()
    state.aggregates.clock_s = state.aggregates.emitted_s = at(DAYS_40).timestamp()
    state.apply(TICKS, 1, Tick(at=at(60), partition=0), b"", log_ms(60))
    assert state.aggregates.clock_s == at(60).timestamp()
    shown = interaction(seconds=61.0)
    state.apply(INTERACTIONS, 0, shown, shown.to_json(), log_ms(61))
    assert state.aggregates.live()[shown.version, "1m"][0] == 1
    assert state.aggregates.windows


def test_rows_are_dropped_after_their_horizon() -> None:
    rules = FoldRules(horizon_s=100.0)
    events = [
        interaction("t1"),
        interaction("t2"),
        feedback("f1", "t2", seconds=1.0),
        Tick(at=at(3700), partition=0),
        Tick(at=at(7300), partition=0),
    ]
    simulation = Simulation(events[:4], rules)
    simulation.run(batch=1)
    rows = [key for key in simulation.changelog if b"trace" in key]
    assert rows == [] or rows == [trace_key(0, "acme", "t2")]
    simulation = Simulation(events, rules)
    simulation.run(batch=1)
    assert not [key for key in simulation.changelog if b"trace" in key]


def test_a_row_too_large_for_the_changelog_is_refused_and_changes_nothing() -> None:
    state = recovered()
    shown = interaction(completion="x" * 90_000)
    state.apply(INTERACTIONS, 0, shown, shown.to_json(), 0)
    for number in range(8):
        told = feedback(f"f{number}", kind=FeedbackType.demonstration, value="y" * 99_000)
        state.apply(FEEDBACK, number, told, b"", 0)
    before = dict(state.aggregates.feedback)
    with pytest.raises(EventRefused, match="at most 900000 can be kept"):
        state.apply(
            FEEDBACK,
            8,
            feedback("f9", kind=FeedbackType.demonstration, value="z" * 99_000),
            b"",
            0,
        )
    assert state.aggregates.feedback == before
    # No checkpoint covers it before its dead letter is kept.
    assert state.expects(FEEDBACK) == 8
    assert state.take().offsets[FEEDBACK] == 7
    state.skip(FEEDBACK, 8)
    assert state.expects(FEEDBACK) == 9


def test_one_batch_drops_as_many_rows_as_its_checkpoint_can_name() -> None:
    state = recovered(FoldRules(horizon_s=100.0))
    for number in range(2500):
        shown = interaction(f"t{number}")
        state.apply(INTERACTIONS, number, shown, shown.to_json(), log_ms(0))
    state.confirm(state.take())
    for offset, seconds in enumerate((4000, 4001, 4002)):
        tick = Tick(at=at(seconds), partition=0)
        state.apply(TICKS, offset, tick, b"", log_ms(seconds))
    batch = state.take()
    rows = [key for key in batch.dropped if not key.startswith(checkpoint_key(0))]
    assert len(rows) == 2000
    state.confirm(batch)
    state.apply(TICKS, 3, Tick(at=at(4003), partition=0), b"", log_ms(4003))
    assert len(state.take().dropped) == 500


def test_a_tick_with_many_expiries_leaves_some_for_the_next() -> None:
    rules = FoldRules(horizon_s=100.0)
    state = recovered(rules)
    for number in range(2500):
        told = feedback(f"f{number}", f"t{number}", seconds=0.0)
        state.apply(FEEDBACK, number, told, b"", 0)
    state.apply(TICKS, 0, Tick(at=at(4000), partition=0), b"", log_ms(4000))
    assert state.aggregates.feedback == {("unjoined", "thumbs_up"): 2000}
    state.apply(TICKS, 1, Tick(at=at(4001), partition=0), b"", log_ms(4001))
    assert state.aggregates.feedback == {("unjoined", "thumbs_up"): 2500}
    assert state.pending == 0


@pytest.mark.parametrize("outcome", [Outcome.server_error, Outcome.cancelled])
def test_a_request_without_an_answer_and_without_feedback_loses_its_texts_after_a_day(
    outcome: Outcome,
) -> None:
    events: list[Event] = [
        interaction("t1", outcome=outcome, prompt="A question", completion="Half an"),
        interaction("t2", prompt="A question"),
        interaction("t3", outcome=outcome, prompt="A question"),
        feedback("f3", "t3", seconds=60.0),
    ]
    early, late = (Tick(at=at(86_400 + seconds), partition=0) for seconds in (-1, 1))
    rows = {trace: trace_key(0, "acme", trace) for trace in ("t1", "t2", "t3")}

    def told(*more: Event) -> Simulation:
        simulation = Simulation([*events, *more])
        simulation.run(batch=1)
        return simulation

    def with_texts(simulation: Simulation) -> set[str]:
        return {trace for trace, key in rows.items() if b"A question" in simulation.changelog[key]}

    assert with_texts(told(early)) == {"t1", "t2", "t3"}
    assert with_texts(told(early, late)) == {"t2", "t3"}
    simulation = told(late, feedback("f1", "t1", DOWN, seconds=86_500.0))
    counted = stored_aggregates(simulation.changelog).feedback
    assert counted["assistant-v1.0", "thumbs_down"] == 1
    examples = [out.event for out in simulation.outputs if isinstance(out.event, UnpairedExample)]
    assert {example.traces for example in examples} == {("t3",)}
    closing = Tick(at=at(31 * 86_400), partition=0)
    assert rows["t1"] not in told(late, closing).changelog
