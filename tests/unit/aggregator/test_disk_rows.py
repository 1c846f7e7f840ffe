"""Rows on disk: as the twin in memory, exact after kills, bounded, rebuilt where they are damaged."""

from __future__ import annotations

import contextlib
import resource
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from services.aggregator.aggregates import WINDOWS_S
from services.aggregator.batch import Batch, DueEntry, IndexChanges
from services.aggregator.checkpoint import COUNTS, part_prefix
from services.aggregator.disk_rows import DiskRows
from services.aggregator.errors import StateUnusable
from services.aggregator.fold import FoldRules
from services.aggregator.row_database import MIB, RowDatabase
from services.aggregator.row_store import RowStore
from services.aggregator.rows import TraceRow, checkpoint_key, trace_key
from shared.contracts.events.base import Event
from shared.contracts.events.quality import Tick
from shared.contracts.topics import QUALITY
from shared.testing.clock import ManualClock
from tests.support.aggregator import at, feedback, interaction
from tests.support.memory_rows import MemoryRows
from tests.unit.aggregator.simulation import DiskSimulation, Simulation
from tests.unit.aggregator.test_partition import comparable, logs

pytestmark = pytest.mark.timeout(180)  # hypothesis on a busy machine

RULES = FoldRules(horizon_s=3000.0, scores_per_day=2)
KEYS = [trace_key(0, "acme", f"t{number}") for number in range(4)]


def opened(path: Path) -> RowDatabase:
    return RowDatabase(path, cache_bytes=MIB)


def rows_of(database: RowDatabase, partition: int = 0) -> DiskRows:
    return DiskRows(database, partition, rules=RULES, clock=ManualClock())


@pytest.fixture
def database(tmp_path: Path) -> Iterator[RowDatabase]:
    opened_here = opened(tmp_path)
    yield opened_here
    opened_here.close()


