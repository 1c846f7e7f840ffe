"""The main job, as `make demo` runs it, for several crowds: about ten minutes each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.settings import DEMO_SEED
from demo.tastes import population
from deploy.local.processes import ROOT

BLUNT, TALKATIVE = 1, 7
LIMIT_S = 1800


def test_the_seeds_differ_in_what_their_crowds_like() -> None:
    crowds = [population(seed) for seed in (DEMO_SEED, BLUNT, TALKATIVE)]
    assert len({(crowd.likes_blunt, crowd.likes_terse) for crowd in crowds}) == 3
    assert crowds[1].likes_blunt
    assert crowds[1].likes_terse


@pytest.mark.e2e
@pytest.mark.verify
@pytest.mark.timeout(LIMIT_S + 120)
@pytest.mark.parametrize("seed", [DEMO_SEED, BLUNT, TALKATIVE])
def test_feedback_makes_a_better_model_and_harm_is_taken_back(
    seed: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    written, run_dir = tmp_path / "summary.json", tmp_path / "run"
    command = [sys.executable, "-m", "demo", "--seed", str(seed), "--free-ports"]
    command += ["--run-dir", str(run_dir), "--summary", str(written)]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    summary: dict[str, Any] = json.loads(written.read_text())
    assert (summary["ok"], summary["failed"]) == (True, "")
    assert summary["feedback_share"] == 0.30
    won = summary["win_rate"]
    low, high = won["interval_95"]
    record_property("win rate", f"{won['value']:.1%} [{low:.1%}, {high:.1%}] of {won['prompts']}")
    record_property("whole demo", f"{summary['elapsed_s']:.0f} s")
    record_property("steps", ", ".join(f"{took:.0f} s" for took in summary["steps_s"].values()))
    ended_themselves = [summary["gate"][f"{arm}_stop_share"] for arm in ("candidate", "parent")]
    record_property("answers that ended", "v1.1 {:.1%}, v1.0 {:.1%}".format(*ended_themselves))
    assert won["prompts"] >= 400
    assert won["value"] >= 0.65
    assert won["interval_95"][0] >= 0.55
    rollouts = summary["rollouts"]
    assert rollouts.pop("assistant-v1.1")["phase"] == "Healthy"
    assert len(rollouts) == 2
    for name, rollout in rollouts.items():
        to_rollback_s = rollout["seconds_from_first_request_to_rollback"]
        record_property(
            name, f"back after {to_rollback_s:.1f} s, {rollout['requests']:.0f} requests"
        )
        assert rollout["phase"] == "Degraded"
        assert rollout["requests"] > 0
        assert rollout["requests_1s_after_rollback"] == 0
    failing = rollouts["assistant-v1.3-failing"]
    assert failing["seconds_from_first_request_to_rollback"] <= 60
    assert summary["calls_without_answer"] == 0
    assert summary["counts"]
    assert all(row["agree"] for row in summary["counts"])
    assert not (run_dir / "stack.json").exists()
