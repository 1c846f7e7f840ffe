"""Bytes of rows by tenant: counted exactly, and over a budget the oldest texts without feedback go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.aggregator import tenant_search
from services.aggregator.disk_rows import DiskRows
from services.aggregator.fold import FoldRules
from services.aggregator.partition import OVER_BUDGET
from services.aggregator.row_database import MIB, RowDatabase
from services.aggregator.rows import checkpoint_key, tenant_of, trace_key
from services.aggregator.tenant_budget import TenantBytes
from shared.contracts.events.base import Event
from shared.contracts.events.preferences import UnpairedExample
from shared.contracts.events.quality import Tick
from shared.testing.clock import ManualClock
from tests.support.aggregator import at, feedback, interaction
from tests.unit.aggregator.simulation import (
    DiskSimulation,
    Simulation,
    log_ms,
    recovered,
    stored_aggregates,
    topic_of,
)
from tests.unit.aggregator.test_partition import logs

pytestmark = pytest.mark.timeout(180)  # hypothesis on a busy machine

TEXT = "A question that only this trace has. " * 40
BUDGET = FoldRules(horizon_s=30 * 86_400, tenant_bytes=14_000)


def asked(number: int, tenant: str = "acme") -> Event:
    return interaction(f"t{number}", tenant=tenant, prompt=TEXT, seconds=float(number))


def ticks(count: int) -> list[Event]:
    return [Tick(at=at(60.0 + number), partition=0) for number in range(count)]


def recounted(simulation: Simulation) -> dict[str, int]:
    """Bytes by tenant of what the changelog holds."""
    held: Counter[str] = Counter()
    for key, value in simulation.changelog.items():
        if not key.startswith(checkpoint_key(0)) and (tenant := tenant_of(key)) is not None:
            held[tenant] += len(value)
    return dict(held)


def with_texts(simulation: Simulation, tenant: str = "acme") -> set[str]:
    return {
        key.decode().rsplit("\x1f", 1)[1]
        for key, value in simulation.changelog.items()
        if TEXT.encode() in value and key.startswith(trace_key(0, tenant, ""))
    }


def counted(simulation: Simulation) -> int:
    stored = stored_aggregates(simulation.changelog)
    return stored.outcomes.get(OVER_BUDGET, 0)


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[DiskRows]:
    database = RowDatabase(tmp_path, cache_bytes=MIB)
    yield DiskRows(database, 0, rules=BUDGET, clock=ManualClock())
    database.close()


def test_over_its_budget_a_tenant_loses_its_oldest_texts_without_feedback_and_each_is_counted() -> (
    None
):
    said = feedback("f0", "t0")
    events = [*map(asked, range(8)), said, asked(0, tenant="other"), *ticks(3)]
    simulation = Simulation(events, BUDGET)
    simulation.run(batch=1)
    left = with_texts(simulation)
    assert "t0" in left, "it has feedback"
    assert left == {"t0"} | {f"t{number}" for number in range(9 - len(left), 8)}, "the newest"
    assert counted(simulation) == 8 - len(left) > 0
    assert recounted(simulation)["acme"] <= BUDGET.tenant_bytes
    assert with_texts(simulation, "other") == {"t0"}
    more = Simulation([*events, feedback("f1", "t1")], BUDGET)
    more.run(batch=1)
    stored = stored_aggregates(more.changelog)
    assert stored.feedback["assistant-v1.0", "thumbs_up"] == 2, "later feedback counts"
    taught = [out.event.traces for out in more.outputs if isinstance(out.event, UnpairedExample)]
    assert taught == [("t0",)], "and teaches nothing"


def test_without_a_budget_no_text_goes() -> None:
    simulation = Simulation([*map(asked, range(8)), *ticks(3)])
    simulation.run(batch=1)
    assert len(with_texts(simulation)) == 8
    assert counted(simulation) == 0


def test_a_tick_goes_on_where_the_one_before_it_stopped() -> None:
    """At its budget a tenant is over it again with each new row; what was emptied is not read again."""
    events: list[Event] = list(map(asked, range(6)))
    for number in range(6, 40):
        events += [asked(number), Tick(at=at(60.0 + number), partition=0)]
    simulation = Simulation([*events, *ticks(2)], replace(BUDGET, tenant_bytes=40_000))
    simulation.run(batch=1)
    assert recounted(simulation)["acme"] <= 40_000
    left = with_texts(simulation)
    assert 0 < len(left) < 40
    assert counted(simulation) == 40 - len(left)
    assert left == {f"t{number}" for number in range(40 - len(left), 40)}


@pytest.mark.parametrize(("share", "rows"), [("ROWS_PER_BATCH", 3), ("SCANNED_PER_BATCH", 3)])
def test_one_batch_takes_a_bounded_part_of_the_texts_however_many_ticks_it_has(
    monkeypatch: pytest.MonkeyPatch, share: str, rows: int
) -> None:
    monkeypatch.setattr(tenant_search, share, rows)
    state = recovered(replace(BUDGET, tenant_bytes=1))
    batches: list[list[Event]] = [[asked(number) for number in range(8)], *([ticks(20)] * 3)]
    offsets: Counter[str] = Counter()
    emptied: list[int] = []
    for batch in batches:
        for event in batch:
            topic = topic_of(event)
            state.apply(topic, offsets[topic], event, event.to_json(), log_ms(60))
            offsets[topic] += 1
        emptied.append(state.aggregates.outcomes.get(OVER_BUDGET, 0))
        state.confirm(state.take())
    # The first batch had its share before this bound was set.
    assert emptied == [0, 3, 6, 8]


def test_texts_that_come_after_a_search_to_the_end_go_with_a_later_one() -> None:
    """Rows with feedback stay twice as long, so rows that came later can be due before them."""
    answered = [event for n in range(12) for event in (asked(n), feedback(f"f{n}", f"t{n}"))]
    events = [*answered, *ticks(2), *map(asked, range(12, 15))]
    simulation = Simulation([*events, Tick(at=at(60 + tenant_search.AGAIN_S), partition=0)], BUDGET)
    simulation.run(batch=1)
    assert recounted(simulation)["acme"] > BUDGET.tenant_bytes, "by what has feedback alone"
    assert with_texts(simulation) == {f"t{number}" for number in range(12)}
    assert counted(simulation) == 3


def test_sizes_of_rows_that_were_only_read_are_not_kept() -> None:
    state = recovered(BUDGET)
    answered = [event for n in range(12) for event in (asked(n), feedback(f"f{n}", f"t{n}"))]
    for events in (answered, ticks(1)):
        for offset, event in enumerate(events):
            state.apply(topic_of(event), offset, event, event.to_json(), log_ms(60))
        state.confirm(state.take())
    assert state.tenants == TenantBytes(sums=dict(state.tenants.sums))


@given(
    events=logs,
    kills=st.lists(st.integers(0, 12), max_size=12),
    batch=st.integers(1, 6),
    limit=st.sampled_from((0, 700, 1500)),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_after_any_kills_the_sums_are_those_of_the_rows_held(
    rows: DiskRows, events: list[Event], kills: list[int], batch: int, limit: int
) -> None:
    rows.forget()
    rules = FoldRules(horizon_s=3000.0, scores_per_day=2, tenant_bytes=limit)
    simulation = DiskSimulation([*events, Tick(at=at(8000), partition=0)], rules, rows=rows)
    simulation.run(batch=batch, kill_after=kills)
    assert rows.tenants() == recounted(simulation)
