"""Shadow step: it begins when the candidate is served, and nothing but its minimum ends it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Literal

import pytest

from services.rollout import steps
from services.rollout.shadow import ShadowResult, ShadowTally
from services.rollout.shadow_results import MAX_RESULTS, ShadowResults
from services.rollout.state import EngineReport, Observation, RolloutState
from services.rollout.strategy_files import parse
from services.rollout.views import sentence
from shared.contracts.events.generations import GenerationFinished, ShadowComparison
from shared.contracts.events.rollouts import DecisionKind, Phase
from shared.contracts.events.versions import Lifecycle
from shared.contracts.topics import GENERATION_RESULTS
from shared.kafka.log import Record
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually
from tests.unit.rollout.fakes import ControllerBench, register, until_known

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHADOW = {"share": 10, "minimum": 5, "duration": 20, "deadline": 60, "errorLimit": 0.1}
RAW: dict[str, Any] = {
    "name": "s",
    "steps": [
        {"shadow": SHADOW},
        {"setWeight": 5},
        {"analysis": {}},
        {"setWeight": 100},
        {"pause": {"duration": 10}},
    ],
}
STRATEGY = parse(RAW)
SERVED = {"agent": EngineReport(ready=True, generation=1, candidate_ready=True)}
SAME = ShadowComparison(
    length_ratio=1.0,
    similarity=1.0,
    refused=False,
    shown_refused=False,
    tools_equal=True,
    latency_ms=300,
    shown_latency_ms=200,
)


def finished(
    number: int,
    outcome: Literal["ok", "failed", "expired"] = "ok",
    *,
    rollout: str = "r",
    comparison: ShadowComparison | None = SAME,
) -> GenerationFinished:
    return GenerationFinished(
        request_id=f"{rollout}/{number}",
        batch_id=rollout,
        purpose="shadow",
        version="v2",
        outcome=outcome,
        finished_at=NOW,
        comparison=comparison if outcome == "ok" else None,
    )


def results(
    ok: int = 0, *, failed: int = 0, expired: int = 0, start: int = 0
) -> tuple[ShadowResult, ...]:
    """Results at the offsets from `start` on."""
    outcomes: list[Literal["ok", "failed", "expired"]] = [
        *(["ok"] * ok),
        *(["failed"] * failed),
        *(["expired"] * expired),
    ]
    numbers = count(start)
    return tuple(
        (Record(GENERATION_RESULTS, 0, at, "k", b"", (), 0), finished(at, outcome))
        for outcome, at in zip(outcomes, numbers, strict=False)
    )


def test_what_the_engine_refuses_its_base_too_says_nothing_of_the_candidate() -> None:
    record = Record(GENERATION_RESULTS, 0, 0, "k", b"", (), 0)
    unsuited = finished(0, "failed").model_copy(update={"unsuited": True})
    tally = ShadowTally(since=NOW).counting([(record, unsuited)])
    assert (tally.failed, tally.unsuited, tally.asked, tally.coverage) == (0, 1, 1, 0)


def begun() -> RolloutState:
    return RolloutState(
        rollout_id="r",
        model="m",
        stable="v1",
        candidate="v2",
        strategy=STRATEGY,
        started_at=NOW,
        step_started_at=NOW,
        updated_at=NOW,
    )


def seen(after_s: float = 1.0, **changes: Any) -> Observation:
    at = NOW + timedelta(seconds=after_s)
    return replace(Observation(at=at, agents=SERVED, zeros_missing=""), **changes)


def shadowing() -> RolloutState:
    """A rollout whose candidate answers a tenth of the requests, since second 1."""
    move = steps.look(begun(), seen())
    assert (move.kind, move.state.mirrored, move.state.weight) == (DecisionKind.weight, 1_000, 0)
    return move.state


def test_nothing_is_mirrored_before_every_engine_serves_the_candidate() -> None:
    loading = {"agent": EngineReport(ready=True, generation=1, detail="loading")}
    move = steps.look(begun(), seen(agents=loading))
    assert (move.kind, move.state.mirrored) == (DecisionKind.hold, 0)
    assert "loading" in move.reason
    assert steps.look(begun(), seen(1_000, agents=loading)).state.needs_person
    # Routers whose series were not scraped yet have no say: no user is judged.
    assert steps.look(begun(), seen(zeros_missing="router b")).state.mirrored == 1_000


@pytest.mark.parametrize(
    ("after_s", "answers", "why"),
    [
        (30, results(4), "4 of 5 shadow answers"),
        (30, results(4, expired=90), "4 of 5 shadow answers"),
        (10, results(50), "11 s left"),
        (9_000, (), "0 of 5 shadow answers"),
    ],
)
def test_under_its_minimum_and_time_the_step_never_ends(
    after_s: float, answers: tuple[ShadowResult, ...], why: str
) -> None:
    move = steps.look(shadowing(), seen(after_s, shadow=answers))
    assert (move.kind, move.state.step, move.state.weight) == (DecisionKind.hold, 0, 0)
    assert why in move.reason


def test_it_ends_with_its_minimum_and_time_and_the_first_weight_follows() -> None:
    move = steps.look(shadowing(), seen(30, shadow=results(5)))
    assert (move.kind, move.state.weight, move.state.mirrored) == (DecisionKind.weight, 500, 0)
    assert move.state.shadow is not None
    assert move.state.shadow.answered == 5


def test_past_its_deadline_a_person_is_called() -> None:
    move = steps.look(shadowing(), seen(62, shadow=results(4)))
    assert (move.state.needs_person, move.urgent) == (True, True)
    assert "deadline is over" in move.reason


def test_a_candidate_that_fails_the_requests_is_taken_back_before_it_has_a_user() -> None:
    move = steps.look(shadowing(), seen(5, shadow=results(4, failed=12)))
    assert (move.kind, move.state.phase) == (DecisionKind.rollback, Phase.degraded)
    assert "12 of 16 shadow answers failed, the limit is 10.00%" in move.reason


@pytest.mark.parametrize(
    "answers",
    [results(1, failed=1), results(40, failed=6), results(10, expired=1_000)],
    ids=["two answers", "near the limit", "the worker lags"],
)
def test_noise_and_lag_take_nothing_back(answers: tuple[ShadowResult, ...]) -> None:
    assert steps.look(shadowing(), seen(5, shadow=answers)).kind is DecisionKind.hold


def test_what_a_lost_engine_cost_is_not_the_candidates() -> None:
    state = steps.look(shadowing(), seen(2)).state
    lost = {"agent": EngineReport(ready=False, generation=1)}
    stopped = steps.look(state, seen(3, agents=lost))
    assert (stopped.state.phase, stopped.state.mirrored) == (Phase.paused, 0)
    waiting = steps.look(stopped.state, seen(4, agents=lost, shadow=results(failed=50)))
    assert waiting.kind is DecisionKind.hold
    resumed = steps.look(waiting.state, seen(30, shadow=results(failed=50))).state
    assert (resumed.phase, resumed.step, resumed.mirrored) == (Phase.progressing, 0, 1_000)
    assert resumed.shadow is not None
    assert resumed.shadow.failed == 0


def test_a_person_may_pause_end_and_call_off_a_shadow() -> None:
    state = shadowing()
    assert steps.pause(state, NOW, "look").state.mirrored == 0
    assert steps.promote(state, NOW, "seen enough").state.step == 1
    assert steps.abort(state, NOW, "no").state.mirrored == 0


def test_each_result_counts_once_whoever_counts_it() -> None:
    tally = ShadowTally(since=NOW).counting(results(3, failed=1))
    again = tally.counting((*results(3, failed=1), *results(2, start=4)))
    assert again.outcomes() == {"answered": 5, "failed": 1, "expired": 0, "unsuited": 0}


def test_differences_are_those_of_the_compared_answers() -> None:
    other = SAME.model_copy(
        update={"length_ratio": 4.0, "similarity": 0.5, "refused": True, "tools_equal": False}
    )
    found = [finished(0), finished(1, comparison=other), finished(2, "expired")]
    tally = ShadowTally(since=NOW).counting(
        (Record(GENERATION_RESULTS, 0, at, "k", b"", (), 0), result)
        for at, result in enumerate(found)
    )
    assert tally.coverage == pytest.approx(2 / 3)
    assert tally.differences() == pytest.approx(
        {
            "length_ratio": 2.0,
            "similarity": 0.75,
            "refused": 0.5,
            "shown_refused": 0.0,
            "tools_differ": 0.5,
            "latency_ratio": 1.5,
        }
    )
    assert ShadowTally(since=NOW).differences() == {}


async def test_results_wait_for_their_rollout_bounded_and_once() -> None:
    log = MemoryLog(partitions={GENERATION_RESULTS: 1})
    collected = ShadowResults(log)
    for number in range(MAX_RESULTS + 10):
        result = finished(number)
        headers = (("ce_type", GenerationFinished.ce_type.encode()),)
        record = Record(GENERATION_RESULTS, 0, number, "k", result.to_json(), headers, 0)
        collected._take(record)
        collected._take(record)
    state = begun().but(shadow=ShadowTally(since=NOW))
    waiting = collected.of(state)
    assert [record.offset for record, _ in waiting] == list(range(10, MAX_RESULTS + 10))
    counted = state.but(shadow=ShadowTally(since=NOW).counting(waiting))
    assert collected.of(counted) == ()
    assert collected.of(begun().but(rollout_id="other", shadow=counted.shadow)) == ()


async def test_the_controller_shadows_before_the_first_user(bench: ControllerBench) -> None:
    """State `shadow`, share for the routers, answers on status and record; a successor goes on."""
    await register(bench.log, "v1")
    harness = await bench.harness()
    await harness.round()
    await register(bench.log, "v2")
    await until_known(harness, "v2")
    state = await harness.controller.start(
        model="m", candidate="v2", strategy=STRATEGY, supersede=False, actor="ann", reason="try"
    )
    await harness.round()
    name = state.rollout_id
    version = harness.versions.registry.get("v2")
    assert version is not None
    assert version.lifecycle is Lifecycle.shadow
    assert (harness.view.states[-1].shadow, harness.view.states[-1].weight) == (1_000, 0)
    last = harness.decision_log.get(name).last  # type: ignore[union-attr]
    assert sentence(last) == "v2 answers 10 % of the live requests, seen by nobody"
    for number in range(5):
        result = finished(number, rollout=name)
        await bench.log.publish(
            GENERATION_RESULTS, key=result.request_id, event=result, event_id=result.request_id
        )
    await harness.shadow_results.caught_up(5)

    async def counted(harness: Any, expected: int) -> None:
        async def tally() -> bool:
            await harness.round()
            shadow = harness.controller.newest(harness.decision_log.get(name))[0].shadow
            return shadow is not None and shadow.answered == expected

        await eventually(tally, f"{expected} answers are counted")

    await counted(harness, 5)
    value = harness.metrics.get_sample_value
    await harness.round(5)
    labels = {"model": "m", "rollout": name}
    assert value("ratchet_rollout_shadow_answers", {**labels, "outcome": "answered"}) == 5
    assert value("ratchet_rollout_shadow_coverage_ratio", labels) == 1
    assert value("ratchet_rollout_shadow_difference", {**labels, "figure": "latency_ratio"}) == 1.5
    bench.clock.advance(30)
    await harness.controller._leadership.resign()
    second = await bench.harness("two")
    await second.round()
    await counted(second, 5)
