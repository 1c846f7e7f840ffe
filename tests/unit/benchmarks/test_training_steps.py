"""Steps of a training stage, as benchmarks divide its time by them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.reinforcement import last_step
from services.training.trainers.job import Progress


def test_what_is_prepared_before_the_first_step_is_no_step(tmp_path: Path) -> None:
    progress = Progress(tmp_path)
    progress.prepare("ppo", "tokens", 500, 500)
    progress.report("ppo", 16, 16, 0.4)
    progress.report("evaluate", 64, 64)
    assert last_step(tmp_path, "ppo") == 16
