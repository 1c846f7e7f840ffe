"""The controller on a log in memory: written before acted on, fenced, and taken up where it was."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.rollout import steps
from services.rollout.counters import (
    COUNTED,
    GAPS,
    SCORE_COUNT,
    SCORE_SUM,
    SHORT_GAPS,
    SLOW,
    CounterSeries,
)
from services.rollout.counts import Arms, JudgeState, Slice
from services.rollout.errors import Conflict, LeadershipLost, NotAllowed, NotLeading, Unknown
from services.rollout.judge import Judge
from services.rollout.state import EngineReport, RolloutState
from services.rollout.strategy_files import read
from shared.contracts.events.rollouts import DecisionKind, LeaderElected, Phase
from shared.contracts.topics import ROLLOUTS, VERSIONS
from shared.kafka.log import LogUnavailable
from tests.unit.rollout.fakes import (
    STRATEGY,
    ControllerBench,
    ControllerHarness,
    begun,
    register,
    start,
    traffic,
    until_known,
)


def lifecycle(harness: ControllerHarness, version: str) -> str:
    found = harness.versions.registry.get(version)
    assert found is not None
    return found.lifecycle.value


async def test_no_version_becomes_stable_before_an_engine_has_verified_it(
    bench: ControllerBench,
) -> None:
    """An override let a wrong base past the gate: it became stable, and every engine refused it."""
    await register(bench.log, "v1")
    harness = await bench.harness(auto_start=True)
    harness.agents.refused = {"v1"}
    await harness.round()
    await harness.round()
    assert harness.written == []
    assert harness.decision_log.routing.get("m") is None
    assert lifecycle(harness, "v1") == "registered"
    await register(bench.log, "v2")
    await until_known(harness, "v2")
    await harness.round()
    assert [(one.kind, one.stable) for one in harness.written] == [(DecisionKind.stable_set, "v2")]


async def test_the_first_released_version_becomes_stable_and_the_next_queue(
    bench: ControllerBench,
) -> None:
    await register(bench.log, "v0", released=False)
    for version in ("v1", "v2", "v3"):
        await register(bench.log, version)
    harness = await bench.harness(auto_start=True)
    await harness.round()
    assert [(one.kind, one.stable) for one in harness.written][:1] == [
        (DecisionKind.stable_set, "v1")
    ]
    for expected in ("v2", "v3"):
        await harness.round()
        history = harness.decision_log.unfinished_of("m")
        assert history is not None
        assert history.state.candidate == expected
        assert lifecycle(harness, expected) == "canary"
        ended = await harness.controller.command(history.state.rollout_id, _abort, "ann")
        assert ended.phase is Phase.degraded
        assert lifecycle(harness, expected) == "rejected"
    await harness.round()
    assert harness.decision_log.unfinished_of("m") is None
    assert lifecycle(harness, "v0") == "registered"


async def test_a_version_on_another_base_waits_for_a_person_and_holds_nobody_up(
    bench: ControllerBench,
) -> None:
    await register(bench.log, "v1")
    harness = await bench.harness(auto_start=True)
    await harness.round()
    await register(bench.log, "v2", base="new")
    await register(bench.log, "v3")
    await until_known(harness, "v3")
    await harness.round()
    history = harness.decision_log.unfinished_of("m")
    assert history is not None
    assert history.state.candidate == "v3"
    assert lifecycle(harness, "v2") == "registered"


def _abort(state: RolloutState, at: Any) -> Any:
    return steps.abort(state, at, "enough")


async def test_a_good_candidate_becomes_stable_and_its_parent_retires(
    bench: ControllerBench,
) -> None:
    harness, state = await begun(bench)
    assert lifecycle(harness, "v2") == "canary"
    for n in range(1, 12):
        traffic(harness, state, 20.0 * n)
        await harness.round()
    history = harness.decision_log.get(state.rollout_id)
    assert history is not None
    assert history.state.phase is Phase.healthy
    assert (lifecycle(harness, "v1"), lifecycle(harness, "v2")) == ("retired", "stable")
    moved = [record.key for record in bench.log.all(VERSIONS)]
    assert moved[-2:] == ["v2/state", "v1/state"]
    last = harness.view.states[-1]
    assert (last.stable, last.candidate, last.weight) == ("v2", "", 0)


async def test_a_bad_candidate_is_rolled_back_with_its_evidence_on_record(
    bench: ControllerBench,
) -> None:
    harness, state = await begun(bench)
    for n in range(1, 4):
        traffic(harness, state, 100.0 * n, failures=30.0 * n)
        await harness.round()
    history = harness.decision_log.get(state.rollout_id)
    assert history is not None
    assert (history.state.phase, history.state.weight) == (Phase.degraded, 0)
    assert lifecycle(harness, "v2") == "rejected"
    decision = history.last
    assert decision.kind is DecisionKind.rollback
    assert (decision.weight_before, decision.weight) == (500, 0)
    assert decision.config_sha256 == STRATEGY.sha256
    assert state.rollout_id in decision.evidence["query"]
    assert {"criterion", "candidate_n", "log_e", "threshold"} <= set(
        decision.evidence["findings"][0]
    )


async def test_a_bad_candidate_is_rolled_back_while_the_disk_refuses_its_evidence(
    bench: ControllerBench, tmp_path: Path
) -> None:
    (tmp_path / "one").write_text("a file where the folder of evidence should be")
    harness, state = await begun(bench)
    for n in range(1, 4):
        traffic(harness, state, 100.0 * n, failures=30.0 * n)
        await harness.round()
    assert (tmp_path / "one").is_file()
    history = harness.decision_log.get(state.rollout_id)
    assert history is not None
    assert (history.state.phase, history.state.weight) == (Phase.degraded, 0)
    assert harness.metrics.get_sample_value("ratchet_rollout_evidence_refused_total")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ({"score": 0.3}, "satisfaction below"),
        ({"slow": 0.3}, "slow share"),
        ({"stalls": 0.3}, "token gap"),
    ],
)
async def test_harm_that_is_no_error_is_rolled_back_too(
    bench: ControllerBench, harm: dict[str, float], said: str
) -> None:
    """No request fails: only what users say, or how long they wait, differs."""
    harness, state = await begun(bench)
    for n in range(1, 40):
        harness.prometheus.series = list(
            _counters(state, harness.clock.now().timestamp(), 12.0 * n, **harm)
        )
        await harness.round()
        if not harness.decision_log.unfinished_of("m"):
            break
    last = harness.written[-1]
    assert last.kind is DecisionKind.rollback
    assert said in last.reason
    assert harness.view.states[-1].weight == 0


def _counters(
    state: RolloutState,
    at: float,
    requests: float,
    *,
    score: float = 0.7,
    slow: float = 0.0,
    stalls: float = 0.0,
) -> Iterator[CounterSeries]:
    """Counters of a candidate with that harm, and of a stable arm without it."""
    for arm, version, harmed in (("candidate", "v2", True), ("stable", "v1", False)):
        labels = {"rollout": state.rollout_id, "arm": arm, "version": version}
        slow_now, stalls_now = (slow, stalls) if harmed else (0.0, 0.0)
        for name, value, more in (
            (COUNTED, requests, {}),
            (SLOW, requests * slow_now, {}),
            (GAPS, requests, {}),
            (SHORT_GAPS, requests * (1 - stalls_now), {"le": "2.0"}),
            (SCORE_COUNT, requests, {"partition": "0"}),
            (SCORE_SUM, requests * (score if harmed else 0.7), {"partition": "0"}),
        ):
            yield CounterSeries({**labels, **more, "__name__": name}, ((at, value),))


async def test_the_way_back_to_a_version_that_served_before(bench: ControllerBench) -> None:
    """The strategy `restore`, from the first request to stable again."""
    harness, state = await begun(bench)
    for n in range(1, 12):
        traffic(harness, state, 20.0 * n)
        await harness.round()
    assert lifecycle(harness, "v2") == "stable"
    restore = read(Path("services/rollout/strategies/restore.yaml"))
    back = await harness.controller.start(
        model="m",
        candidate="v1",
        strategy=restore,
        supersede=False,
        actor="ann",
        reason="v2 rambles",
    )
    weights = set[int]()
    for n in range(1, 400):
        at = harness.clock.now().timestamp()
        harness.prometheus.series = [
            CounterSeries(
                {**one.labels, "version": {"v1": "v2", "v2": "v1"}[one.labels["version"]]},
                one.samples,
            )
            for one in _counters(back, at, 10.0 * n)
        ]
        await harness.round(5.0)
        weights.add(harness.view.states[-1].weight)
        if not harness.decision_log.unfinished_of("m"):
            break
    assert 10_000 in weights
    assert (lifecycle(harness, "v1"), lifecycle(harness, "v2")) == ("stable", "retired")


async def test_the_log_alone_replays_the_judge(bench: ControllerBench) -> None:
    harness, state = await begun(bench)
    for n in range(1, 12):
        traffic(harness, state, 7.0 * n, failures=float(n // 4))
        await harness.round()
    slices: dict[int, Slice] = {}
    last: dict[str, Any] = {}
    for decision in harness.written:
        if decision.rollout_id == state.rollout_id:
            last = decision.evidence if "judge" in decision.evidence else last
            for one in decision.evidence["slices"]:
                slices[one["look"]] = Slice.model_validate(one)
    judge, judged = Judge(STRATEGY.judge, STRATEGY.error_limits), JudgeState()
    known = JudgeState.model_validate(last["judge"])
    for look in range(known.looks):
        judged = judge.advance(judged, slices[look])
    assert judged == known
    assert judged.looks > 5


async def test_an_unfinished_rollout_shows_life_every_few_seconds(bench: ControllerBench) -> None:
    harness, state = await begun(bench)
    moments = []
    for n in range(1, 20):
        harness.prometheus.error = "away" if n % 2 else ""
        await harness.round(1.0)
        moments = [one.at for one in harness.written if one.rollout_id == state.rollout_id]
    gaps = [(later - sooner).total_seconds() for sooner, later in itertools.pairwise(moments)]
    assert max(gaps) <= 5.0


async def test_without_the_log_nothing_is_done_and_a_higher_token_goes_on(
    bench: ControllerBench,
) -> None:
    harness, state = await begun(bench)
    told = len(harness.view.states)
    bench.log.available = False
    traffic(harness, state, 100.0, failures=60.0)
    with pytest.raises(LogUnavailable):
        await harness.round()
    assert len(harness.view.states) == told
    with pytest.raises(LogUnavailable):
        await harness.round()
    with pytest.raises(NotLeading):
        await start(harness)
    bench.log.available = True
    before = harness.decision_log.token
    traffic(harness, state, 100.0, failures=60.0)
    await harness.round()
    assert harness.decision_log.token > before
    history = harness.decision_log.get(state.rollout_id)
    assert history is not None
    assert history.state.phase is Phase.degraded


async def test_an_overtaken_leader_writes_into_the_void_and_steps_down(
    bench: ControllerBench,
) -> None:
    harness, state = await begun(bench)
    other = LeaderElected(holder="two", at=bench.clock.now())
    await bench.log.publish(ROLLOUTS, key="two", event=other, event_id="two")
    told = len(harness.view.states)
    traffic(harness, state, 100.0, failures=60.0)
    with pytest.raises(LeadershipLost):
        await harness.round()
    assert len(harness.view.states) == told
    history = harness.decision_log.get(state.rollout_id)
    assert history is not None
    assert history.state.weight == 500


async def test_with_redis_flushed_the_higher_token_is_believed(bench: ControllerBench) -> None:
    first, state = await begun(bench)
    second = await bench.harness("two")
    await second.round()
    assert not second.leadership.leads
    bench.redis.flush()
    await second.round()
    assert second.leadership.leads
    assert second.decision_log.holder == "two"
    await first.round()
    assert not first.leadership.leads
    assert [one.leadership.leads for one in (first, second)] == [False, True]
    history = second.decision_log.get(state.rollout_id)
    assert history is not None
    assert history.state.weight == 500
    assert any("two took the lead" in one.reason for one in second.written)


async def test_a_successor_goes_on_with_the_evidence_and_repairs_what_was_left(
    bench: ControllerBench,
) -> None:
    first, state = await begun(bench)
    traffic(first, state, 8.0)
    await first.round(5.0)
    # Killed after the decision, before the version's state was written.
    bench.log.records[VERSIONS][0] = [
        record for record in bench.log.all(VERSIONS) if not record.key.endswith("v2/state")
    ]
    bench.clock.advance(60)
    second = await bench.harness("two")
    second.prometheus.series = first.prometheus.series
    await second.round()
    assert second.leadership.leads
    assert lifecycle(second, "v2") == "canary"
    history = second.decision_log.get(state.rollout_id)
    assert history is not None
    newest, judged, _ = second.controller.newest(history)
    assert judged is not None
    assert judged.totals.candidate.requests == 8.0
    assert newest.rollout_id == state.rollout_id


async def test_redis_being_away_changes_nothing_for_a_leader(bench: ControllerBench) -> None:
    harness, state = await begun(bench)
    bench.redis.away = True
    traffic(harness, state, 100.0, failures=60.0)
    await harness.round()
    history = harness.decision_log.get(state.rollout_id)
    assert history is not None
    assert history.state.phase is Phase.degraded


async def test_without_redis_a_silent_log_has_no_leader(bench: ControllerBench) -> None:
    await register(bench.log, "v1")
    bench.redis.away = True
    harness = await bench.harness()
    await harness.round()
    assert not harness.leadership.leads
    await harness.round(30.0)
    assert harness.leadership.leads


async def test_one_unfinished_rollout_a_model_unless_superseded(bench: ControllerBench) -> None:
    harness, state = await begun(bench)
    await register(bench.log, "v3")
    await until_known(harness, "v3")
    with pytest.raises(Conflict, match=state.rollout_id):
        await start(harness, "v3")
    with pytest.raises(Conflict, match="already"):
        await start(harness, "v2", supersede=True)
    next_one = await start(harness, "v3", supersede=True)
    old = harness.decision_log.get(state.rollout_id)
    assert old is not None
    assert (old.state.phase, old.last.kind) == (Phase.degraded, DecisionKind.supersede)
    assert lifecycle(harness, "v2") == "rejected"
    assert (next_one.candidate, next_one.weight) == ("v3", 0)


async def test_what_may_not_start_says_why(bench: ControllerBench) -> None:
    await register(bench.log, "v1")
    await register(bench.log, "v2", released=False)
    harness = await bench.harness()
    with pytest.raises(NotLeading):
        await start(harness)
    await harness.round()
    with pytest.raises(NotAllowed, match="gate"):
        await start(harness, "v2")
    with pytest.raises(Conflict, match="stable already"):
        await start(harness, "v1")
    with pytest.raises(Unknown, match="v9"):
        await start(harness, "v9")


async def test_a_retry_is_a_new_rollout_without_evidence(bench: ControllerBench) -> None:
    harness, state = await begun(bench)
    with pytest.raises(Conflict, match="abort it"):
        await harness.controller.retry(state.rollout_id, actor="ann", reason="")
    traffic(harness, state, 100.0, failures=60.0)
    await harness.round()
    again = await harness.controller.retry(state.rollout_id, actor="ann", reason="fixed")
    assert again.rollout_id != state.rollout_id
    await harness.round()
    history = harness.decision_log.get(again.rollout_id)
    assert history is not None
    _, judged, verdict = harness.controller.newest(history)
    assert judged is not None
    assert judged.totals == Arms()
    assert verdict is not None
    assert verdict.outcome.value == "Successful"


async def test_a_rejected_version_starts_again_only_with_a_word(bench: ControllerBench) -> None:
    harness, state = await begun(bench)
    traffic(harness, state, 100.0, failures=60.0)
    await harness.round()
    assert lifecycle(harness, "v2") == "rejected"
    with pytest.raises(Conflict, match=r"was rejected .*error rate.* --again"):
        await start(harness)
    assert (await start(harness, again=True)).candidate == "v2"


async def test_a_version_that_served_before_survives_being_called_off(
    bench: ControllerBench,
) -> None:
    harness, state = await begun(bench)
    for n in range(1, 12):
        traffic(harness, state, 20.0 * n)
        await harness.round()
    back = await start(harness, "v1")
    assert back.came_from.value == "retired"
    assert lifecycle(harness, "v1") == "canary"
    await harness.controller.command(back.rollout_id, _abort, "ann")
    assert lifecycle(harness, "v1") == "retired"
    assert lifecycle(harness, "v2") == "stable"


async def test_a_lost_engine_takes_the_weight_in_one_round(bench: ControllerBench) -> None:
    harness, state = await begun(bench)
    await harness.round()
    harness.agents.report = EngineReport(ready=False, generation=1)
    await harness.round()
    history = harness.decision_log.get(state.rollout_id)
    assert history is not None
    assert (history.state.phase, history.state.weight) == (Phase.paused, 0)
    assert harness.view.states[-1].weight == 0


async def test_ones_own_abort_is_no_rollback_that_pages(bench: ControllerBench) -> None:
    harness, state = await begun(bench)

    def rolled_back(rollout: str) -> float | None:
        labels = {"model": "m", "rollout": rollout}
        return harness.metrics.get_sample_value("ratchet_rollout_rolled_back", labels)

    await harness.controller.command(state.rollout_id, _abort, "ann")
    assert rolled_back(state.rollout_id) == 0
    again = await start(harness, again=True)
    await harness.round()
    traffic(harness, again, 100.0, failures=60.0)
    await harness.round()
    assert rolled_back(again.rollout_id) == 1


async def test_series_follow_the_lead_and_end_a_while_after_their_rollout(
    bench: ControllerBench,
) -> None:
    harness, state = await begun(bench)

    def shown(phase: str) -> float | None:
        labels = {"model": "m", "rollout": state.rollout_id, "phase": phase}
        return harness.metrics.get_sample_value("ratchet_rollout_phase", labels)

    assert (shown("Progressing"), shown("Degraded")) == (1, 0)
    traffic(harness, state, 100.0, failures=60.0)
    await harness.round()
    assert (shown("Progressing"), shown("Degraded")) == (0, 1)
    labels = {"model": "m", "outcome": "Failed"}
    assert harness.metrics.get_sample_value("ratchet_rollout_decisions_total", labels) == 1
    await harness.round(61.0)
    assert shown("Degraded") is None
    again = await start(harness, again=True)
    other = LeaderElected(holder="two", at=bench.clock.now())
    await bench.log.publish(ROLLOUTS, key="two", event=other, event_id="two")
    await harness.caught_up()
    bench.redis.flush()
    bench.redis.away = True
    await harness.round()
    assert harness.metrics.get_sample_value("ratchet_rollout_leader") == 0
    labels = {"model": "m", "rollout": again.rollout_id, "phase": "Progressing"}
    assert harness.metrics.get_sample_value("ratchet_rollout_phase", labels) is None
