from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rollout import audit
from services.rollout.decision_log import MAX_HOLDS, DecisionLog
from services.rollout.state import RolloutState
from services.rollout.strategy_files import parse
from shared.contracts.events.base import Event
from shared.contracts.events.rollouts import Decision, DecisionKind, LeaderElected, Phase
from shared.contracts.topics import ROLLOUT_HOLDS, ROLLOUTS
from shared.kafka.envelope import UnreadableRecord, encode
from shared.kafka.log import Record
from shared.testing.log import MemoryLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STRATEGY = parse(
    {
        "name": "s",
        "steps": [{"setWeight": 5}, {"analysis": {}}, {"setWeight": 100}, {"pause": {}}],
    }
)


def record(offset: int, event: Event) -> Record:
    headers = encode(event, source="/test", event_id=str(offset), time=NOW)
    return Record(ROLLOUTS, 0, offset, "r", event.to_json(), headers, 0)


def elected(offset: int, holder: str = "one") -> Record:
    return record(offset, LeaderElected(holder=holder, at=NOW))


def decided(
    offset: int,
    token: int,
    seq: int,
    *,
    kind: DecisionKind = DecisionKind.hold,
    weight: int = 0,
    phase: Phase = Phase.progressing,
    rollout_id: str = "r",
    candidate: str = "v2",
    evidence: dict[str, Any] | None = None,
) -> Record:
    state = RolloutState(
        rollout_id=rollout_id,
        model="m",
        stable="v1",
        candidate=candidate,
        strategy=STRATEGY,
        phase=phase,
        weight=weight,
        started_at=NOW,
        step_started_at=NOW,
        updated_at=NOW,
    )
    return record(
        offset,
        Decision(
            token=token,
            seq=seq,
            kind=kind,
            model="m",
            rollout_id=rollout_id,
            stable="v1",
            candidate=candidate,
            phase=phase,
            weight=weight,
            actor="controller",
            reason="because",
            evidence={"state": state.model_dump(mode="json")} if evidence is None else evidence,
            strategy=STRATEGY.to_dict() if kind is DecisionKind.start else None,
            at=NOW,
        ),
    )


def folded(*records: Record) -> DecisionLog:
    decision_log = DecisionLog()
    for one in records:
        decision_log.apply(one)
    return decision_log


def test_a_fenced_leader_changes_nothing() -> None:
    decision_log = folded(
        elected(0),
        decided(1, 0, 0, kind=DecisionKind.start),
        decided(2, 0, 1, kind=DecisionKind.weight, weight=500),
        elected(3, "two"),
        decided(4, 0, 2, kind=DecisionKind.weight, weight=10_000),
    )
    history = decision_log.get("r")
    assert history is not None
    assert history.state.weight == 500
    assert (decision_log.token, decision_log.holder, decision_log.read_to) == (
        3,
        "two",
        {(ROLLOUTS, 0): 4},
    )


def test_a_token_that_no_election_gave_counts_for_nothing() -> None:
    decision_log = folded(
        elected(0),
        decided(1, 0, 0, kind=DecisionKind.start),
        decided(2, 10**15, 0, kind=DecisionKind.weight, weight=10_000),
        decided(3, 1, 0, kind=DecisionKind.weight, weight=10_000),
        elected(4, "two"),
        decided(5, 4, 0, kind=DecisionKind.weight, weight=500),
    )
    history = decision_log.get("r")
    assert history is not None
    assert history.state.weight == 500
    routed = decision_log.routing.get("m")
    assert routed is not None
    assert (routed.weight, routed.token) == (500, 4)


def test_the_last_decision_is_the_state_with_the_strategy_of_the_start() -> None:
    decision_log = folded(
        elected(0),
        decided(1, 0, 0, kind=DecisionKind.start),
        decided(2, 0, 1, kind=DecisionKind.weight, weight=500),
        decided(3, 0, 2, weight=500),
    )
    history = decision_log.unfinished_of("m")
    assert history is not None
    assert (history.state.weight, history.state.strategy) == (500, STRATEGY)
    assert history.last.kind is DecisionKind.hold
    assert [one.seq for one in history.decisions((-1, -1), 10)] == [0, 1, 2]
    assert [one.seq for one in history.decisions((0, 0), 1)] == [1]


def test_a_version_that_was_in_a_rollout_is_known_after_the_rollout_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.rollout.decision_log.MAX_ROLLOUTS", 1)
    decision_log = folded(
        elected(0),
        decided(1, 0, 0, kind=DecisionKind.start),
        decided(2, 0, 1, kind=DecisionKind.weight, phase=Phase.degraded),
        decided(3, 0, 2, kind=DecisionKind.start, rollout_id="r2", candidate="v3"),
    )
    assert [one.state.candidate for one in decision_log.histories()] == ["v3"]
    known = {name: decision_log.was_candidate(name) for name in ("v2", "v3", "v4")}
    assert known == {"v2": True, "v3": True, "v4": False}


def test_what_cannot_be_read_is_told_and_counted_as_read() -> None:
    decision_log = folded(elected(0))
    with pytest.raises(UnreadableRecord, match="state"):
        decision_log.apply(decided(1, 0, 0, kind=DecisionKind.start, evidence={}))
    with pytest.raises(UnreadableRecord):
        decision_log.apply(decided(2, 0, 1, kind=DecisionKind.weight))
    assert decision_log.read_to == {(ROLLOUTS, 0): 2}
    assert decision_log.get("r") is None


