"""The state machine: what it does in each case, and what no sequence of events can make it do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.rollout import engine_loss, steps
from services.rollout.counts import ArmCounts
from services.rollout.errors import BadStrategy, Conflict
from services.rollout.state import CONTROLLER, EngineReport, Move, Observation, RolloutState
from services.rollout.strategy_files import parse
from services.rollout.verdict import CriterionResult, CriterionState, Verdict
from shared.contracts.events.rollouts import AnalysisOutcome, DecisionKind, Phase

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STRATEGY = parse(
    {
        "name": "s",
        "deadline": 100,
        "steps": [
            {"setWeight": 5, "errorLimit": 0.05},
            {"pause": {"duration": 10}},
            {"analysis": {"minimum": {"requests": 50, "feedback": 5}, "deadline": 60}},
            {"setWeight": 50, "errorLimit": 0.02},
            {"analysis": {}},
            {"pause": {}},
            {"setWeight": 100},
            {"pause": {"duration": 10}},
        ],
    }
)
WEIGHTS = {0, 500, 5_000, 10_000}
READY = {"agent": EngineReport(ready=True, generation=1, candidate_ready=True)}
ELSEWHERE = EngineReport(ready=True, generation=1, elsewhere=True, detail="its base")


def verdict(outcome: AnalysisOutcome) -> Verdict:
    state = {
        AnalysisOutcome.failed: CriterionState.breached,
        AnalysisOutcome.inconclusive: CriterionState.held,
    }.get(outcome, CriterionState.ok)
    result = CriterionResult("errors", state, 0.3, 0.01, 10, 100, 9.0, 6.0, "errors: too many")
    return Verdict(outcome, "errors: too many", (result,))


GOOD = verdict(AnalysisOutcome.successful)
BAD = verdict(AnalysisOutcome.failed)


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
    observation = Observation(
        at=at, agents=READY, zeros_missing="", verdict=GOOD, candidate_at=at.timestamp()
    )
    return replace(observation, **changes)


def at_five_percent() -> RolloutState:
    move = steps.look(begun(), seen())
    assert (move.kind, move.state.weight) == (DecisionKind.weight, 500)
    return move.state


@pytest.mark.parametrize("silent_s", [0.0, 29.0])
def test_no_step_ends_without_a_request_counted_since_its_weight(silent_s: float) -> None:
    """Each weight restarts the clock of silence, so a short step would be over before NoData."""
    plenty = ArmCounts(requests=9_999, scores=9_999)
    early = at_five_percent()
    baking = early.but(step=len(STRATEGY.steps) - 1, weight=10_000)
    assert early.weight_set_at is not None
    for state in (early, baking):
        unseen = seen(
            500,
            candidate=plenty,
            silent_s=silent_s,
            candidate_at=early.weight_set_at.timestamp(),
        )
        move = steps.look(state, unseen)
        assert (move.kind, move.state.weight) == (DecisionKind.hold, state.weight)
        assert "no request of the candidate was counted" in move.reason
        fresh = replace(unseen, candidate_at=unseen.candidate_at + 1)
        assert steps.look(state, fresh).state.step > state.step or (
            steps.look(state, fresh).kind is DecisionKind.complete
        )


def test_the_whole_way_of_a_good_candidate() -> None:
    state, moves = begun(), list[Move]()
    candidate = ArmCounts()
    for second in range(1, 100):
        candidate += ArmCounts(requests=10, scores=1)
        move = steps.look(state, seen(second, candidate=candidate))
        state = move.state
        if move.kind is not DecisionKind.hold:
            moves.append(move)
        if state.paused_by == "gate":
            assert state.needs_person
            state = steps.resume(state, NOW + timedelta(seconds=second), "approved").state
            assert not state.needs_person
        if state.phase.finished:
            break
    assert state.phase is Phase.healthy
    assert [move.kind.value for move in moves] == [
        "weight",
        "weight",
        "pause",
        "weight",
        "complete",
    ]
    assert [move.state.weight for move in moves] == [500, 5_000, 5_000, 10_000, 10_000]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"agents": {}}, "no adapter agent"),
        ({"agents": {"a": EngineReport(ready=None, detail="refused")}}, "does not answer"),
        ({"agents": {"a": EngineReport(ready=False)}}, "not ready"),
        ({"agents": {"a": EngineReport(ready=True, detail="loading")}}, "loading"),
        ({"zeros_missing": "router b"}, "router b"),
        ({"error": "Prometheus: away"}, "Prometheus: away"),
    ],
)
def test_the_first_weight_waits(changes: dict[str, Any], why: str) -> None:
    move = steps.look(begun(), seen(**changes))
    assert (move.kind, move.state.weight) == (DecisionKind.hold, 0)
    assert why in move.reason
    late = steps.look(move.state, seen(1_000, **changes))
    assert late.state.needs_person
    assert late.urgent


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"error": "Prometheus: away"}, AnalysisOutcome.error),
        ({"silent_s": 31.0}, AnalysisOutcome.no_data),
        ({"idle_s": 301.0}, AnalysisOutcome.no_data),
        ({"verdict": None}, AnalysisOutcome.no_data),
        ({"verdict": verdict(AnalysisOutcome.inconclusive)}, AnalysisOutcome.inconclusive),
    ],
)
def test_without_good_evidence_it_holds_and_calls_people_after_the_deadline(
    changes: dict[str, Any], outcome: AnalysisOutcome
) -> None:
    plenty = ArmCounts(requests=1_000, scores=1_000)
    move = steps.look(at_five_percent(), seen(50, candidate=plenty, **changes))
    assert (move.kind, move.state.weight, move.state.phase) == (
        DecisionKind.hold,
        500,
        Phase.progressing,
    )
    assert move.state.outcome is outcome
    assert move.urgent
    again = steps.look(move.state, seen(5_000, candidate=plenty, **changes))
    assert (again.kind, again.state.weight) == (DecisionKind.hold, 500)
    assert again.state.needs_person
    assert "person" in again.reason


def test_an_open_breaker_holds_calls_a_person_and_fails_nothing() -> None:
    move = steps.look(at_five_percent(), seen(breakers=("aa",)))
    assert (move.kind, move.state.outcome) == (DecisionKind.hold, AnalysisOutcome.inconclusive)
    assert move.state.needs_person
    assert "router aa" in move.reason


def test_a_step_waits_for_its_minimum_counted_since_its_weight() -> None:
    state = steps.look(begun(), seen(candidate=ArmCounts(requests=999, scores=999))).state
    few = ArmCounts(requests=999 + 49, scores=999 + 5)
    move = steps.look(state, seen(50, candidate=few))
    assert move.kind is DecisionKind.hold
    assert "49 of 50 requests" in move.reason
    move = steps.look(state, seen(50, candidate=few + ArmCounts(requests=1)))
    assert (move.kind, move.state.weight) == (DecisionKind.weight, 5_000)


def test_a_failed_verdict_sends_everybody_back_in_any_phase_and_beats_own_errors() -> None:
    at = NOW + timedelta(seconds=5)
    for state in (at_five_percent(), steps.pause(at_five_percent(), at, "why").state):
        move = steps.look(state, seen(20, verdict=BAD, error="Prometheus: away"))
        assert (move.kind, move.state.phase, move.state.weight) == (
            DecisionKind.rollback,
            Phase.degraded,
            0,
        )
        assert move.weight_before == 500
        assert move.state.outcome is AnalysisOutcome.failed


def test_a_refused_adapter_ends_it() -> None:
    refused = {"a": EngineReport(ready=True, generation=1, refused="fingerprint differs")}
    move = steps.look(begun(), seen(agents=refused))
    assert move.kind is DecisionKind.rollback
    assert "fingerprint differs" in move.reason


def test_engines_on_another_base_hold_up_none_on_the_candidates() -> None:
    served = {"old": ELSEWHERE, "new": READY["agent"]}
    assert steps.look(begun(), seen(agents=served)).state.weight > 0
    loading = {"old": ELSEWHERE, "new": EngineReport(ready=True, detail="loading")}
    move = steps.look(begun(), seen(agents=loading))
    assert (move.kind, move.state.weight) == (DecisionKind.hold, 0)
    assert "new does not serve the candidate yet: loading" in move.reason


def test_a_candidate_of_a_base_that_no_engine_serves_waits_where_a_person_asked_for_it() -> None:
    """The engines of its base come next; nobody would bring them for one that began by itself."""
    nowhere = {"a": ELSEWHERE, "b": ELSEWHERE}
    move = steps.look(begun().but(asked_by="ann"), seen(agents=nowhere))
    assert (move.kind, move.state.weight) == (DecisionKind.hold, 0)
    assert "no engine serves its base: a: its base" in move.reason
    move = steps.look(begun().but(asked_by=CONTROLLER), seen(agents=nowhere))
    assert move.kind is DecisionKind.rollback
    assert "AdapterRefused: a: its base" in move.reason


def test_an_engine_that_is_lost_is_one_of_the_candidates_base() -> None:
    both = {"old": ELSEWHERE, "new": READY["agent"]}
    state = steps.look(begun(), seen(agents=both)).state
    restarted = {"old": replace(ELSEWHERE, generation=2), "new": READY["agent"]}
    move = steps.look(state, seen(2, agents=restarted))
    assert move.state.weight == state.weight > 0
    lost = {"old": ELSEWHERE, "new": replace(READY["agent"], generation=2)}
    move = steps.look(move.state, seen(3, agents=lost))
    assert (move.kind, move.state.weight) == (DecisionKind.pause, 0)


def test_an_adapter_too_like_another_waits_for_a_person() -> None:
    close = {"a": EngineReport(ready=True, generation=1, undecided=True, detail="like v1")}
    move = steps.look(begun(), seen(agents=close))
    assert (move.kind, move.state.weight) == (DecisionKind.hold, 0)
    assert move.state.needs_person
    assert "like v1" in move.reason


def test_engine_lost_is_weight_zero_at_once_then_goes_on_then_fails() -> None:
    state = steps.look(at_five_percent(), seen(2)).state
    down = {"agent": EngineReport(ready=False, generation=1)}
    lost = steps.look(state, seen(3, agents=down, error="Prometheus: away"))
    assert (lost.kind, lost.state.phase, lost.state.weight) == (DecisionKind.pause, Phase.paused, 0)
    assert "EngineLost" in lost.reason
    still = steps.look(lost.state, seen(4, agents=down))
    assert still.kind is DecisionKind.hold
    back = {"agent": EngineReport(ready=True, generation=2, candidate_ready=True)}
    resumed = steps.look(still.state, seen(30, agents=back))
    assert (resumed.kind, resumed.state.weight) == (DecisionKind.resume, 0)
    again = steps.look(resumed.state, seen(31, agents=back))
    assert (again.kind, again.state.weight, again.state.step) == (DecisionKind.weight, 500, 1)
    # The second loss goes unseen but for the generation.
    third = {"agent": EngineReport(ready=True, generation=3, candidate_ready=True)}
    failed = steps.look(again.state, seen(40, agents=third))
    assert (failed.kind, failed.state.phase) == (DecisionKind.rollback, Phase.degraded)


def test_a_silent_agent_is_no_lost_engine() -> None:
    state = steps.look(at_five_percent(), seen(2)).state
    move = steps.look(state, seen(3, agents={"agent": EngineReport(ready=None, detail="timeout")}))
    assert (move.kind, move.state.weight) == (DecisionKind.hold, 500)
    assert move.state.outcome is AnalysisOutcome.no_data
    back = steps.look(move.state, seen(4))
    assert (back.state.outcome, back.state.weight) == (AnalysisOutcome.successful, 500)


def test_a_long_silent_agent_takes_the_weight_and_fails_nothing() -> None:
    mute = {"agent": EngineReport(ready=None, detail="timeout")}
    state = steps.look(at_five_percent(), seen(2)).state.but(losses=1)
    state = steps.look(state, seen(3, agents=mute)).state
    move = steps.look(state, seen(3 + engine_loss.AGENT_SILENT_S, agents=mute))
    assert (move.kind, move.state.phase, move.state.weight) == (DecisionKind.pause, Phase.paused, 0)
    assert (move.state.paused_by, move.state.losses) == ("engine", 1)
    still = steps.look(move.state, seen(500, agents=mute))
    assert (still.kind, still.state.phase) == (DecisionKind.hold, Phase.paused)
    assert not still.state.needs_person
    late = steps.look(still.state, seen(1_000, agents=mute))
    assert (late.state.needs_person, late.urgent) == (True, True)
    assert not steps.look(late.state, seen(1_001, agents=mute)).urgent
    # Nobody is on the candidate: a silence before the first weight is none of the engine's.
    first = steps.look(begun(), seen(1, zeros_missing="router b")).state
    for second in (2, 60):
        first = steps.look(first, seen(second, agents=mute)).state
    assert (first.phase, first.weight) == (Phase.progressing, 0)


def test_the_time_of_a_pause_does_not_count() -> None:
    state = steps.pause(at_five_percent(), NOW + timedelta(seconds=3), "why").state
    held = steps.look(state, seen(50))
    assert (held.kind, held.state.weight) == (DecisionKind.hold, 500)
    state = steps.resume(held.state, NOW + timedelta(seconds=60), "on").state
    move = steps.look(state, seen(61))
    assert "7 s left" in move.reason


def test_commands_that_do_not_fit_say_what_to_do() -> None:
    state, at = at_five_percent(), NOW + timedelta(seconds=9)
    with pytest.raises(Conflict, match="not paused"):
        steps.resume(state, at, "")
    with pytest.raises(Conflict, match="wait for its first weight"):
        steps.promote(begun(), at, "")
    ended = steps.abort(state, at, "enough").state
    for command in (steps.pause, steps.resume, steps.promote, steps.abort):
        with pytest.raises(Conflict, match="retry"):
            command(ended, at, "")


def test_full_promotion_makes_it_stable_at_once() -> None:
    move = steps.promote(at_five_percent(), NOW, "sure", full=True)
    assert (move.kind, move.state.phase) == (DecisionKind.complete, Phase.healthy)


reports = st.dictionaries(
    st.sampled_from(["a", "b"]),
    st.builds(
        EngineReport,
        ready=st.sampled_from([True, True, True, False, None]),
        generation=st.integers(1, 2),
        candidate_ready=st.booleans(),
    ),
    max_size=2,
)
looks = st.builds(
    lambda verdict, error, waits, silent, zeros, agents, more: {
        "verdict": verdict,
        "error": error,
        "withheld": waits,
        "silent_s": silent,
        "zeros_missing": zeros,
        "agents": agents,
        "more": more,
    },
    st.sampled_from([GOOD, GOOD, GOOD, BAD, verdict(AnalysisOutcome.inconclusive), None]),
    st.sampled_from(["", "", "Prometheus: away"]),
    st.sampled_from(["", "", "", "crashes wait"]),
    st.sampled_from([0.0, 0.0, 99.0]),
    st.sampled_from(["", "", "router b"]),
    reports,
    st.integers(0, 60),
)
commands = st.sampled_from(["pause", "resume", "promote", "abort"])


@pytest.mark.parametrize("changes", [{"error": "Prometheus: away"}, {"verdict": None}])
def test_a_weight_that_a_person_promotes_to_waits_for_the_judge(changes: dict[str, Any]) -> None:
    state = at_five_percent()
    for _ in range(2):
        state = steps.promote(state, NOW + timedelta(seconds=20), "x").state
    held = steps.look(state, seen(25, **changes))
    assert (held.kind, held.state.weight) == (DecisionKind.hold, 500)
    assert "waits" in held.reason
    risen = steps.look(held.state, seen(30))
    assert (risen.kind, risen.state.weight) == (DecisionKind.weight, 5_000)


@settings(max_examples=150)
@given(events=st.lists(st.one_of(looks, looks, looks, commands), max_size=40))
def test_no_sequence_of_events_breaks_the_rules(events: list[dict[str, Any] | str]) -> None:
    state, candidate, second = begun(), ArmCounts(), 0.0
    for event in events:
        second += 5.0
        before = state
        if isinstance(event, str):
            try:
                move = getattr(steps, event)(state, NOW + timedelta(seconds=second), "x")
            except Conflict:
                continue
            assert not before.phase.finished
        else:
            if state.phase.finished:
                break
            more = event["more"]
            candidate += ArmCounts(requests=more, scores=more)
            changes = {key: value for key, value in event.items() if key != "more"}
            move = steps.look(state, seen(second, candidate=candidate, **changes))
        state = move.state
        assert move.weight_before == before.weight
        assert state.weight in WEIGHTS
        assert (state.phase is Phase.degraded) <= (state.weight == 0)
        if isinstance(event, dict):
            _check_look(before, event, move)
        # A record is all that a successor has.
        again = RolloutState.model_validate(
            {**state.model_dump(mode="json"), "strategy": state.strategy}
        )
        assert again == state


def _check_look(before: RolloutState, event: dict[str, Any], move: Move) -> None:
    state = move.state
    ready = all(one.ready and one.candidate_ready for one in event["agents"].values())
    if move.kind is DecisionKind.rollback:
        # Only a verdict or lost engines end it; never missing data.
        assert event["verdict"] is BAD or state.losses >= engine_loss.MAX_LOSSES
    if event["verdict"] is BAD:
        assert state.weight == 0
    if state.weight > before.weight:
        assert event["verdict"] is not BAD
        if before.weight == 0:
            assert ready
            assert event["agents"]
            assert not event["zeros_missing"]
        else:
            assert event["verdict"] is GOOD
            assert not event["error"]
            assert not event["withheld"]
            assert event["silent_s"] == 0.0
            assert not engine_loss.silent(before, event["agents"])
    if move.kind is DecisionKind.complete:
        assert before.weight == 10_000
        assert event["verdict"] is GOOD
        assert not event["error"]
    if 0 < state.weight < before.weight:
        pytest.fail("a weight fell to something other than 0")


def at_a_gate(rule: str) -> RolloutState:
    raw = STRATEGY.to_dict()
    raw["steps"][5] = {"pause": {rule: True}}
    gate = at_five_percent().but(strategy=parse(raw), step=5, asked_by="key-ann")
    return gate.but(phase=Phase.paused, paused_by="gate", paused_at=NOW, weight=5_000)


def test_who_asked_for_a_rollout_may_not_let_it_through_a_gate_with_four_eyes() -> None:
    gate = at_a_gate("fourEyes")
    for act in (
        lambda: steps.resume(gate, NOW, "fine", actor="key-ann"),
        lambda: steps.promote(gate, NOW, "fine", actor="key-ann"),
        lambda: steps.promote(gate.but(step=2), NOW, "fine", full=True, actor="key-ann"),
    ):
        with pytest.raises(Conflict, match="four eyes"):
            act()
    assert steps.resume(gate, NOW, "seen", actor="key-bob").state.step == 6
    assert steps.abort(gate, NOW, "no").state.phase is Phase.degraded
    # An earlier step that is no gate may be ended by whoever asked.
    assert steps.promote(gate.but(step=2), NOW, "on", actor="key-ann").state.step == 3


def test_a_gate_that_asks_for_approval_lets_an_approvers_key_through_only() -> None:
    gate = at_a_gate("approval")
    with pytest.raises(Conflict, match="needs an approval, and ann is no approver's key"):
        steps.resume(gate, NOW, "", actor="ann", approver=False)
    with pytest.raises(Conflict, match="needs an approval"):
        steps.promote(gate, NOW, "now", full=True, actor="ann", approver=False)
    assert steps.resume(gate, NOW, "", actor="ann", approver=True).state.step == 6
    assert gate.step_name == "pause until an approver lets it on"
    raw = STRATEGY.to_dict()
    raw["steps"][1] = {"pause": {"duration": 10, "approval": True}}
    with pytest.raises(BadStrategy, match=r"steps\.1\.pause: approval"):
        parse(raw)


def test_four_eyes_are_for_gates_only() -> None:
    raw = STRATEGY.to_dict()
    raw["steps"][1] = {"pause": {"duration": 10, "fourEyes": True}}
    with pytest.raises(BadStrategy, match=r"steps\.1\.pause: fourEyes"):
        parse(raw)


def test_a_rollout_of_nobodys_requests_says_why_it_has_no_data() -> None:
    move = steps.look(at_five_percent(), seen(50, idle_s=301.0, candidate=ArmCounts(capped=40)))
    assert move.state.outcome is AnalysisOutcome.no_data
    assert "40 of its attempts were capped: they name no user and no session" in move.reason
    assert "RATCHET_ROUTER_NOBODY_VOTES_PER_MINUTE" in move.reason
