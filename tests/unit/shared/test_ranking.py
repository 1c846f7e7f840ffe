"""Bradley-Terry ranking: known strengths are found, and what else votes say."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import spearmanr

from benchmarks.ranking import colluders, crowd, first_three, known_strengths, name
from shared.ranking.board import Outcome, RankedVote, TooManyVersions
from shared.ranking.bradley_terry import PRIOR_SD
from shared.ranking.gains import gains
from shared.ranking.standings import ELO_PER_LOGIT, Effect, rank, rating, share_within


def test_strengths_are_the_optimum_that_scipy_finds() -> None:
    votes = crowd(known_strengths(5), 300)
    place = {name(index): index for index in range(5)}

    def loss(theta: np.ndarray) -> float:
        total = np.sum(theta**2) / (2 * PRIOR_SD**2)
        for vote in votes:
            difference = theta[place[vote.left]] - theta[place[vote.right]]
            won = {"left": 1.0, "right": 0.0}.get(vote.outcome, 0.5)
            total += won * np.log1p(np.exp(-difference)) + (1 - won) * np.log1p(np.exp(difference))
        return float(total)

    best = minimize(loss, np.zeros(5), tol=1e-10).x
    found = {one.version: one.rating for one in rank(votes, bootstraps=0).standings}
    for version, index in place.items():
        assert found[version] == pytest.approx(rating(best[index]), abs=0.1)


@pytest.mark.parametrize("raters", [0, 500])
def test_twenty_versions_and_fifty_thousand_votes(raters: int) -> None:
    known = known_strengths(20)
    votes = crowd(known, 50_000, raters=raters)
    start = time.process_time()
    # A quarter of the 1,000 bootstraps that may take 10 s.
    found = rank(votes, bootstraps=250)
    assert time.process_time() - start < 2.5
    by_version = {one.version: one.rating for one in found.standings}
    measured = [by_version[name(index)] for index in range(20)]
    assert spearmanr(measured, known).statistic >= 0.95
    assert found.connected
    assert (found.raters, found.resampled) == (raters, "raters" if raters else "votes")


def test_intervals_hold_what_they_promise() -> None:
    known = [-0.5, 0.0, 0.5]
    inside = 0
    for seed in range(60):
        votes = crowd(known, 400, seed=seed, ties=0.0)
        found = {one.version: one for one in rank(votes, bootstraps=100, seed=seed).standings}
        inside += sum(
            found[name(index)].low <= rating(value) <= found[name(index)].high
            for index, value in enumerate(known)
        )
    assert 0.9 <= inside / 180 <= 0.99


def test_intervals_hold_what_they_promise_where_raters_differ_in_taste() -> None:
    inside = {"by rater": 0, "by vote": 0}
    for seed in range(40):
        votes = crowd([0.0] * 3, 1_200, seed=seed, raters=60, taste=0.8)
        unnamed = [replace(vote, rater="") for vote in votes]
        for kind, cast in (("by rater", votes), ("by vote", unnamed)):
            found = rank(cast, bootstraps=100, seed=seed).standings
            inside[kind] += sum(one.low <= rating(0) <= one.high for one in found)
    assert inside["by rater"] / 120 >= 0.9
    assert inside["by vote"] / 120 < 0.85


def test_five_percent_who_collude_leave_the_first_three_in_place() -> None:
    known = [1.5, 1.0, 0.6, *(0.1 - 0.05 * index for index in range(17))]
    honest = crowd(known, 19_000, raters=190)
    bought = colluders(range(19), 19, 1_000, 10)
    found = rank(honest + bought, bootstraps=0)
    assert found.raters == 200
    assert first_three(found) == [name(0), name(1), name(2)]


@pytest.mark.parametrize("outcome", ["tie", "both_bad"])
def test_a_tie_and_both_bad_are_half_a_win_each(outcome: Outcome) -> None:
    found = rank([RankedVote("a", "b", outcome)] * 50, bootstraps=20)
    assert [one.rating for one in found.standings] == pytest.approx([1000, 1000])
    assert [one.rank for one in found.standings] == [1, 1]
    assert (found.ties.share, found.both_bad.share) == ((1, 0) if outcome == "tie" else (0, 1))


def test_sides_and_the_order_of_votes_do_not_matter() -> None:
    votes = crowd(known_strengths(4), 200)
    turned: dict[Outcome, Outcome] = {"left": "right", "right": "left"}
    mirrored = [
        RankedVote(vote.right, vote.left, turned.get(vote.outcome, vote.outcome)) for vote in votes
    ]
    one, other = rank(votes, bootstraps=0), rank(mirrored[::-1], bootstraps=0)
    assert [s.version for s in one.standings] == [s.version for s in other.standings]
    for first, second in zip(one.standings, other.standings, strict=True):
        assert first.rating == pytest.approx(second.rating)


def test_a_version_that_always_won_stays_finite_and_first() -> None:
    votes = [RankedVote("a", "b", "left")] * 30 + [RankedVote("b", "c", "left")] * 30
    found = rank(votes, bootstraps=50)
    assert [one.version for one in found.standings] == ["a", "b", "c"]
    assert all(math.isfinite(one.high) for one in found.standings)
    assert found.standings[0].rank == 1


def test_effects_of_side_and_length_are_what_they_are() -> None:
    known = [0.4, 0.0, -0.4]
    found = rank(crowd(known, 6_000, ties=0.0, position=0.5, length=0.3), bootstraps=0)
    for effect, logits in ((found.position, 0.5), (found.length, 0.3)):
        assert isinstance(effect, Effect)
        assert effect.low < ELO_PER_LOGIT * logits < effect.high
        assert effect.low > 0
    assert found.left_wins.low > 0.55
    assert found.longer_wins.low > 0.52
    fair = rank(crowd(known, 6_000), bootstraps=0)
    assert fair.position is not None
    assert fair.position.low < 0 < fair.position.high
    assert fair.left_wins.low < 0.5 < fair.left_wins.high
    assert fair.length is None


def test_a_version_that_leads_by_its_length_does_not_lead_without() -> None:
    votes = crowd([0.0, 0.0], 3_000, length=0.5, wordy=3)
    first, second = rank(votes, bootstraps=100).standings
    assert (first.version, second.version) == (name(1), name(0))
    assert first.low > second.high
    assert first.controlled == pytest.approx(second.controlled, abs=30)


def test_versions_that_no_vote_links_are_told() -> None:
    apart = [RankedVote("a", "b", "left"), RankedVote("c", "d", "left")]
    assert not rank(apart, bootstraps=10).connected
    assert rank([*apart, RankedVote("b", "c", "tie")], bootstraps=10).connected


def test_no_votes_and_votes_on_one_version_rank_nothing() -> None:
    for votes in ([], [RankedVote("a", "a", "left")]):
        found = rank(votes)
        assert found.standings == ()
        assert found.votes == 0
        assert found.connected


def test_too_many_versions_are_refused() -> None:
    votes = [RankedVote("a", f"v{number}", "tie") for number in range(200)]
    with pytest.raises(TooManyVersions, match="201 versions; at most 200"):
        rank(votes)


def test_wilson_s_interval() -> None:
    found = share_within(8, 10)
    assert (found.low, found.high) == pytest.approx((0.490, 0.943), abs=0.001)
    assert share_within(0, 0).high == 1.0


def test_a_vote_tells_most_where_little_is_known_and_outcomes_are_open() -> None:
    known = {("a", "b"): 50.0, ("b", "a"): 50.0, ("b", "c"): 2.0, ("c", "b"): 2.0}
    gained = gains(("a", "b", "c"), known)
    assert gained["a", "b"] < gained["b", "c"] < gained["a", "c"]
    sure = gains(("a", "b", "c"), {("a", "b"): 5.0, ("b", "c"): 2.0, ("c", "b"): 3.0})
    assert sure["a", "b"] < gains(("a", "b"), {("a", "b"): 2.5, ("b", "a"): 2.5})["a", "b"]


def test_a_gain_is_the_fall_of_the_variance_to_the_first_order() -> None:
    wins = {("a", "b"): 30.0, ("b", "a"): 20.0, ("b", "c"): 25.0, ("c", "b"): 25.0}
    before = gains(("a", "b", "c"), wins)["a", "b"]
    after = gains(("a", "b", "c"), {**wins, ("a", "b"): 30.6, ("b", "a"): 20.4})["a", "b"]
    # One more vote, split as it is expected to be, divides the variance by 1 + gain.
    assert before / after == pytest.approx(1 + before, rel=1e-2)
