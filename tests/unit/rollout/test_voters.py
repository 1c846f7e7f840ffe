"""No verdict rests on one tenant or API key alone, where two or more carry what is judged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rollout.counts import ArmCounts, Arms, JudgeState, Slice
from services.rollout.judge import Judge
from services.rollout.strategy import JudgeSettings
from services.rollout.verdict import CriterionState, Verdict
from services.rollout.voters import (
    LAST_WITH_THREE_CARRIERS,
    MAX_VOTERS,
    NOBODY,
    deciding_voters,
)
from shared.contracts.events.rollouts import AnalysisOutcome

JUDGE = Judge(JudgeSettings(), (0.05,))
GOOD = Arms(candidate=ArmCounts(requests=10), stable=ArmCounts(requests=190, failures=1))
FAILING = Arms(
    candidate=ArmCounts(requests=10, failures=5), stable=ArmCounts(requests=190, failures=1)
)
HATED = Arms(
    candidate=ArmCounts(requests=10, scores=10),
    stable=ArmCounts(requests=190, scores=20, score_sum=16),
)
LIKED = Arms(
    candidate=ArmCounts(requests=10, scores=10, score_sum=8),
    stable=ArmCounts(requests=190, scores=20, score_sum=16),
)


def piece(by: str, **voters: Arms) -> Slice:
    """A slice that is the sum of its voters."""
    whole = Arms()
    for arms in voters.values():
        whole = whole + arms
    return Slice(
        candidate=whole.candidate,
        stable=whole.stable,
        weight=500,
        voters={f"{by}:{label}": arms for label, arms in voters.items()},
    )


def judged(by: str, looks: int = 20, **voters: Arms) -> tuple[JudgeState, Verdict]:
    state = JudgeState()
    for _ in range(looks):
        state = JUDGE.advance(state, piece(by, **voters))
    return state, JUDGE.verdict(state, error_limit=0.05)


@pytest.mark.parametrize("by", ["tenant", "key"])
@pytest.mark.parametrize(
    ("harm", "rest", "criterion"), [(FAILING, GOOD, "errors"), (HATED, LIKED, "satisfaction")]
)
def test_one_of_three_alone_holds_and_does_not_condemn(
    by: str, harm: Arms, rest: Arms, criterion: str
) -> None:
    _, verdict = judged(by, aa=harm, bb=rest, cc=rest)
    assert verdict.outcome is AnalysisOutcome.inconclusive
    states = {result.criterion: result.state for result in verdict.results}
    assert states[criterion] is CriterionState.held
    who = {"tenant": "tenant", "key": "API key"}[by]
    assert f"{criterion}: " in verdict.reason
    assert f"rests on {who} aa (33% of its attempts) alone" in verdict.reason


@pytest.mark.parametrize("harm", [FAILING, HATED])
def test_what_all_three_see_condemns(harm: Arms) -> None:
    _, verdict = judged("tenant", aa=harm, bb=harm, cc=harm)
    assert verdict.outcome is AnalysisOutcome.failed


@pytest.mark.parametrize("by", ["tenant", "key"])
@pytest.mark.parametrize(("harm", "rest"), [(FAILING, GOOD), (HATED, LIKED)])
def test_of_two_neither_decides_alone_and_both_together_do(by: str, harm: Arms, rest: Arms) -> None:
    _, verdict = judged(by, aa=harm, bb=rest)
    assert verdict.outcome is AnalysisOutcome.inconclusive
    _, verdict = judged(by, aa=rest, bb=harm)
    assert verdict.outcome is AnalysisOutcome.inconclusive
    _, verdict = judged(by, aa=harm, bb=harm)
    assert verdict.outcome is AnalysisOutcome.failed


def test_the_earlier_rule_let_one_of_two_decide() -> None:
    judge = Judge(JudgeSettings(), (0.05,), LAST_WITH_THREE_CARRIERS)
    state = JudgeState()
    for _ in range(20):
        state = judge.advance(state, piece("tenant", aa=FAILING, bb=GOOD))
    assert judge.verdict(state, error_limit=0.05).outcome is AnalysisOutcome.failed


def of_one_tenant(**keys: Arms) -> Slice:
    """A slice of one tenant and its keys."""
    mine = piece("key", **keys)
    whole = Arms(candidate=mine.candidate, stable=mine.stable)
    return mine.model_copy(update={"voters": {**mine.voters, "tenant:aa": whole}})


def test_of_one_tenant_with_many_keys_no_key_decides_alone() -> None:
    state = JudgeState()
    for _ in range(20):
        state = JUDGE.advance(state, of_one_tenant(a1=FAILING, a2=GOOD, a3=GOOD))
    assert deciding_voters(state, "requests") == ("key:a1", "key:a2", "key:a3")
    verdict = JUDGE.verdict(state, error_limit=0.05)
    assert verdict.outcome is AnalysisOutcome.inconclusive
    assert "rests on API key a1 (33% of its attempts) alone" in verdict.reason


def test_one_key_is_the_product_and_decides() -> None:
    """What one of its users adds is bounded by the router and the aggregator."""
    state = JudgeState()
    for _ in range(20):
        state = JUDGE.advance(state, of_one_tenant(a1=FAILING))
    assert deciding_voters(state, "requests") == ()
    assert JUDGE.verdict(state, error_limit=0.05).outcome is AnalysisOutcome.failed


def test_a_tenant_below_the_share_does_not_make_two() -> None:
    tiny = Arms(stable=ArmCounts(requests=5))
    state, verdict = judged("tenant", aa=FAILING, cc=tiny)
    assert deciding_voters(state, "requests") == ()
    assert verdict.outcome is AnalysisOutcome.failed


def test_who_gives_the_scores_is_left_out_of_satisfaction_however_few_its_attempts() -> None:
    critic = Arms(
        candidate=ArmCounts(requests=1, scores=1),
        stable=ArmCounts(requests=2, scores=2, score_sum=2),
    )
    fan = Arms(
        candidate=ArmCounts(requests=100, scores=1, score_sum=1),
        stable=ArmCounts(requests=1_900, scores=2, score_sum=2),
    )
    state, verdict = judged("tenant", looks=60, aa=fan, bb=critic)
    assert deciding_voters(state, "requests") == ()
    assert deciding_voters(state, "scores") == ("tenant:aa", "tenant:bb")
    states = {result.criterion: result.state for result in verdict.results}
    assert states["satisfaction"] is CriterionState.held


def test_the_share_under_a_common_label_is_left_out_with_the_voter_that_may_be_in_it() -> None:
    state, _ = judged("tenant", looks=1, **{"00000004": GOOD, "00000005": GOOD, "shared-0": GOOD})
    left = {voter: one.totals.candidate.requests for voter, one in state.without.items()}
    assert left.pop(NOBODY) == 30
    assert left == {"tenant:00000004": 10, "tenant:00000005": 20, "tenant:shared-0": 20}


def test_a_segment_cannot_be_looked_at_by_tenant_and_holds() -> None:
    state = JudgeState()
    for _ in range(30):
        look = piece("tenant", aa=GOOD, bb=GOOD, cc=GOOD)
        harmed = Arms(candidate=FAILING.candidate, stable=GOOD.stable)
        state = JUDGE.advance(state, look.model_copy(update={"segments": {"gold": harmed}}))
    verdict = JUDGE.verdict(state, error_limit=0.05)
    states = {result.criterion: result.state for result in verdict.results}
    assert states["segment_errors"] is CriterionState.held
    assert verdict.outcome is AnalysisOutcome.inconclusive


@given(st.lists(st.text("0123456789abcdef", min_size=8, max_size=8), max_size=120))
def test_voters_that_are_followed_are_bounded(labels: list[str]) -> None:
    state = JUDGE.advance(JudgeState(), piece("key", **dict.fromkeys(labels, GOOD)))
    assert state.without.keys() - {NOBODY} == state.voters.keys()
    assert len(state.voters) <= MAX_VOTERS


def test_a_late_voter_had_no_part_before() -> None:
    state = JudgeState()
    for voters in ({"aa": GOOD}, {"aa": GOOD, "bb": FAILING}):
        state = JUDGE.advance(state, piece("tenant", **voters))
    assert state.without["tenant:bb"].totals.candidate.requests == 20
    assert state.without["tenant:bb"].totals.candidate.failures == 0
    assert state == JudgeState.model_validate(state.model_dump(exclude_defaults=True))


def test_a_voter_that_gets_its_own_label_had_its_part_under_the_shared_one() -> None:
    state = JudgeState()
    # A router has no room for tenant 00000004, and has after its restart.
    for label in ("shared-0", "00000004"):
        for _ in range(20):
            voters = {label: FAILING, "00000005": GOOD, "00000006": GOOD}
            state = JUDGE.advance(state, piece("tenant", **voters))
    assert state.without["tenant:00000004"].totals.candidate.failures == 0
    verdict = JUDGE.verdict(state, error_limit=0.05)
    assert verdict.outcome is AnalysisOutcome.inconclusive


def test_a_voter_beyond_those_followed_is_left_out_by_its_shared_label() -> None:
    state = JUDGE.advance(
        JudgeState(), piece("key", **{f"{number:08x}": GOOD for number in range(MAX_VOTERS)})
    )
    harm = Arms(
        candidate=ArmCounts(requests=200, failures=100), stable=ArmCounts(requests=200, failures=1)
    )
    late = f"{4 * MAX_VOTERS:08x}"
    for _ in range(10):
        look = piece("key", **{late: harm, "00000001": GOOD, "00000002": GOOD, "00000003": GOOD})
        state = JUDGE.advance(state, look)
    assert state.without["key:shared-0"].totals.candidate.failures == 0
    verdict = JUDGE.verdict(state, error_limit=0.05)
    assert "rests on API key shared-0" in verdict.reason


def test_keys_take_no_room_from_tenants() -> None:
    state = JUDGE.advance(
        JudgeState(), piece("key", **{f"{number:08x}": GOOD for number in range(MAX_VOTERS)})
    )
    state = JUDGE.advance(state, piece("tenant", aa=GOOD))
    assert "tenant:aa" in state.without
