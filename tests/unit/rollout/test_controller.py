"""The controller on a log in memory: written before acted on, fenced, and taken up where it was."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.rollout import steps
from services.rollout.counts import JudgeState, Slice
from services.rollout.errors import Conflict, LeadershipLost, NotAllowed, NotLeading, Unknown
from services.rollout.evidence import COUNTED, FAST, REQUESTS, Series
from services.rollout.judge import Judge
from services.rollout.steps import EngineReport, RolloutState
from shared.kafka.log import LogUnavailable
from shared.kafka.topics import ROLLOUTS, VERSIONS
from shared.registry.rollouts import DecisionKind, LeaderElected, Phase
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually
from tests.unit.rollout.fakes import STRATEGY, FakeRedis, Rig, register


class Bench:
    """Makes rigs that share a log, a Redis and a clock."""

    def __init__(self, directory: Path) -> None:
        self.clock = ManualClock()
        self.log = MemoryLog(partitions={ROLLOUTS: 1, VERSIONS: 1}, clock=self.clock)
        self.redis = FakeRedis(self.clock)
        self._directory = directory
        self._rigs: list[Rig] = []

    async def rig(self, holder: str = "one", **more: Any) -> Rig:
        made = Rig(self.log, self.redis, self.clock, self._directory, holder, **more)
        self._rigs.append(made)
        await made.caught_up()
        return made

    async def close(self) -> None:
        for rig in self._rigs:
            await rig.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.close()


async def begun(bench: Bench, **more: Any) -> tuple[Rig, RolloutState]:
    """A leader with v2 at 5 %."""
    await register(bench.log, "v1")
    rig = await bench.rig(**more)
    await rig.round()
    await register(bench.log, "v2")
    await _until_known(rig, "v2")
    state = await start(rig)
    await rig.round()
    entry = rig.ledger.get(state.rollout_id)
    assert entry is not None
    assert entry.state.weight == 500
    return rig, entry.state


async def start(rig: Rig, candidate: str = "v2", *, supersede: bool = False) -> RolloutState:
    return await rig.controller.start(
        model="m",
        candidate=candidate,
        strategy=None,
        supersede=supersede,
        actor="ann",
        reason="try it",
    )


async def _until_known(rig: Rig, version: str) -> None:
    await eventually(lambda: rig.versions.registry.get(version), f"{version} is known")


def traffic(rig: Rig, state: RolloutState, requests: float, failures: float = 0.0) -> None:
    """What Prometheus has of the candidate; stable has as many requests and no failure."""
    at = rig.clock.now().timestamp()
    series: list[Series] = []
    for arm, version, failed in (("candidate", "v2", failures), ("stable", "v1", 0.0)):
        labels = {"rollout": state.rollout_id, "arm": arm, "version": version, "instance": "a"}
        series.append(Series({**labels, "__name__": COUNTED}, ((at, requests),)))
        series.append(Series({**labels, "__name__": FAST, "le": "2.0"}, ((at, requests),)))
        outcome = {"__name__": REQUESTS, "outcome": "server_error"}
        series.append(Series({**labels, **outcome}, ((at, failed),)))
    rig.prometheus.series = series


def lifecycle(rig: Rig, version: str) -> str:
    found = rig.versions.registry.get(version)
    assert found is not None
    return found.lifecycle.value


async def test_the_first_released_version_becomes_stable_and_the_next_queue(bench: Bench) -> None:
    await register(bench.log, "v0", released=False)
    for version in ("v1", "v2", "v3"):
        await register(bench.log, version)
    rig = await bench.rig(auto_start=True)
    await rig.round()
    assert [(one.kind, one.stable) for one in rig.written][:1] == [(DecisionKind.stable_set, "v1")]
    for expected in ("v2", "v3"):
        await rig.round()
        entry = rig.ledger.unfinished_of("m")
        assert entry is not None
        assert entry.state.candidate == expected
        assert lifecycle(rig, expected) == "canary"
        ended = await rig.controller.command(entry.state.rollout_id, _abort, "ann")
        assert ended.phase is Phase.degraded
        assert lifecycle(rig, expected) == "rejected"
    await rig.round()
    assert rig.ledger.unfinished_of("m") is None
    assert lifecycle(rig, "v0") == "registered"


def _abort(state: RolloutState, at: Any) -> Any:
    return steps.abort(state, at, "enough")


async def test_a_good_candidate_becomes_stable_and_its_parent_retires(bench: Bench) -> None:
    rig, state = await begun(bench)
    assert lifecycle(rig, "v2") == "canary"
    for n in range(1, 12):
        traffic(rig, state, 20.0 * n)
        await rig.round()
    entry = rig.ledger.get(state.rollout_id)
    assert entry is not None
    assert entry.state.phase is Phase.healthy
    assert (lifecycle(rig, "v1"), lifecycle(rig, "v2")) == ("retired", "stable")
    moved = [record.key for record in bench.log.all(VERSIONS)]
    assert moved[-2:] == ["v2/state", "v1/state"]
    last = rig.view.states[-1]
    assert (last.stable, last.candidate, last.weight) == ("v2", "", 0)


async def test_a_bad_candidate_is_rolled_back_with_its_evidence_on_record(bench: Bench) -> None:
    rig, state = await begun(bench)
    for n in range(1, 4):
        traffic(rig, state, 100.0 * n, failures=30.0 * n)
        await rig.round()
    entry = rig.ledger.get(state.rollout_id)
    assert entry is not None
    assert (entry.state.phase, entry.state.weight) == (Phase.degraded, 0)
    assert lifecycle(rig, "v2") == "rejected"
    decision = entry.last
    assert decision.kind is DecisionKind.rollback
    assert (decision.weight_before, decision.weight) == (500, 0)
    assert decision.config_sha256 == STRATEGY.sha256
    assert state.rollout_id in decision.evidence["query"]
    assert {"criterion", "candidate_n", "log_e", "threshold"} <= set(
        decision.evidence["findings"][0]
    )


async def test_the_log_alone_replays_the_judge(bench: Bench) -> None:
    rig, state = await begun(bench)
    for n in range(1, 12):
        traffic(rig, state, 7.0 * n, failures=float(n // 4))
        await rig.round()
    slices: dict[int, Slice] = {}
    last: dict[str, Any] = {}
    for decision in rig.written:
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


async def test_an_unfinished_rollout_shows_life_every_few_seconds(bench: Bench) -> None:
    rig, state = await begun(bench)
    moments = []
    for n in range(1, 20):
        rig.prometheus.error = "away" if n % 2 else ""
        await rig.round(1.0)
        moments = [one.at for one in rig.written if one.rollout_id == state.rollout_id]
    gaps = [(later - sooner).total_seconds() for sooner, later in itertools.pairwise(moments)]
    assert max(gaps) <= 5.0


async def test_without_the_log_nothing_is_done_and_a_higher_token_goes_on(bench: Bench) -> None:
    rig, state = await begun(bench)
    told = len(rig.view.states)
    bench.log.available = False
    traffic(rig, state, 100.0, failures=60.0)
    with pytest.raises(LogUnavailable):
        await rig.round()
    assert len(rig.view.states) == told
    with pytest.raises(LogUnavailable):
        await rig.round()
    with pytest.raises(NotLeading):
        await start(rig)
    bench.log.available = True
    before = rig.ledger.token
    traffic(rig, state, 100.0, failures=60.0)
    await rig.round()
    assert rig.ledger.token > before
    entry = rig.ledger.get(state.rollout_id)
    assert entry is not None
    assert entry.state.phase is Phase.degraded


async def test_an_overtaken_leader_writes_into_the_void_and_steps_down(bench: Bench) -> None:
    rig, state = await begun(bench)
    other = LeaderElected(holder="two", at=bench.clock.now())
    await bench.log.publish(ROLLOUTS, key="two", event=other, event_id="two")
    told = len(rig.view.states)
    traffic(rig, state, 100.0, failures=60.0)
    with pytest.raises(LeadershipLost):
        await rig.round()
    assert len(rig.view.states) == told
    entry = rig.ledger.get(state.rollout_id)
    assert entry is not None
    assert entry.state.weight == 500


async def test_with_redis_flushed_the_higher_token_is_believed(bench: Bench) -> None:
    first, state = await begun(bench)
    second = await bench.rig("two")
    await second.round()
    assert not second.leadership.leads
    bench.redis.flush()
    await second.round()
    assert second.leadership.leads
    assert second.ledger.holder == "two"
    await first.round()
    assert not first.leadership.leads
    assert [one.leadership.leads for one in (first, second)] == [False, True]
    entry = second.ledger.get(state.rollout_id)
    assert entry is not None
    assert entry.state.weight == 500
    assert any("two took the lead" in one.reason for one in second.written)


async def test_a_successor_goes_on_with_the_evidence_and_repairs_what_was_left(
    bench: Bench,
) -> None:
    first, state = await begun(bench)
    traffic(first, state, 8.0)
    await first.round(5.0)
    # Killed after the decision, before the version's state was written.
    bench.log.records[VERSIONS][0] = [
        record for record in bench.log.all(VERSIONS) if not record.key.endswith("v2/state")
    ]
    bench.clock.advance(60)
    second = await bench.rig("two")
    second.prometheus.series = first.prometheus.series
    await second.round()
    assert second.leadership.leads
    assert lifecycle(second, "v2") == "canary"
    entry = second.ledger.get(state.rollout_id)
    assert entry is not None
    newest, judged, _ = second.controller.newest(entry)
    assert judged is not None
    assert judged.totals.candidate.requests == 8.0
    assert newest.rollout_id == state.rollout_id


async def test_redis_being_away_changes_nothing_for_a_leader(bench: Bench) -> None:
    rig, state = await begun(bench)
    bench.redis.away = True
    traffic(rig, state, 100.0, failures=60.0)
    await rig.round()
    entry = rig.ledger.get(state.rollout_id)
    assert entry is not None
    assert entry.state.phase is Phase.degraded


async def test_without_redis_a_silent_log_has_no_leader(bench: Bench) -> None:
    await register(bench.log, "v1")
    bench.redis.away = True
    rig = await bench.rig()
    await rig.round()
    assert not rig.leadership.leads
    await rig.round(30.0)
    assert rig.leadership.leads


async def test_one_unfinished_rollout_a_model_unless_superseded(bench: Bench) -> None:
    rig, state = await begun(bench)
    await register(bench.log, "v3")
    await _until_known(rig, "v3")
    with pytest.raises(Conflict, match=state.rollout_id):
        await start(rig, "v3")
    with pytest.raises(Conflict, match="already"):
        await start(rig, "v2", supersede=True)
    next_one = await start(rig, "v3", supersede=True)
    old = rig.ledger.get(state.rollout_id)
    assert old is not None
    assert (old.state.phase, old.last.kind) == (Phase.degraded, DecisionKind.supersede)
    assert lifecycle(rig, "v2") == "rejected"
    assert (next_one.candidate, next_one.weight) == ("v3", 0)


async def test_what_may_not_start_says_why(bench: Bench) -> None:
    await register(bench.log, "v1")
    await register(bench.log, "v2", released=False)
    rig = await bench.rig()
    with pytest.raises(NotLeading):
        await start(rig)
    await rig.round()
    with pytest.raises(NotAllowed, match="gate"):
        await start(rig, "v2")
    with pytest.raises(Conflict, match="stable already"):
        await start(rig, "v1")
    with pytest.raises(Unknown, match="v9"):
        await start(rig, "v9")


async def test_a_retry_is_a_new_rollout_without_evidence(bench: Bench) -> None:
    rig, state = await begun(bench)
    with pytest.raises(Conflict, match="abort it"):
        await rig.controller.retry(state.rollout_id, actor="ann", reason="")
    traffic(rig, state, 100.0, failures=60.0)
    await rig.round()
    again = await rig.controller.retry(state.rollout_id, actor="ann", reason="fixed")
    assert again.rollout_id != state.rollout_id
    await rig.round()
    entry = rig.ledger.get(again.rollout_id)
    assert entry is not None
    _, judged, verdict = rig.controller.newest(entry)
    assert judged is not None
    assert judged.totals == Slice()
    assert verdict is not None
    assert verdict.outcome.value == "Successful"


async def test_a_version_that_served_before_survives_being_called_off(bench: Bench) -> None:
    rig, state = await begun(bench)
    for n in range(1, 12):
        traffic(rig, state, 20.0 * n)
        await rig.round()
    back = await start(rig, "v1")
    assert back.came_from.value == "retired"
    assert lifecycle(rig, "v1") == "canary"
    await rig.controller.command(back.rollout_id, _abort, "ann")
    assert lifecycle(rig, "v1") == "retired"
    assert lifecycle(rig, "v2") == "stable"


async def test_a_lost_engine_takes_the_weight_in_one_round(bench: Bench) -> None:
    rig, state = await begun(bench)
    await rig.round()
    rig.agents.report = EngineReport(ready=False, generation=1)
    await rig.round()
    entry = rig.ledger.get(state.rollout_id)
    assert entry is not None
    assert (entry.state.phase, entry.state.weight) == (Phase.paused, 0)
    assert rig.view.states[-1].weight == 0


async def test_series_follow_the_lead_and_end_a_while_after_their_rollout(bench: Bench) -> None:
    rig, state = await begun(bench)

    def shown(phase: str) -> float | None:
        labels = {"model": "m", "rollout": state.rollout_id, "phase": phase}
        return rig.metrics.get_sample_value("ratchet_rollout_phase", labels)

    assert (shown("Progressing"), shown("Degraded")) == (1, 0)
    traffic(rig, state, 100.0, failures=60.0)
    await rig.round()
    assert (shown("Progressing"), shown("Degraded")) == (0, 1)
    labels = {"model": "m", "outcome": "Failed"}
    assert rig.metrics.get_sample_value("ratchet_rollout_decisions_total", labels) == 1
    await rig.round(61.0)
    assert shown("Degraded") is None
    again = await start(rig)
    other = LeaderElected(holder="two", at=bench.clock.now())
    await bench.log.publish(ROLLOUTS, key="two", event=other, event_id="two")
    await rig.caught_up()
    bench.redis.flush()
    bench.redis.away = True
    await rig.round()
    assert rig.metrics.get_sample_value("ratchet_rollout_leader") == 0
    labels = {"model": "m", "rollout": again.rollout_id, "phase": "Progressing"}
    assert rig.metrics.get_sample_value("ratchet_rollout_phase", labels) is None
