"""The crowds of `benchmarks/judge` keep what they say: the judge's figures rest on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.judge.__main__ import information_bound, rows
from benchmarks.judge.crowd import (
    BAD_PER_DAY,
    ArmTruth,
    Hostile,
    SimulatedLook,
    SimulatedRollout,
    _poisson,
    simulate,
)
from benchmarks.judge.rules import ERROR_LIMITS, JUDGE, Rule, fixed_threshold, judge
from services.rollout.counts import ArmCounts, JudgeState
from services.router import votes
from shared.contracts.events.rollouts import AnalysisOutcome
from shared.voters import VoterKind


def looks_of(case: SimulatedRollout, seed: int) -> list[SimulatedLook]:
    """All looks of one rollout."""
    return [looks[0] for looks in simulate(case, np.random.default_rng(seed))]


def takes_back(rule: Rule, looks: Iterable[SimulatedLook]) -> bool:
    decide = rule()
    return any(decide(look) for look in looks)


def test_the_simulated_limits_are_the_routers() -> None:
    assert BAD_PER_DAY == votes.BAD_PER_DAY


@pytest.mark.parametrize("limited", [True, False])
def test_a_hostile_user_has_its_few_votes_a_day(limited: bool) -> None:
    calm = ArmTruth(errors=0.0, slow=0.0)
    case = SimulatedRollout(
        "one", calm, calm, users=50, hostile=Hostile(users=1, on_candidate=True), limited=limited
    )
    bad = sum(look.piece.candidate.failures for look in looks_of(case, 1))
    assert (0 < bad <= BAD_PER_DAY * 6) is limited


def test_the_judge_keeps_an_identical_candidate_that_a_threshold_takes_back() -> None:
    looks = looks_of(SimulatedRollout("same", users=300), 2)
    assert not takes_back(judge, looks)
    assert takes_back(fixed_threshold, looks)


@pytest.mark.parametrize("of", [2, 3])
@pytest.mark.parametrize("voter", ["tenant", "key"])
def test_a_hostile_tenant_of_made_up_users_takes_no_identical_candidate_back(
    voter: VoterKind, of: int
) -> None:
    hostile = Hostile(users=60, on_candidate=True, requests_per_s=0.01, voter=voter, of=of)
    case = SimulatedRollout("tenant", rate=1.0, users=300, looks=30, hostile=hostile)
    looks = looks_of(case, 3)
    assert not takes_back(judge, looks)
    unnamed = [replace(look, piece=look.piece.but(voters={})) for look in looks]
    assert takes_back(judge, unnamed), "without a look at tenants it would be"


@pytest.mark.parametrize("candidate", [ArmTruth(), ArmTruth(errors=0.1)])
def test_judges_told_late_decide_as_those_told_at_each_look(candidate: ArmTruth) -> None:
    hostile = Hostile(users=60, on_candidate=True, requests_per_s=0.01, voter="tenant")
    case = SimulatedRollout("late", candidate, rate=1.0, users=300, looks=30, hostile=hostile)
    decide, state = judge(), JudgeState()
    found: list[tuple[bool, bool]] = []
    for look in looks_of(case, 4):
        state = JUDGE.advance(state, look.piece)
        verdict = JUDGE.verdict(state, error_limit=ERROR_LIMITS[look.weight])
        found.append((bool(decide(look)), verdict.outcome is AnalysisOutcome.failed))
    assert all(late == told for late, told in found)
    assert any(told for _, told in found) is (candidate.errors > 0.01)


def test_rollouts_that_are_over_are_drawn_no_more_and_the_others_go_on() -> None:
    case = SimulatedRollout("several", rate=2.0, users=40, looks=12)
    rollouts = simulate(case, np.random.default_rng(5), rollouts=3)
    drawn = dict.fromkeys(range(3), 0)
    for looks in rollouts:
        for number, look in looks.items():
            drawn[number] += 1
            assert list(look.piece.candidate.__dict__) == list(ArmCounts.model_fields)
            if drawn[number] == 4 and number != 1:
                rollouts.end(number)
    assert drawn == {0: 4, 1: 12, 2: 4}


def test_each_of_many_rollouts_has_its_own_crowd_of_the_same_traffic() -> None:
    case = SimulatedRollout("many", rate=1.0, users=50, looks=6, limited=False, daily=0.0)
    requests = np.zeros(20)
    for looks in simulate(case, np.random.default_rng(6), rollouts=20):
        for number, look in looks.items():
            requests[number] += look.piece.candidate.requests + look.piece.stable.requests
    assert requests == pytest.approx(np.full(20, 6 * 86_400), rel=0.02)
    assert len(set(requests.tolist())) > 1


def test_sparse_and_dense_counts_have_the_same_mean() -> None:
    generator = np.random.default_rng(4)
    for mean in (0.01, 1.0):
        drawn = [_poisson(generator, np.full(200, mean))[1].sum() for _ in range(300)]
        assert np.mean(drawn) == pytest.approx(200 * mean, rel=0.1)


def test_a_larger_harm_has_a_smaller_bound() -> None:
    bounds = [information_bound(errors, 0.01, 0.05) for errors in (0.3, 0.1, 0.05, 0.03)]
    assert bounds == sorted(bounds)
    assert len({row.case.name for row in rows()}) == len(rows())
