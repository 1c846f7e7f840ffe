"""The ranking and its audit against arenakit and the defects that it plants in nine boards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.ranking.audit import Check, audit
from shared.ranking.board import RankedVote
from shared.ranking.standings import ELO_PER_LOGIT, MEAN_RATING, rank
from tests.support.environments import locked_beside

RESAMPLES = 100
"""Of arenakit's audit; its own default is 2,000."""
OURS: dict[str, Check] = {
    "separation": "order_unresolved",
    "rank_volatility": "order_unresolved",
    "connectivity": "versions_unlinked",
    "coverage_imbalance": "few_votes",
    "position_bias": "position_bias",
    "position_reordering": "order_by_position",
    "tie_convention": "order_by_ties",
    "intransitivity": "cycle",
    "vote_clustering": "votes_alike",
    "annotator_influence": "one_rater",
}
"""Our check for each of arenakit's probes."""
BOARDS = (
    "even-board", "too-few-votes", "first-slot-favoured", "draw-prone-model", "rock-paper-scissors",
    "two-separate-pools", "lopsided-budget", "a-few-power-voters", "one-loud-annotator",
)  # fmt: skip

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What arenakit makes and says of each board."""
    found = locked_beside("arenakit", tmp_path_factory.mktemp("arenakit"))
    script = Path(__file__).with_name("arenakit_boards.py")
    command = (sys.executable, script, str(RESAMPLES))
    ran = subprocess.run(command, check=True, capture_output=True, env={**os.environ, **found})
    return {board["key"]: board for board in json.loads(ran.stdout)}


def votes_of(board: dict[str, Any]) -> list[RankedVote]:
    return [
        RankedVote(left, right, outcome, rater=voter)
        for left, right, outcome, voter in board["votes"]
    ]


def test_these_are_all_boards_and_arenakit_finds_what_it_planted(
    boards: dict[str, dict[str, Any]],
) -> None:
    assert tuple(boards) == BOARDS
    for board in boards.values():
        assert set(board["fired"]) >= set(board["expect"]), board["key"]


@pytest.mark.parametrize("key", BOARDS)
def test_the_audit_finds_what_was_planted_and_nothing_else(
    boards: dict[str, dict[str, Any]], key: str
) -> None:
    findings = audit(votes_of(boards[key]))
    for finding in findings:
        print(f"{key}: {finding.check}: {finding.message}")
    assert {one.check for one in findings} == {OURS[probe] for probe in boards[key]["expect"]}


@pytest.mark.parametrize("key", [key for key in BOARDS if key != "two-separate-pools"])
def test_strengths_are_those_of_arenakit(boards: dict[str, dict[str, Any]], key: str) -> None:
    standings = rank(votes_of(boards[key]), bootstraps=0).standings
    theirs = boards[key]["strengths"]
    assert [one.version for one in standings] == sorted(theirs, key=theirs.get, reverse=True)
    for one in standings:
        assert one.rating == pytest.approx(
            MEAN_RATING + ELO_PER_LOGIT * theirs[one.version], abs=1.0
        )
