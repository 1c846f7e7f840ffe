"""The ranking against arena-rank, which makes LMArena's leaderboard, on the same votes."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ranking import crowd, known_strengths
from shared.ranking.board import RankedVote
from shared.ranking.standings import rank
from tests.support.environments import locked_environment

WINNERS = {"left": "model_a", "right": "model_b"}
STRENGTHS = known_strengths(12)
BOARDS: dict[str, list[RankedVote]] = {
    "decided": crowd(STRENGTHS, 10_000, ties=0.0),
    "ties": crowd(STRENGTHS, 10_000, ties=0.3),
    "both bad": [
        replace(vote, outcome="both_bad") if vote.outcome == "tie" else vote
        for vote in crowd(STRENGTHS, 10_000, ties=0.3)
    ],
    "side and length": crowd(STRENGTHS, 10_000, position=0.4, length=0.3, wordy=2),
}
POINTS = 0.5
"""How far ratings and effects may be apart: our prior, and where an optimiser stops."""

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def arena_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What arena-rank, in an environment of its own, says of each board."""
    python = locked_environment("arena-rank", tmp_path_factory.mktemp("arena-rank") / "venv")
    boards = {
        name: [
            {"model_a": vote.left, "model_b": vote.right,
             "winner": WINNERS.get(vote.outcome, vote.outcome),
             "position": 1.0, "length": vote.doublings}
            for vote in votes
        ]
        for name, votes in BOARDS.items()
    }  # fmt: skip
    ran = subprocess.run(
        [python, Path(__file__).with_name("arena_rank_ratings.py")],
        input=json.dumps(boards).encode(), check=True, capture_output=True,
    )  # fmt: skip
    return json.loads(ran.stdout)


@pytest.mark.parametrize("board", BOARDS)
def test_ratings_and_intervals_are_those_of_arena_rank(
    arena_rank: dict[str, Any], board: str
) -> None:
    theirs = arena_rank[board]["plain"]
    standings = rank(BOARDS[board]).standings
    assert [one.version for one in standings] == sorted(
        theirs, key=lambda version: -theirs[version]["rating"]
    )
    apart = max(abs(one.rating - theirs[one.version]["rating"]) for one in standings)
    widths = [
        (one.high - one.low) / (theirs[one.version]["high"] - theirs[one.version]["low"])
        for one in standings
    ]
    print(f"{board}: ratings at most {apart:.2f} points apart, intervals "
          f"{min(widths):.2f} to {max(widths):.2f} times as wide")  # fmt: skip
    assert apart <= POINTS
    assert widths == pytest.approx([1.0] * len(widths), abs=0.15)


def test_ratings_without_side_and_length_and_their_effects_are_those_of_arena_rank(
    arena_rank: dict[str, Any],
) -> None:
    theirs = arena_rank["side and length"]
    ours = rank(BOARDS["side and length"], bootstraps=0)
    assert ours.position is not None
    assert ours.length is not None
    effects = {"position": ours.position.points, "length": ours.length.points}
    apart = max(
        abs(one.controlled - theirs["controlled"][one.version]["rating"]) for one in ours.standings
    )
    print(f"effects {effects}, arena-rank {theirs['effects']}; ratings {apart:.2f} points apart")
    assert effects == pytest.approx(theirs["effects"], abs=POINTS)
    assert apart <= POINTS
