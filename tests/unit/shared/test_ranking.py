"""Bradley-Terry ranking: known strengths are found, and what else votes say."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import spearmanr

from shared.ranking import (
    PRIOR_SD,
    Outcome,
    RankedVote,
    TooManyVersions,
    gains,
    rank,
    rating,
    share_within,
)


def crowd(
    strengths: list[float], votes: int, *, seed: int = 1, ties: float = 0.1, bias: float = 0.0
) -> list[RankedVote]:
    """Votes of people who follow the model; `bias` in logits is for the answer on the left."""
    rng = random.Random(seed)
    found: list[RankedVote] = []
    for _ in range(votes):
        i, j = rng.sample(range(len(strengths)), 2)
        outcome: Outcome = "right"
        if rng.random() < ties:
            outcome = "tie"
        elif rng.random() < 1 / (1 + math.exp(strengths[j] - strengths[i] - bias)):
            outcome = "left"
        found.append(RankedVote(name(i), name(j), outcome))
    return found


def name(index: int) -> str:
    return f"v{index:02}"


def strengths(count: int, seed: int = 3) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(0, 0.6) for _ in range(count)]


def test_strengths_are_the_optimum_that_scipy_finds() -> None:
    votes = crowd(strengths(5), 300)
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


def test_twenty_versions_and_fifty_thousand_votes() -> None:
    known = strengths(20)
    votes = crowd(known, 50_000, ties=0.0)
    start = time.process_time()
    # A quarter of the 1,000 bootstraps that may take 10 s.
    found = rank(votes, bootstraps=250)
    assert time.process_time() - start < 2.5
    by_version = {one.version: one.rating for one in found.standings}
    measured = [by_version[name(index)] for index in range(20)]
    assert spearmanr(measured, known).statistic >= 0.95
    assert found.connected


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


def test_a_few_who_collude_leave_the_first_three_in_place() -> None:
    known = [1.5, 1.0, 0.6, *(0.1 - 0.05 * index for index in range(17))]
    honest = crowd(known, 20_000, ties=0.0)
    rng = random.Random(5)
    bought = [RankedVote(name(19), name(rng.randrange(19)), "left") for _ in range(1_000)]
    found = rank(honest + bought, bootstraps=0).standings
    assert [one.version for one in found[:3]] == [name(0), name(1), name(2)]


@pytest.mark.parametrize("outcome", ["tie", "both_bad"])
def test_a_tie_and_both_bad_are_half_a_win_each(outcome: Outcome) -> None:
    found = rank([RankedVote("a", "b", outcome)] * 50, bootstraps=20)
    assert [one.rating for one in found.standings] == pytest.approx([1000, 1000])
    assert [one.rank for one in found.standings] == [1, 1]
    assert (found.ties.share, found.both_bad.share) == ((1, 0) if outcome == "tie" else (0, 1))


def test_sides_and_the_order_of_votes_do_not_matter() -> None:
    votes = crowd(strengths(4), 200)
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


def test_position_and_length_effects_show() -> None:
    biased = rank(crowd([0.0, 0.0], 4_000, bias=0.5), bootstraps=10)
    assert biased.left_wins.low > 0.55
    fair = rank(crowd([0.0, 0.0], 4_000), bootstraps=10)
    assert fair.left_wins.low < 0.5 < fair.left_wins.high
    longer = [RankedVote("a", "b", "left", 200, 100)] * 30
    assert rank(longer, bootstraps=10).longer_wins.low > 0.8


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
