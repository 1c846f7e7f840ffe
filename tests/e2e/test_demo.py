"""The main job, whole: its exit status, and what its summary promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 1800

# The whole demo is the longest test there is, so it belongs to make verify.
pytestmark = [pytest.mark.e2e, pytest.mark.verify, pytest.mark.timeout(LIMIT_S + 120)]


def test_the_demo_does_what_it_shows(tmp_path: Path) -> None:
    written = tmp_path / "summary.json"
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "demo",
            "--free-ports",
            "--run-dir",
            str(tmp_path / "run"),
            "--summary",
            str(written),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    summary: dict[str, Any] = json.loads(written.read_text())
    assert summary["ok"]
    assert summary["feedback_share"] == 0.30
    won = summary["win_rate"]
    assert won["prompts"] >= 400
    assert won["value"] >= 0.65
    assert won["interval_95"][0] >= 0.55
    rollouts = summary["rollouts"]
    assert rollouts.pop("assistant-v1.1")["phase"] == "Healthy"
    assert len(rollouts) == 2
    for rollout in rollouts.values():
        assert rollout["phase"] == "Degraded"
        assert rollout["requests"] > 0
        assert rollout["requests_1s_after_rollback"] == 0
    failing = rollouts["assistant-v1.3-failing"]
    assert failing["seconds_from_first_request_to_rollback"] <= 60
    assert summary["calls_without_answer"] == 0
    assert summary["counts"]
    assert all(row["agree"] for row in summary["counts"])
    assert not (tmp_path / "run" / "stack.json").exists()
