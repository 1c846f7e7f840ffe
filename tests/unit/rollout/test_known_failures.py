"""What went wrong in systems like this one (field notes), each tried on ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.rollout.evidence import COUNTED, FAST, REQUESTS, Series
from services.rollout.ledger import Entry
from services.rollout.steps import RolloutState
from shared.kafka.topics import ROLLOUTS, VERSIONS
from shared.registry.rollouts import AnalysisOutcome, DecisionKind, Phase
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually
from tests.unit.rollout.fakes import FakeRedis, Rig, register


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A leader of a model with v1 stable, v2 and v3 registered."""
    clock = ManualClock()
    log = MemoryLog(partitions={ROLLOUTS: 1, VERSIONS: 1}, clock=clock)
    await register(log, "v1")
    made = Rig(log, FakeRedis(clock), clock, tmp_path)
    await made.caught_up()
    await made.round()
    for version in ("v2", "v3"):
        await register(log, version)
    await eventually(lambda: made.versions.registry.get("v3"), "v3 is known")
    yield made
    await made.close()


async def begin(rig: Rig, candidate: str = "v2") -> RolloutState:
    """A candidate at its first weight."""
    state = await rig.controller.start(
        model="m", candidate=candidate, strategy=None, supersede=False, actor="a", reason=""
    )
    await rig.round()
    assert entry(rig, state).state.weight == 500
    return state


def entry(rig: Rig, state: RolloutState) -> Entry:
    found = rig.ledger.get(state.rollout_id)
    assert found is not None
    return found


def traffic(
    rig: Rig,
    state: RolloutState,
    candidate: tuple[float, float],
    stable: tuple[float, float],
    *,
    rollout: str = "",
) -> None:
    """Counters of (requests, failures) by arm as Prometheus has them now."""
    at = rig.clock.now().timestamp()
    series: list[Series] = []
    for arm, version, (requests, failures) in (
        ("candidate", state.candidate, candidate),
        ("stable", state.stable, stable),
    ):
        labels = {"rollout": rollout or state.rollout_id, "arm": arm, "version": version}
        series += [
            Series({**labels, "__name__": COUNTED}, ((at, requests),)),
            Series({**labels, "__name__": FAST, "le": "2.0"}, ((at, requests),)),
            Series({**labels, "__name__": REQUESTS, "outcome": "timeout"}, ((at, failures),)),
        ]
    rig.prometheus.series = series


async def test_rollback_on_no_traffic(rig: Rig) -> None:
    state = await begin(rig)
    for _ in range(40):
        await rig.round(60.0)
    now = entry(rig, state)
    assert (now.state.phase, now.state.weight) == (Phase.progressing, 500)
    assert now.state.outcome is AnalysisOutcome.no_data


async def test_success_while_every_measurement_failed(rig: Rig) -> None:
    state = await begin(rig)
    traffic(rig, state, (50, 0), (500, 0))
    await rig.round()
    rig.prometheus.error = "connection refused"
    for _ in range(40):
        await rig.round(60.0)
    now = entry(rig, state)
    assert now.state.weight <= 10_000
    assert now.state.phase is Phase.progressing
    assert now.state.outcome is AnalysisOutcome.error
    kinds = [one.kind for one in rig.written if one.rollout_id == state.rollout_id]
    assert DecisionKind.complete not in kinds


async def test_a_weight_of_100_to_0_compared_as_if_it_were_50_to_50(rig: Rig) -> None:
    """At 100 % nobody is on stable: its share of 0 requests is no error rate of 0."""
    state = await begin(rig)
    traffic(rig, state, (500, 2), (10_000, 40))
    await rig.round()
    await rig.round()
    assert entry(rig, state).state.weight == 10_000
    for n in range(1, 4):
        traffic(rig, state, (500 + 1_000.0 * n, 2 + 4.0 * n), (10_000, 40))
        await rig.round()
    assert entry(rig, state).state.phase is not Phase.degraded
    assert rig.view.states[-1].weight in (10_000, 0)


async def test_evidence_inherited_from_the_previous_candidate(rig: Rig) -> None:
    bad = await begin(rig, "v2")
    traffic(rig, bad, (100, 60), (1_000, 0))
    await rig.round()
    assert entry(rig, bad).state.phase is Phase.degraded
    good = await begin(rig, "v3")
    # The old rollout's series are still scraped.
    traffic(rig, bad, (200, 120), (2_000, 0))
    old = rig.prometheus.series
    traffic(rig, good, (30, 0), (600, 0))
    rig.prometheus.series = [*old, *rig.prometheus.series]
    await rig.round()
    now = entry(rig, good)
    assert now.state.phase is Phase.progressing
    _, judged, _ = rig.controller.newest(now)
    assert judged is not None
    assert (judged.totals.candidate.requests, judged.totals.candidate.failures) == (30, 0)


async def test_a_rollback_that_never_reaches_0_or_takes_stable_away(rig: Rig) -> None:
    state = await begin(rig)
    traffic(rig, state, (100, 60), (1_000, 0))
    await rig.round()
    last = rig.view.states[-1]
    assert (last.weight, last.candidate, last.stable) == (0, "", "v1")
    stable = rig.versions.registry.get("v1")
    assert stable is not None
    assert stable.lifecycle.value == "stable"
    for _ in range(5):
        await rig.round(20.0)
    assert {one.weight for one in rig.view.states[-3:]} == {0}
