"""What went wrong in systems like this one (field notes), each tried on ours."""

from __future__ import annotations

import pytest

from services.rollout.counters import COUNTED, REQUESTS, CounterSeries
from services.rollout.decision_log import RolloutHistory
from services.rollout.state import RolloutState
from services.rollout.strategy_files import parse
from shared.contracts.events.rollouts import AnalysisOutcome, DecisionKind, Phase
from tests.unit.rollout.fakes import ControllerHarness, register, until_known


@pytest.fixture
async def harness(harness: ControllerHarness) -> ControllerHarness:
    """With v3 registered, too."""
    await register(harness.log, "v3")
    await until_known(harness, "v3")
    return harness


async def begin(harness: ControllerHarness, candidate: str = "v2") -> RolloutState:
    """A candidate at its first weight."""
    state = await harness.controller.start(
        model="m", candidate=candidate, strategy=None, supersede=False, actor="a", reason=""
    )
    await harness.round()
    assert history(harness, state).state.weight == 500
    return state


def history(harness: ControllerHarness, state: RolloutState) -> RolloutHistory:
    found = harness.decision_log.get(state.rollout_id)
    assert found is not None
    return found


def traffic(
    harness: ControllerHarness,
    state: RolloutState,
    candidate: tuple[float, float],
    stable: tuple[float, float],
    *,
    rollout: str = "",
) -> None:
    """Counters of (requests, failures) by arm as Prometheus has them now."""
    harness.clock.advance(0.5)  # a scrape comes after the weight that it is to judge
    at = harness.clock.now().timestamp()
    series: list[CounterSeries] = []
    for arm, version, (requests, failures) in (
        ("candidate", state.candidate, candidate),
        ("stable", state.stable, stable),
    ):
        labels = {"rollout": rollout or state.rollout_id, "arm": arm, "version": version}
        series += [
            CounterSeries({**labels, "__name__": COUNTED}, ((at, requests),)),
            CounterSeries(
                {**labels, "__name__": REQUESTS, "outcome": "timeout"}, ((at, failures),)
            ),
        ]
    harness.prometheus.series = series


async def test_rollback_on_no_traffic(harness: ControllerHarness) -> None:
    state = await begin(harness)
    for _ in range(40):
        await harness.round(60.0)
    now = history(harness, state)
    assert (now.state.phase, now.state.weight) == (Phase.progressing, 500)
    assert now.state.outcome is AnalysisOutcome.no_data


async def test_success_while_every_measurement_failed(harness: ControllerHarness) -> None:
    state = await begin(harness)
    traffic(harness, state, (50, 0), (500, 0))
    await harness.round()
    await harness.round()
    before = history(harness, state).state
    assert before.weight == 10_000
    harness.prometheus.error = "connection refused"
    for _ in range(40):
        await harness.round(60.0)
    now = history(harness, state)
    assert (now.state.weight, now.state.step) == (before.weight, before.step)
    assert now.state.phase is Phase.progressing
    assert now.state.outcome is AnalysisOutcome.error
    kinds = [one.kind for one in harness.written if one.rollout_id == state.rollout_id]
    assert DecisionKind.complete not in kinds


async def test_a_weight_of_100_to_0_compared_as_if_it_were_50_to_50(
    harness: ControllerHarness,
) -> None:
    """At 100 % nobody is on stable: its share of 0 requests is no error rate of 0."""
    state = await begin(harness)
    traffic(harness, state, (500, 2), (10_000, 40))
    await harness.round()
    await harness.round()
    assert history(harness, state).state.weight == 10_000
    for n in range(1, 3):
        traffic(harness, state, (500 + 1_000.0 * n, 2 + 4.0 * n), (10_000, 40))
        await harness.round()
    now = history(harness, state)
    assert (now.state.phase, now.state.outcome) == (Phase.progressing, AnalysisOutcome.successful)
    assert harness.view.states[-1].weight == 10_000
    _, _, verdict = harness.controller.newest(now)
    assert verdict is not None
    errors = next(one for one in verdict.results if one.criterion == "errors")
    assert (errors.candidate_n, errors.stable_n, errors.stable) == (2_500, 10_000, 0.004)
    traffic(harness, state, (4_500, 18), (10_000, 40))
    await harness.round(5.0)
    assert history(harness, state).state.phase is Phase.healthy
    assert (harness.view.states[-1].stable, harness.view.states[-1].weight) == ("v2", 0)


async def test_evidence_inherited_from_the_previous_candidate(harness: ControllerHarness) -> None:
    bad = await begin(harness, "v2")
    traffic(harness, bad, (100, 60), (1_000, 0))
    await harness.round()
    assert history(harness, bad).state.phase is Phase.degraded
    good = await begin(harness, "v3")
    # The old rollout's series are still scraped.
    traffic(harness, bad, (200, 120), (2_000, 0))
    old = harness.prometheus.series
    traffic(harness, good, (30, 0), (600, 0))
    harness.prometheus.series = [*old, *harness.prometheus.series]
    await harness.round()
    now = history(harness, good)
    assert now.state.phase is Phase.progressing
    _, judged, _ = harness.controller.newest(now)
    assert judged is not None
    assert (judged.totals.candidate.requests, judged.totals.candidate.failures) == (30, 0)


async def test_a_rollback_that_never_reaches_0_or_takes_stable_away(
    harness: ControllerHarness,
) -> None:
    state = await begin(harness)
    traffic(harness, state, (100, 60), (1_000, 0))
    await harness.round()
    last = harness.view.states[-1]
    assert (last.weight, last.candidate, last.stable) == (0, "", "v1")
    stable = harness.versions.registry.get("v1")
    assert stable is not None
    assert stable.lifecycle.value == "stable"
    for _ in range(5):
        await harness.round(20.0)
    assert {one.weight for one in harness.view.states[-3:]} == {0}


async def test_a_promotion_that_nobody_saw(harness: ControllerHarness) -> None:
    """Every step is shorter than the silence that counts as NoData, and no router is scraped."""
    blind = parse(
        {
            "name": "blind",
            "steps": [
                {"setWeight": 5},
                {"pause": {"duration": 2}},
                {"analysis": {}},
                {"setWeight": 50},
                {"analysis": {}},
                {"setWeight": 100},
                {"pause": {"duration": 2}},
            ],
        }
    )
    state = await harness.controller.start(
        model="m", candidate="v2", strategy=blind, supersede=False, actor="a", reason=""
    )
    for _ in range(25):
        await harness.round()
    now = history(harness, state)
    assert (now.state.phase, now.state.weight) == (Phase.progressing, 500)
    assert "no request of the candidate was counted" in now.last.reason
    # Scraped again, it goes on: samples after each weight let the next one be.
    for n in range(1, 9):
        traffic(harness, state, (10.0 * n, 0), (100.0 * n, 0))
        await harness.round()
    assert history(harness, state).state.phase is Phase.healthy
