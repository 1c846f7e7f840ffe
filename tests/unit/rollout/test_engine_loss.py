"""Requests that a lost engine cost are held against no version; what a version does still is."""

from __future__ import annotations

from typing import Any

import pytest

from services.rollout import steps
from services.rollout.counters import COUNTED, REQUESTS, CounterSeries
from services.rollout.counts import ArmCounts, JudgeState, Slice
from services.rollout.decision_log import RolloutHistory
from services.rollout.engine_loss import AGENT_SILENT_S, CRASH_WAITS_S, LOSS_EXCLUDES_S
from services.rollout.judge import Judge
from services.rollout.state import EngineReport, RolloutState
from services.rollout.strategy_files import parse
from shared.contracts.events.rollouts import AnalysisOutcome, DecisionKind, Phase
from tests.unit.rollout.fakes import ControllerHarness

STRATEGY = parse(
    {
        "name": "long-bake",
        "steps": [
            {"setWeight": 5, "errorLimit": 0.05},
            {"pause": {"duration": 3}},
            {"analysis": {"minimum": {"requests": 10}}},
            {"setWeight": 100},
            {"pause": {"duration": "1h"}},
        ],
    }
)

SILENT = EngineReport(ready=None, detail="connection refused")
DOWN = EngineReport(ready=False, generation=1)


def serving(generation: int) -> EngineReport:
    return EngineReport(ready=True, generation=generation, candidate_ready=True)


