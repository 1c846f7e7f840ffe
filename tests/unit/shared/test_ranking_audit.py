"""Audit of a ranking: each defect is found, and a clean board raises nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from benchmarks.ranking import colluders, crowd, name
from shared.ranking.audit import Check, Defect, audit
from shared.ranking.board import RankedVote

STRENGTHS = [1.2, 0.72, 0.24, -0.24, -0.72, -1.2]


def found(votes: list[RankedVote]) -> dict[Check, Defect]:
    return {one.check: one for one in audit(votes)}


@pytest.mark.parametrize("seed", range(4))
def test_a_clean_board_raises_nothing(seed: int) -> None:
    assert audit(crowd(STRENGTHS, 6_000, seed=seed, raters=400)) == ()
    assert audit(crowd(STRENGTHS, 6_000, seed=seed)) == ()


def test_no_votes_raise_nothing_and_ties_alone_no_order() -> None:
    assert audit([]) == ()
    ties = [RankedVote("a", "b", "tie", rater=f"r{number % 30}") for number in range(200)]
    assert [one.check for one in audit(ties)] == ["order_unresolved"]


def test_few_votes_do_not_tell_neighbours_apart() -> None:
    (finding,) = audit(crowd(STRENGTHS, 200))
    assert finding.check == "order_unresolved"
    assert "of 5 neighbours" in finding.message


def test_versions_that_no_vote_links_are_named_by_group() -> None:
    votes = crowd(STRENGTHS, 6_000)
    pools = [vote for vote in votes if (vote.left < name(3)) == (vote.right < name(3))]
    finding = found(pools)["versions_unlinked"]
    assert finding.message.endswith("v00, v01, v02 | v03, v04, v05")
    assert finding.versions == ("v03", "v04", "v05")


def test_a_version_with_few_votes_is_named() -> None:
    votes = crowd(STRENGTHS, 6_000)
    rare = [vote for vote in votes if "v05" not in (vote.left, vote.right)] + [
        vote for vote in votes if "v05" in (vote.left, vote.right)
    ][:100]
    assert found(rare)["few_votes"].versions == ("v05",)


def test_an_advantage_of_the_left_that_one_version_has_alone_turns_the_order() -> None:
    # v01 is weaker than v02 but nearly always on the left.
    rng = random.Random(2)
    votes = [
        vote
        for vote in crowd([2.0, 0.3, 0.5, -0.3, -0.8, -1.2], 12_000, position=0.9)
        if vote.right != "v01" or rng.random() < 0.05
    ]
    findings = found(votes)
    assert findings["order_by_position"].versions == ("v02", "v01")
    assert "the left side is worth +1" in findings["position_bias"].message
    assert "length_bias" not in findings


def test_length_that_decides_is_found() -> None:
    findings = found(crowd(STRENGTHS, 6_000, length=0.4))
    assert "twice the length is worth +" in findings["length_bias"].message
    assert "position_bias" not in findings


def test_a_version_that_leads_by_its_length_is_named() -> None:
    votes = crowd([0.4, 0.0], 3_000, length=0.6, wordy=3)
    assert found(votes)["order_by_length"].versions == ("v00", "v01")


def test_ties_that_lift_a_version_are_found() -> None:
    rng = random.Random(3)
    votes = [
        replace(vote, outcome="both_bad")
        if "v04" in (vote.left, vote.right) and rng.random() < 0.85
        else vote
        for vote in crowd(STRENGTHS, 6_000)
    ]
    assert found(votes)["order_by_ties"].versions == ("v03", "v04")


def test_a_circle_is_named_whatever_its_length() -> None:
    votes = crowd(STRENGTHS[2:], 4_000)
    around = [
        RankedVote(f"c{number}", f"c{(number + 1) % 4}", "right" if turn % 4 == 0 else "left")
        for number in range(4)
        for turn in range(400)
    ]
    finding = found([*votes, *around, RankedVote("c0", "v00", "tie")])["cycle"]
    assert finding.versions == ("c0", "c1", "c2", "c3")


def test_votes_of_few_people_of_strong_taste_are_alike() -> None:
    votes = crowd(STRENGTHS, 4_000, raters=300) + crowd(
        STRENGTHS, 2_000, seed=2, raters=6, taste=0.8
    )
    assert "times as wide" in found(votes)["votes_alike"].message


def test_one_rater_who_moves_a_version_is_named() -> None:
    votes = crowd(STRENGTHS, 6_000, raters=100) + colluders([0, 1], 5, 300, 1)
    finding = found(votes)["one_rater"]
    assert "rater bought0, with 5% of the votes, moves v0" in finding.message
    votes = crowd(STRENGTHS, 6_000, raters=5)
    assert "one_rater" not in found(votes)