@pytest.fixture(params=["disk", "memory"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RowStore]:
    if request.param == "memory":
        yield MemoryRows(0, RULES)
        return
    database = opened(tmp_path)
    yield rows_of(database)
    database.close()


def rows_alone(changelog: Mapping[bytes, bytes]) -> set[bytes]:
    """Keys of rows, without those of the checkpoint and its parts."""
    return {key for key in changelog if not key.startswith(checkpoint_key(0))}


def batch(*keys: bytes, dropped: tuple[bytes, ...] = (), index: IndexChanges) -> Batch:
    pairs = [(key, TraceRow().encode()) for key in keys]
    return Batch(0, [], pairs, b"checkpoint", list(dropped), {}, index, position=7)


def test_what_is_due_comes_in_order_of_time_and_leaves_when_it_was_looked_at(
    rows: RowStore,
) -> None:
    due = [DueEntry(300, KEYS[0]), DueEntry(100, KEYS[1]), DueEntry(200, KEYS[2])]
    rows.commit(batch(*KEYS[:3], index=IndexChanges(due=due, held=3)))
    assert [entry.due_ms for entry in rows.due(299, None)] == [100, 200]
    assert list(rows.due(300, DueEntry(100, KEYS[1]))) == [due[2], due[0]]
    assert list(rows.due(99, None)) == []
    moved = IndexChanges(looked=[due[1]], due=[DueEntry(400, KEYS[1])], held=2)
    rows.commit(batch(KEYS[1], dropped=(KEYS[2],), index=moved))
    assert [entry.due_ms for entry in rows.due(1000, None)] == [200, 300, 400]
    assert [key for key in KEYS if rows.get(key) is not None] == KEYS[:2]
    assert (rows.get(checkpoint_key(0)), rows.held()) == (b"checkpoint", 2)


def test_what_waits_is_known_without_a_look_at_the_rows(rows: RowStore) -> None:
    waiting = {KEYS[0]: (1, 1, 2), KEYS[1]: (5,)}
    rows.commit(batch(*KEYS[:2], index=IndexChanges(waiting=dict(waiting), held=2)))
    assert sorted(rows.waiting()) == [1, 1, 2, 5]
    rows.commit(batch(KEYS[0], index=IndexChanges(waiting={KEYS[0]: ()}, held=2)))
    assert list(rows.waiting()) == [5]


def test_partitions_share_a_database_and_nothing_else(database: RowDatabase) -> None:
    one, ten = rows_of(database, 1), rows_of(database, 10)
    for rows, partition in ((one, 1), (ten, 10)):
        key = trace_key(partition, "acme", "t")
        rows.restore([(key, TraceRow(touched_s=1.0).encode())], partition)
    one.forget()
    assert (one.held(), one.position(), list(one.unsettled())) == (0, None, [])
    assert list(one.due(10**12, None)) == []
    assert (ten.held(), list(ten.unsettled())) == (1, [trace_key(10, "acme", "t")])
    assert len(list(ten.due(10**12, None))) == 1


def test_the_changelog_read_twice_is_the_changelog_read_once(database: RowDatabase) -> None:
    rows = rows_of(database)
    told = feedback()
    state = Simulation([interaction(), told], RULES)
    state.run(batch=1)
    for _ in range(2):
        rows.restore(state.records, len(state.records) - 1)
        assert rows.held() == len(rows_alone(state.changelog))
        assert {key: rows.get(key) for key in state.changelog} == state.changelog
    rows.restore([(key, None) for key in state.changelog], len(state.records))
    assert (rows.held(), list(rows.unsettled()), list(rows.waiting())) == (0, [], [])


@given(events=logs, kills=st.lists(st.integers(0, 12), max_size=12), batch=st.integers(1, 6))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_killed_between_any_two_writes_the_tail_of_the_changelog_brings_the_same(
    database: RowDatabase, events: list[Event], kills: list[int], batch: int
) -> None:
    events = [*events, Tick(at=at(8000), partition=0)]
    rows = rows_of(database)
    rows.forget()
    calm = Simulation(events, RULES)
    counted = calm.run(batch=batch)
    rough = DiskSimulation(events, RULES, rows=rows)
    assert comparable(rough.run(batch=batch, kill_after=kills)) == comparable(counted)
    assert rough.standing() == calm.standing()

    def lasting(simulation: Simulation) -> dict[str, tuple[str, str, bytes]]:
        return {key: value for key, value in simulation.by_id().items() if value[0] != QUALITY}

    assert lasting(rough) == lasting(calm)
    left = rough.changelog
    assert rows.held() == len(rows_alone(left))
    assert {key: rows.get(key) for key in left} == left
    assert set(rows.parts()) == {key for key in left if key.startswith(part_prefix(0))}


def test_a_restart_reads_no_more_of_the_changelog_than_came_after_the_last_batch(
    database: RowDatabase,
) -> None:
    events = [interaction(f"t{number}") for number in range(200)]
    simulation = DiskSimulation(events, RULES, rows=rows_of(database))
    simulation.run(batch=10, kill_after=[150, 30])
    assert simulation.kills == 2
    assert simulation.restored[0] == 0
    batch_writes = 10 + len(COUNTS) + len(WINDOWS_S) + len(("minutes", "head"))
    assert all(0 < read <= batch_writes for read in simulation.restored[1:])


def test_rows_stay_where_the_process_ends_and_each_worker_has_a_directory(tmp_path: Path) -> None:
    first = opened(tmp_path)
    rows_of(first).restore([(KEYS[0], TraceRow().encode())], 3)
    second = opened(tmp_path)
    assert second.path != first.path
    assert rows_of(second).position() is None
    path = first.path
    first.close()
    again = opened(tmp_path)
    assert again.path == path
    position = rows_of(again).position()
    assert position is not None
    assert (position.offset, position.held) == (3, 1)
    again.close()
    second.close()


def test_a_kill_leaves_a_state_that_the_changelog_leads_on_from(tmp_path: Path) -> None:
    database = opened(tmp_path / "run")
    rows = rows_of(database)
    rows.restore([(KEYS[0], TraceRow().encode())], 3)
    database.flush()
    rows.restore([(KEYS[1], TraceRow().encode())], 4)

    def after_a_kill(name: str) -> tuple[int | None, list[bytes]]:
        shutil.copytree(tmp_path / "run", tmp_path / name)
        left = opened(tmp_path / name)
        position = rows_of(left).position()
        keys = [key for key in KEYS if rows_of(left).get(key) is not None]
        left.close()
        return (position.offset if position is not None else None), keys

    assert after_a_kill("unflushed") == (3, KEYS[:1])
    rows.forget()
    assert after_a_kill("forgotten") == (None, [])
    database.close()


@pytest.mark.parametrize("damage", ["manifest", "values", "missing"])
def test_damaged_state_is_emptied_with_a_word_in_the_log(tmp_path: Path, damage: str) -> None:
    database = opened(tmp_path)
    big = [(key, TraceRow(interaction=b"x" * 5000).encode()) for key in KEYS]
    rows_of(database).restore(big, 9)
    path = database.path
    database.close()
    suffix = {"manifest": "MANIFEST-*", "values": "*.blob", "missing": "*.sst"}[damage]
    for file in path.glob(suffix):
        file.unlink() if damage == "missing" else file.write_bytes(b"\x07" * file.stat().st_size)
    with capture_logs() as logged:
        try:
            damaged = opened(tmp_path)
            rows_of(damaged).get(KEYS[0])
        except StateUnusable:  # noticed at the first read: the next start empties it
            with contextlib.suppress(StateUnusable):
                damaged.close()
            damaged = opened(tmp_path)
    assert [entry["event"] for entry in logged] == ["state.emptied"]
    assert rows_of(damaged).position() is None
    damaged.close()


def test_a_full_disk_is_told_and_the_batch_is_not_half_there(tmp_path: Path) -> None:
    database = opened(tmp_path)
    rows = rows_of(database)
    rows.restore([(KEYS[0], TraceRow().encode())], 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    row = TraceRow(interaction=bytes(512 * 1024)).encode()

    def fill() -> None:
        for number in range(200):
            rows.restore([(trace_key(0, "acme", f"large-{number}"), row)], 2 + number)

    try:
        with pytest.raises(StateUnusable, match="make room"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        with contextlib.suppress(StateUnusable):
            database.close()
    again = opened(tmp_path)
    position = rows_of(again).position()
    held = sum(1 for _ in rows_of(again).unsettled())
    assert held == (position.held if position is not None else 0)
    again.close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateUnusable, match="file"):
        opened(tmp_path / "file" / "state")
