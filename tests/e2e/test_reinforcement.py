"""Each method that samples raises the score of answers to held-out prompts and stays near its parent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local.processes import ROOT
from shared.contracts.recipes import ONLINE

LIMIT_S = 3600.0

pytestmark = [pytest.mark.verify, pytest.mark.timeout(LIMIT_S)]


def test_the_score_of_held_out_answers_rises_within_ten_nats(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """PPO, GRPO, RLOO and online DPO; the benchmark's own exit status says so of each."""
    command = [sys.executable, "-m", "benchmarks.reinforcement", "--folder", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, timeout=LIMIT_S, check=False, capture_output=True, text=True
    )
    for row in done.stdout.splitlines():
        method, *figures = (cell.strip() for cell in row.strip("|").split("|"))
        if method in ONLINE:
            record_property(method, ", ".join(figures))
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"| {method} |" in done.stdout for method in ONLINE)
