"""The learning benchmark with the shipped defaults: five seeds, and votes that must not pass."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from benchmarks.learning import FOLDER, ITERATIONS, whole_seeds
from benchmarks.learning_report import (
    PUBLISHED_SATISFACTION,
    PUBLISHED_WINS,
    pooled,
    released,
    served_means,
    shown,
)
from deploy.local.processes import ROOT

SEEDS = ("1", "2", "3", "4", "5")
SEED_LIMIT_S = 3600.0

pytestmark = [pytest.mark.verify, pytest.mark.timeout(len(SEEDS) * SEED_LIMIT_S)]


def learn(*options: str, limit_s: float) -> int:
    """The benchmark's exit status; it goes on from what an earlier run left."""
    command = [sys.executable, "-m", "benchmarks.learning", *options]
    return subprocess.run(command, cwd=ROOT, timeout=limit_s, check=False).returncode


def test_five_tastes_are_learnt_as_fast_as_published(
    record_property: Callable[[str, object], None],
) -> None:
    """Each figure is a mean of five seeds, each win rate one of all their prompts.

    By version, and by votes: what is served after as many rounds of 300 votes is held to the same.
    """
    learn("--seed", *SEEDS, limit_s=len(SEEDS) * SEED_LIMIT_S)
    runs = whole_seeds(FOLDER)
    assert {str(seed) for seed in runs} >= set(SEEDS)
    assert (FOLDER / "learning.svg").exists()
    five = {int(seed): runs[int(seed)] for seed in SEEDS}
    assert {len(released(rounds)) for rounds in five.values()} == {ITERATIONS}
    by_votes = served_means([*five.values()], ITERATIONS)
    published = zip(PUBLISHED_SATISFACTION[1:], PUBLISHED_WINS, strict=True)
    for one, served, (satisfied, won) in zip(
        pooled([*five.values()]), by_votes, published, strict=True
    ):
        record_property(
            one.name,
            f"satisfaction {one.satisfaction:.2f}, wins v1.0 {shown(one.wins_first)}, "
            f"parent {shown(one.wins_parent)}; {served[0]:.2f} by votes",
        )
        assert min(one.satisfaction, served[0]) >= satisfied
        assert min(one.wins_first[0], served[1]) >= won
        assert one.wins_parent[1] > 0.5
        assert one.keeps_tasks


@pytest.mark.parametrize("ablation", ["random", "inverted", "length"])
def test_votes_without_the_taste_do_not_pass_the_gate(ablation: str) -> None:
    options = ("--iterations", "1", "--ablation", ablation)
    assert learn("--seed", "1", *options, limit_s=SEED_LIMIT_S) == 0


def test_a_fifth_of_wrong_votes_is_no_hindrance() -> None:
    options = ("--iterations", "1", "--ablation", "noisy")
    assert learn("--seed", "1", *options, limit_s=SEED_LIMIT_S) == 0
