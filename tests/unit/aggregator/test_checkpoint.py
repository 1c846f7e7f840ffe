"""A checkpoint's head and parts: what a batch writes of them, and what a worker that was killed leaves."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.aggregator.aggregates import FIGURES, WINDOWS_S, Aggregates, Part
from services.aggregator.batch import Batch
from services.aggregator.checkpoint import (
    COUNTS,
    FORMAT,
    KINDS,
    decode_checkpoint,
    named_slots,
    part_key,
    part_of,
    part_prefix,
)
from services.aggregator.checkpointing import check_size
from services.aggregator.contributions import (
    AudienceCounted,
    FeedbackCounted,
    FiguresChanged,
    OutcomeCounted,
    ScoreCounted,
    VoteCounted,
)
from services.aggregator.errors import PartMissing, UnknownFormat
from services.aggregator.partition import PartitionState
from services.aggregator.rows import checkpoint_key
from shared.contracts.events.base import Event
from shared.contracts.events.quality import Tick
from shared.contracts.topics import TICKS
from tests.support.aggregator import DOWN, UP, at, feedback, interaction
from tests.unit.aggregator.simulation import Simulation, recovered, stored_aggregates, whole

HOUR = 3600
T0 = 500_000 * HOUR

counted = st.lists(
    st.tuples(st.integers(0, 200), st.sampled_from(("v1", "v2")), st.integers(0, 8)), max_size=30
)


def aggregates_of(items: list[tuple[int, str, int]]) -> Aggregates:
    """Aggregates with something of every kind, of items in minutes after T0."""
    aggregates = Aggregates(offsets={"t": 7}, dropped=["0\x1ftrace\x1fa\x1fb"])
    for minutes, version, index in items:
        at_s = T0 + minutes * 60
        aggregates.apply(
            [
                FiguresChanged(version, at_s, at_s // 60, ((index, 1),)),
                FeedbackCounted(version, "rating"),
                VoteCounted("v1", "v2", "tie"),
                ScoreCounted(version, "stable", "r", "", 0.25, at_s, "3fa9c1d2"),
                OutcomeCounted("edited"),
                AudienceCounted("requests", "billing", "en", "gold"),
            ]
        )
    aggregates.tick(T0)
    return aggregates


def without_parts(aggregates: Aggregates, known: int) -> bytes:
    """A checkpoint as the releases of formats 1 to 5 wrote it."""

    def flat(name: str) -> list[Any]:
        return [[*key, count] for key, count in getattr(aggregates, name).items()]

    def keyed(name: str) -> list[Any]:
        return [[key, sums] for key, sums in getattr(aggregates, name).items()]

    windows = [
        [[window, start, version], sums]
        for window, starts in aggregates.windows.items()
        for start, versions in starts.items()
        for version, sums in versions.items()
    ]
    fields = [
        aggregates.offsets, aggregates.clock_s, aggregates.emitted_s, flat("feedback"),
        keyed("scores"), flat("votes"), aggregates.outcomes, keyed("minutes"), keyed("hours"),
        windows, sorted(aggregates.changed), aggregates.dropped,
    ]  # fmt: skip
    if known >= 4:
        fields.append(flat("audience"))
    if known >= 5:
        fields.append(keyed("voter_scores"))
    return orjson.dumps([known, *fields])


def missing(*_: object) -> bytes | None:
    return None


@given(counted)
def test_a_checkpoint_is_the_whole_of_the_aggregates(items: list[tuple[int, str, int]]) -> None:
    aggregates = aggregates_of(items)
    assert decode_checkpoint(*whole(aggregates)) == aggregates


@pytest.mark.parametrize("first", [FORMAT + 1, {"t": 7}, "1"])
def test_a_checkpoint_of_another_format_is_refused(first: object) -> None:
    _, *rest = orjson.loads(whole(Aggregates())[0])
    with pytest.raises(UnknownFormat, match=f"reads format 1 and 2 and 3 and 4 and 5 and {FORMAT}"):
        decode_checkpoint(orjson.dumps([first, *rest]), missing)


@pytest.mark.parametrize("before", [1, 2, 3, 4, 5])
def test_a_checkpoint_of_a_format_before_is_read_and_written_in_parts(before: int) -> None:
    aggregates = aggregates_of([(0, "v1", 3), (-70, "v2", 4)])
    if before < 4:
        aggregates.audience.clear()
    if before < 5:
        aggregates.voter_scores.clear()
    stored = {checkpoint_key(0): without_parts(aggregates, before)}
    state = recovered(changelog=stored)
    assert state.aggregates == aggregates
    batch = state.take()
    state.confirm(batch)
    aggregates.dropped = state.aggregates.dropped
    assert recovered(changelog=stored).aggregates == aggregates
    assert state.take().parts == []


def test_figures_that_a_release_did_not_have_are_0() -> None:
    aggregates = aggregates_of([(0, "v1", 3)])
    stored = orjson.loads(without_parts(aggregates, 3))
    stored[10] = [[key, sums[:9]] for key, sums in stored[10]]
    found = decode_checkpoint(orjson.dumps(stored), missing)
    assert found.windows == aggregates.windows


def test_a_part_that_is_named_and_missing_ends_the_worker() -> None:
    head, _ = whole(aggregates_of([(0, "v1", 3)]))
    with pytest.raises(PartMissing, match=r"part \w+ \d+ in slot 0 is missing; drop the worker's"):
        decode_checkpoint(head, missing)


def test_keys_tell_their_part() -> None:
    for kind in KINDS:
        part = Part(kind, 17)
        assert part_of(part_key(3, part, 1)) == part
        assert part_key(3, part, 1).startswith(part_prefix(3))


def busy_state(versions: int, hours: int) -> PartitionState:
    """A partition with traffic of so many versions in each minute of so many hours."""
    state = recovered()
    aggregates = state.aggregates
    for minute in range(hours * 60):
        at_s = T0 + minute * 60
        aggregates.tick(at_s)
        for number in range(versions):
            deltas = ((0, 17), (2, 3), (3, 4), (4, 2), (7, 1.25), (8, 4))
            aggregates.apply([FiguresChanged(f"model-v1.{number}", at_s, at_s // 60, deltas)])
    return state


def applied(state: PartitionState, offset: int, at_s: float) -> Batch:
    """The batch after one tick."""
    tick = Tick.model_validate({"at": at_s, "partition": 0})
    state.apply(TICKS, offset, tick, tick.to_json(), int(at_s * 1000))
    batch = state.take()
    state.confirm(batch)
    return batch


def test_a_second_without_traffic_writes_the_head_alone() -> None:
    state = busy_state(versions=2, hours=3)
    last_s = T0 + 3 * HOUR
    first, second = (applied(state, number, last_s + number) for number in range(2))
    assert len(first.parts) > 200
    assert second.parts == []
    assert len(second.checkpoint) < 8_000


def test_an_event_writes_the_parts_that_it_changes() -> None:
    state = recovered()
    for number in range(50):
        shown = interaction(f"t{number}")
        state.apply("interactions.v1", number, shown, shown.to_json(), number * 1000)
    state.confirm(state.take())
    shown = interaction("t50")
    state.apply("interactions.v1", 50, shown, shown.to_json(), 50_000)
    changed = {part.kind for part in state.take().changed}
    assert changed == {"minutes", *WINDOWS_S, "audience"}


def test_parts_do_not_grow_with_the_windows_that_are_held() -> None:
    """Fifty versions with traffic had more than the brokers take, when a checkpoint was one record."""
    state = busy_state(versions=300, hours=8)
    batch = state.take()
    check_size(batch)
    assert max(len(value) for _, value in batch.parts) < 300 * 8 * len(FIGURES)
    state.confirm(batch)
    assert len(batch.parts) > 300
    assert len(batch.checkpoint) < 12_000 + 300 * 4 * 40


events: list[Event] = [
    interaction("t1"),
    feedback("f1", "t1", DOWN, user="a"),
    Tick(at=at(70), partition=0),
    feedback("f2", "t1", UP, user="b"),
    Tick(at=at(4000), partition=0),
    interaction("t2"),
    Tick(at=at(9000), partition=0),
    Tick(at=at(200_000), partition=0),
]


@given(kills=st.lists(st.integers(0, 30), max_size=8), batch=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_whoever_is_killed_leaves_what_the_head_names_as_it_was(
    kills: list[int], batch: int
) -> None:
    simulation = Simulation(events)
    end = simulation.run(batch=batch, kill_after=kills)
    changelog: dict[bytes, bytes] = {}
    confirmed: Aggregates | None = None
    for key, value in simulation.records:
        if value is None:
            changelog.pop(key, None)
        else:
            changelog[key] = value
        if key == checkpoint_key(0):
            confirmed = stored_aggregates(changelog)
        elif confirmed is not None:
            assert stored_aggregates(changelog) == confirmed
    assert confirmed == end
    assert end == Simulation(events).run(batch=batch) or kills


@given(kills=st.lists(st.integers(0, 30), max_size=8), batch=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_parts_that_no_head_names_are_deleted(kills: list[int], batch: int) -> None:
    simulation = Simulation(events)
    simulation.run(batch=batch, kill_after=kills)
    state = recovered(changelog=simulation.changelog)
    last = state.take()
    state.confirm(last)
    named = named_slots(simulation.changelog[checkpoint_key(0)])
    left = {part_of(key) for key in simulation.changelog if key.startswith(part_prefix(0))}
    assert left == set(named)
    assert {part.kind for part in left} <= {*KINDS}
    assert {part for part in left if part.start == 0} <= {*COUNTS}