def test_only_what_a_successor_needs_is_kept_of_the_evidence() -> None:
    state = {"without": {"tenant:aa": {"looks": 1}}, "voters": {"tenant:aa": {}}, "looks": 1}

    def carrying(offset: int, *, whole: bool, **more: Any) -> Record:
        plain = Decision.model_validate_json(decided(offset, 0, offset, **more).value or b"")
        judge = {"judge": state} if whole else {}
        evidence = {**plain.evidence, **judge, "slices": [{"look": offset}]}
        return decided(offset, 0, offset, evidence=evidence, **more)

    records = [
        elected(0),
        carrying(1, whole=True, kind=DecisionKind.start),
        carrying(2, whole=False),
        carrying(3, whole=True),
        carrying(4, whole=False),
    ]
    history = folded(*records).get("r")
    assert history is not None
    assert ["slices" in one.evidence for one in history.all()] == [False, False, True, True]
    assert ["without" in judged for _, judged in history.judged()] == [False, True]
    assert [one["slices"] for one in history.evidence()] == [[{"look": 3}], [{"look": 4}]]
    end = carrying(5, whole=True, kind=DecisionKind.abort, phase=Phase.degraded)
    ended = folded(*records, end).get("r")
    assert ended is not None
    assert not any("slices" in one.evidence for one in ended.all())
    assert [("without" in one, "voters" in one) for _, one in ended.judged()] == [(False, True)] * 3


async def recorded(log: MemoryLog) -> list[Decision]:
    return [one async for batch in audit.AuditLog(log).batches("r") for one in batch]


async def test_the_record_is_read_in_its_order_and_a_few_at_a_time() -> None:
    log = MemoryLog()
    holds = [decided(0, 0, n) for n in range(1, 300) if n != 150]
    for topic, one in (
        (ROLLOUTS, elected(0)),
        (ROLLOUTS, decided(1, 0, 0, kind=DecisionKind.start)),
        (ROLLOUTS, decided(2, 0, 150, kind=DecisionKind.weight, weight=10)),
        *((ROLLOUT_HOLDS, hold) for hold in holds),
        (ROLLOUTS, decided(3, 0, 300, kind=DecisionKind.abort, phase=Phase.degraded)),
    ):
        await log.append(topic, key="r", value=one.value, headers=one.headers)
    batches = [batch async for batch in audit.AuditLog(log).batches("r")]
    assert [one.seq for batch in batches for one in batch] == list(range(301))
    assert max(map(len, batches)) == audit.BATCH


async def test_the_audit_holds_no_other_rollout_s_decisions_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, held = MemoryLog(partitions={ROLLOUTS: 1}), list[str]()
    event_of = audit._event

    def counted(record: Record) -> Decision | LeaderElected | None:
        held.append(record.key)
        return event_of(record)

    monkeypatch.setattr(audit, "_event", counted)
    start = decided(1, 0, 0, kind=DecisionKind.start)
    for key, one in (("leader", elected(0)), ("other", start), ("r", start)):
        await log.append(ROLLOUTS, key=key, value=one.value, headers=one.headers)
    assert len(await recorded(log)) == 1
    assert held == ["leader", "r"]


async def test_the_audit_believes_no_token_that_no_election_gave() -> None:
    log = MemoryLog()
    for topic, one in (
        (ROLLOUTS, elected(0)),
        (ROLLOUTS, decided(1, 0, 0, kind=DecisionKind.start)),
        (ROLLOUTS, decided(2, 10**15, 0, kind=DecisionKind.weight, weight=10_000)),
        (ROLLOUT_HOLDS, decided(0, 0, 1)),
        (ROLLOUT_HOLDS, decided(1, 10**15, 1)),
    ):
        await log.append(topic, key="r", value=one.value, headers=one.headers)
    found = await recorded(log)
    assert [one.decision_id for one in found] == ["0:0", "0:1"]


def test_memory_is_bounded_however_long_a_rollout_holds() -> None:
    decision_log = folded(elected(0), decided(1, 0, 0, kind=DecisionKind.start))
    for n in range(2, MAX_HOLDS + 100):
        decision_log.apply(decided(n, 0, n))
    history = decision_log.get("r")
    assert history is not None
    assert len(history.all()) == MAX_HOLDS + 1


@given(order=st.permutations(range(6)))
def test_records_of_many_leaders_fold_to_the_highest_tokens_word(order: list[int]) -> None:
    """Whatever the order in which late writes land, the last election's decision rules."""
    records = [elected(0), decided(1, 0, 0, kind=DecisionKind.start)]
    for place, n in enumerate(order):
        offset = 2 + 2 * place
        records.append(elected(offset, f"leader{n}"))
        # A straggler of an earlier leader lands after the election.
        records.append(decided(offset + 1, 0, 100 + place, weight=10_000))
    records.append(decided(100, 2 + 2 * (len(order) - 1), 0, weight=500))
    history = folded(*records).get("r")
    assert history is not None
    assert history.state.weight == 500


def test_a_hold_that_is_read_before_the_move_it_follows_hides_nothing() -> None:
    """They are in two topics: another replica may get the later one first."""
    decision_log = folded(
        elected(0),
        decided(1, 0, 0, kind=DecisionKind.start),
        decided(0, 0, 2, weight=600),
        decided(2, 0, 1, kind=DecisionKind.weight, weight=500),
    )
    history = decision_log.get("r")
    assert history is not None
    assert [one.seq for one in history.all()] == [0, 1, 2]
    assert (history.state.weight, history.last.seq) == (600, 2)


def test_a_hold_of_an_unknown_rollout_is_passed_over() -> None:
    decision_log = folded(elected(0), decided(0, 0, 5, weight=500))
    assert decision_log.histories() == []
