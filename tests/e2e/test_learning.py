"""The learning benchmark with the shipped defaults: five seeds, and votes that must not pass."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.learning import (
    FOLDER,
    ITERATIONS,
    JUDGED,
    PUBLISHED_SATISFACTION,
    PUBLISHED_WINS,
    RESULTS,
)
from benchmarks.training_stages import read
from deploy.local.processes import ROOT
from shared.intervals import wilson

SEEDS = ("1", "2", "3", "4", "5")
SEED_LIMIT_S = 3600.0

pytestmark = [pytest.mark.verify, pytest.mark.timeout(len(SEEDS) * SEED_LIMIT_S)]


def learn(*options: str, limit_s: float) -> int:
    """The benchmark's exit status; it goes on from what an earlier run left."""
    command = [sys.executable, "-m", "benchmarks.learning", *options]
    return subprocess.run(command, cwd=ROOT, timeout=limit_s, check=False).returncode


def results(folder: Path) -> list[dict[str, Any]]:
    return read(folder / RESULTS)


def test_five_tastes_are_learnt_as_fast_as_published(
    record_property: Callable[[str, object], None],
) -> None:
    """Each figure is a mean of five seeds, each win rate one of all their prompts."""
    learn("--seed", *SEEDS, limit_s=len(SEEDS) * SEED_LIMIT_S)
    runs = [results(FOLDER / f"none-{seed}") for seed in SEEDS]
    assert (FOLDER / "learning.svg").exists()
    for number in range(ITERATIONS):
        versions = [run[number] for run in runs]
        satisfied = statistics.fmean(one["satisfaction"] for one in versions)
        won, over_parent = (
            sum(one[name][0] for one in versions) / len(SEEDS)
            for name in ("wins_first", "wins_parent")
        )
        prompts = JUDGED * len(SEEDS)
        low = wilson(over_parent * prompts, prompts)[0]
        record_property(
            versions[0]["name"],
            f"satisfaction {satisfied:.2f}, wins v1.0 {won:.0%}, parent {over_parent:.0%} "
            f"(at least {low:.0%})",
        )
        assert satisfied >= PUBLISHED_SATISFACTION[number + 1]
        assert won >= PUBLISHED_WINS[number]
        assert low > 0.5


@pytest.mark.parametrize("ablation", ["random", "inverted"])
def test_votes_without_the_taste_do_not_pass_the_gate(ablation: str) -> None:
    options = ("--iterations", "1", "--ablation", ablation)
    assert learn("--seed", "1", *options, limit_s=SEED_LIMIT_S) == 0