class Canary:
    """A candidate on its way, with counters that routers export."""

    def __init__(self, harness: ControllerHarness, rollout_id: str) -> None:
        self.harness = harness
        self.rollout_id = rollout_id
        self._counts: dict[tuple[str, str], float] = {}
        self._scraped: dict[tuple[str, str], list[tuple[float, float]]] = {}

    @property
    def history(self) -> RolloutHistory:
        found = self.harness.decision_log.get(self.rollout_id)
        assert found is not None
        return found

    @property
    def state(self) -> RolloutState:
        return self.harness.controller.newest(self.history)[0]

    @property
    def judged(self) -> ArmCounts:
        """What the judge was given of the candidate."""
        judged = self.harness.controller.newest(self.history)[1]
        if judged is None:  # it has ended
            judged = JudgeState.model_validate(self.history.last.evidence["judge"])
        return judged.totals.candidate

    @property
    def kinds(self) -> list[DecisionKind]:
        """Everything decided of this rollout but holds."""
        return [
            one.kind
            for one in self.harness.written
            if one.rollout_id == self.rollout_id and one.kind is not DecisionKind.hold
        ]

    def serves(self, arm: str, requests: float, failures: float = 0, how: str = "crash") -> None:
        """So many requests more, scraped by the next look."""
        for part, more in (("requests", requests), (how, failures)):
            self._counts[arm, part] = self._counts.get((arm, part), 0.0) + more

    async def look(self, after_s: float = 1.0) -> None:
        """One look at what was scraped in its second and before."""
        at = self.harness.clock.now().timestamp() + after_s
        for arm in ("candidate", "stable"):
            for part in ("requests", "crash", "server_error"):
                value = self._counts.get((arm, part), 0.0)
                self._scraped.setdefault((arm, part), []).append((at, value))
        self.harness.prometheus.series = [
            series
            for arm, version in (("candidate", "v2"), ("stable", "v1"))
            for series in self._exported(arm, version)
        ]
        await self.harness.round(after_s)

    def _exported(self, arm: str, version: str) -> list[CounterSeries]:
        labels = {"rollout": self.rollout_id, "arm": arm, "version": version, "instance": "a"}

        def one(name: str, part: str, **more: str) -> CounterSeries:
            samples = tuple(self._scraped[arm, part][-120:])
            return CounterSeries({**labels, "__name__": name, **more}, samples)

        return [
            one(COUNTED, "requests"),
            *(one(REQUESTS, outcome, outcome=outcome) for outcome in ("crash", "server_error")),
        ]

    async def looks(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            await self.look()


@pytest.fixture
async def canary(harness: ControllerHarness) -> Canary:
    """A candidate at 5 %."""
    state = await harness.controller.start(
        model="m", candidate="v2", strategy=STRATEGY, supersede=False, actor="a", reason=""
    )
    made = Canary(harness, state.rollout_id)
    await made.look()
    assert made.state.weight == 500
    return made


@pytest.fixture
async def alone(canary: Canary) -> Canary:
    """A candidate that everybody is on, after it and its parent did well."""
    canary.serves("candidate", 500)
    canary.serves("stable", 1_200)
    await canary.looks(4)
    assert canary.state.weight == 10_000
    return canary


def paused(canary: Canary) -> bool:
    state = canary.state
    return (state.phase, state.weight, state.paused_by) == (Phase.paused, 0, "engine")


@pytest.mark.parametrize("noticed_after_s", [0, 1, 3])
@pytest.mark.parametrize("late_scrapes_s", [0, 1, 8])
async def test_a_first_loss_at_full_weight_pauses_whenever_its_crashes_are_scraped(
    alone: Canary, noticed_after_s: int, late_scrapes_s: int
) -> None:
    """Before anybody knew of the loss, in the look that noticed it, and after it."""
    alone.serves("candidate", 40, failures=12 if noticed_after_s else 40)
    await alone.looks(noticed_after_s)
    assert alone.state.weight == 10_000
    alone.harness.agents.report = DOWN
    alone.serves("candidate", 30, failures=30)
    await alone.look()
    assert paused(alone)
    assert "EngineLost" in alone.history.last.reason
    for _ in range(late_scrapes_s):
        alone.serves("candidate", 5, failures=5)
        await alone.look()
    alone.harness.agents.report = serving(2)
    await alone.looks(2)
    assert (alone.state.phase, alone.state.weight) == (Phase.progressing, 10_000)
    await alone.looks(LOSS_EXCLUDES_S + CRASH_WAITS_S)
    assert alone.state.phase is not Phase.degraded
    assert (alone.judged.requests, alone.judged.crashes) == (500, 0)
    assert DecisionKind.rollback not in alone.kinds


async def test_a_second_loss_still_fails_it(alone: Canary) -> None:
    for generation in (2, 3):
        alone.serves("candidate", 40, failures=40)
        alone.harness.agents.report = serving(generation)
        await alone.looks(3)
    assert alone.state.phase is Phase.degraded
    assert "lost again" in alone.history.last.reason


async def test_a_silent_agent_is_waited_for_and_then_takes_the_weight(alone: Canary) -> None:
    alone.harness.agents.report = SILENT
    for _ in range(round(AGENT_SILENT_S)):
        alone.serves("candidate", 10, failures=10)
        await alone.look()
        assert alone.state.weight == 10_000
    assert alone.state.outcome is AnalysisOutcome.no_data
    alone.serves("candidate", 10, failures=10)
    await alone.look()
    assert paused(alone)
    assert "did not answer for 15 s" in alone.history.last.reason
    # Minutes later it is back, and says itself that its engine was lost.
    for _ in range(200):
        alone.serves("candidate", 1, failures=1)
        await alone.look()
    alone.harness.agents.report = serving(2)
    await alone.look()
    assert (paused(alone), alone.state.losses) == (True, 1)
    await alone.looks(2)
    assert alone.state.weight == 10_000
    await alone.looks(30)
    assert alone.judged.crashes == 0


async def test_silence_alone_never_fails_a_rollout(alone: Canary) -> None:
    """Nobody knows whether the engine was lost, and no data never decides."""
    for _ in range(3):
        alone.harness.agents.report = SILENT
        await alone.looks(AGENT_SILENT_S + 1)
        assert paused(alone)
        await alone.looks(60)
        alone.harness.agents.report = serving(1)
        await alone.looks(2)
        assert (alone.state.weight, alone.state.losses) == (10_000, 0)


async def test_the_loss_that_a_silence_hid_counts(alone: Canary) -> None:
    for generation in (2, 3):
        assert alone.state.weight == 10_000
        alone.harness.agents.report = SILENT
        await alone.looks(AGENT_SILENT_S + 1)
        alone.harness.agents.report = serving(generation)
        await alone.looks(3)
    assert alone.state.phase is Phase.degraded
    assert "lost again" in alone.history.last.reason


async def test_after_a_short_silence_all_evidence_is_in(canary: Canary) -> None:
    canary.harness.agents.report = SILENT
    canary.serves("candidate", 40, failures=1, how="server_error")
    canary.serves("stable", 700)
    await canary.looks(AGENT_SILENT_S - 2)
    assert (canary.judged.requests, canary.state.weight) == (0, 500)
    canary.harness.agents.report = serving(1)
    await canary.look()
    assert (canary.judged.requests, canary.judged.failures) == (40, 1)


async def test_a_step_does_not_end_while_an_agent_is_silent(canary: Canary) -> None:
    canary.serves("candidate", 500)
    canary.serves("stable", 5_000)
    canary.harness.agents.report = SILENT
    await canary.looks(AGENT_SILENT_S - 2)
    assert canary.state.weight == 500
    canary.harness.agents.report = serving(1)
    await canary.looks(2)
    assert canary.state.weight == 10_000


async def test_with_a_healthy_engine_crashes_are_the_candidates_own_a_little_later(
    canary: Canary,
) -> None:
    canary.serves("candidate", 100, failures=30)
    canary.serves("stable", 2_000)
    await canary.looks(CRASH_WAITS_S)
    assert (canary.state.weight, canary.judged.requests) == (500, 0)
    await canary.look()
    assert canary.state.phase is Phase.degraded
    assert canary.judged.crashes == 30


async def test_other_failures_do_not_wait(canary: Canary) -> None:
    canary.serves("candidate", 100, failures=30, how="server_error")
    canary.serves("stable", 2_000)
    await canary.look()
    assert canary.state.phase is Phase.degraded


async def test_a_trickle_of_crashes_delays_the_judge_and_stops_nothing(canary: Canary) -> None:
    """Each crash waits its time; the evidence before it does not wait with it."""
    for second in range(1, 60):
        canary.serves("candidate", 50, failures=float(second % 10 == 0))
        canary.serves("stable", 950, failures=float(second % 10 == 0))
        await canary.look()
        behind = 50 * second - canary.judged.requests
        assert behind <= 50 * (CRASH_WAITS_S + 1)
    assert canary.state.phase is not Phase.degraded
    assert canary.state.outcome is AnalysisOutcome.successful
    assert canary.state.weight == 10_000


async def test_no_step_ends_while_crashes_wait_that_would_fail_it(canary: Canary) -> None:
    canary.serves("candidate", 500)
    canary.serves("stable", 5_000)
    await canary.look()
    canary.serves("candidate", 100, failures=40)
    await canary.looks(5)
    assert (canary.state.weight, canary.state.outcome) == (500, AnalysisOutcome.inconclusive)
    assert "crashes wait" in canary.history.last.reason
    await canary.looks(6)
    assert canary.state.phase is Phase.degraded


async def test_no_step_ends_in_the_shadow_of_a_loss(canary: Canary) -> None:
    canary.serves("candidate", 500)
    canary.serves("stable", 5_000)
    await canary.looks(2)
    canary.harness.agents.report = serving(2)
    await canary.looks(LOSS_EXCLUDES_S)
    assert canary.state.weight == 500
    assert "judged again" in canary.history.last.reason
    await canary.looks(2)
    canary.serves("candidate", 10)
    await canary.looks(2)
    assert canary.state.weight == 10_000


async def test_the_log_replays_the_judge_over_a_loss(alone: Canary) -> None:
    alone.serves("candidate", 40, failures=12)
    await alone.looks(2)
    alone.harness.agents.report = serving(2)
    await alone.looks(3)
    for _ in range(30):
        alone.serves("candidate", 5)
        await alone.look()
    await alone.harness.controller.command(
        alone.rollout_id, lambda state, at: steps.pause(state, at, "all evidence, please"), "ann"
    )
    slices: dict[int, Slice] = {}
    last: dict[str, Any] = {}
    for decision in alone.harness.written:
        if decision.rollout_id == alone.rollout_id:
            last = decision.evidence if "judge" in decision.evidence else last
            for one in decision.evidence["slices"]:
                slices[one["look"]] = Slice.model_validate(one)
    judge, judged = Judge(STRATEGY.judge, STRATEGY.error_limits), JudgeState()
    known = JudgeState.model_validate(last["judge"])
    for look in range(known.looks):
        judged = judge.advance(judged, slices[look])
    assert judged == known
    assert judged.totals.candidate.crashes == 0
    assert judged.totals.candidate.requests > 500
