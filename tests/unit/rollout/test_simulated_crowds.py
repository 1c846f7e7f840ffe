"""The crowds of `benchmarks/judge` keep what they say: the judge's figures rest on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.judge.__main__ import information_bound, rows
from benchmarks.judge.crowd import (
    BAD_PER_DAY,
    ArmTruth,
    Hostile,
    SimulatedRollout,
    _poisson,
    simulate,
)
from benchmarks.judge.rules import fixed_threshold, judge
from services.router import votes
from shared.voters import VoterKind


def test_the_simulated_limits_are_the_routers() -> None:
    assert BAD_PER_DAY == votes.BAD_PER_DAY


@pytest.mark.parametrize("limited", [True, False])
def test_a_hostile_user_has_its_few_votes_a_day(limited: bool) -> None:
    calm = ArmTruth(errors=0.0, slow=0.0)
    case = SimulatedRollout(
        "one", calm, calm, users=50, hostile=Hostile(users=1, on_candidate=True), limited=limited
    )
    looks = simulate(case, np.random.default_rng(1))
    bad = sum(look.piece.candidate.failures for look in looks)
    assert (0 < bad <= BAD_PER_DAY * 6) is limited


def test_the_judge_keeps_an_identical_candidate_that_a_threshold_takes_back() -> None:
    looks = simulate(SimulatedRollout("same", users=300), np.random.default_rng(2))
    assert judge(looks) is None
    assert fixed_threshold(looks) is not None


@pytest.mark.parametrize("of", [2, 3])
@pytest.mark.parametrize("voter", ["tenant", "key"])
def test_a_hostile_tenant_of_made_up_users_takes_no_identical_candidate_back(
    voter: VoterKind, of: int
) -> None:
    hostile = Hostile(users=60, on_candidate=True, requests_per_s=0.01, voter=voter, of=of)
    case = SimulatedRollout("tenant", rate=1.0, users=300, looks=30, hostile=hostile)
    looks = simulate(case, np.random.default_rng(3))
    assert judge(looks) is None
    unnamed = [replace(look, piece=look.piece.model_copy(update={"voters": {}})) for look in looks]
    assert judge(unnamed) is not None, "without a look at tenants it would be"


def test_sparse_and_dense_counts_have_the_same_mean() -> None:
    generator = np.random.default_rng(4)
    for mean in (0.01, 1.0):
        drawn = [_poisson(generator, np.full(200, mean))[1].sum() for _ in range(300)]
        assert np.mean(drawn) == pytest.approx(200 * mean, rel=0.1)


def test_a_larger_harm_has_a_smaller_bound() -> None:
    bounds = [information_bound(errors, 0.01, 0.05) for errors in (0.3, 0.1, 0.05, 0.03)]
    assert bounds == sorted(bounds)
    assert len({row.case.name for row in rows()}) == len(rows())
