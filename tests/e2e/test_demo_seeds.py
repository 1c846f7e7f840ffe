"""The main job for several crowds, as `make demo` runs it: seven to twenty minutes each."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from demo.settings import DEMO_SEED
from demo.tastes import population
from deploy.local.processes import ROOT

BLUNT, TALKATIVE = 1, 7


def test_the_seeds_differ_in_what_their_crowds_like():
    crowds = [population(seed) for seed in (DEMO_SEED, BLUNT, TALKATIVE)]
    assert len({(crowd.likes_blunt, crowd.likes_terse) for crowd in crowds}) == 3
    assert crowds[1].likes_blunt
    assert crowds[1].likes_terse


@pytest.mark.verify
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [DEMO_SEED, BLUNT, TALKATIVE])
def test_feedback_makes_a_better_model_whatever_the_crowd_likes(seed, tmp_path):
    summary = tmp_path / "summary.json"
    command = [sys.executable, "-m", "demo", "--seed", str(seed), "--free-ports"]
    command += ["--run-dir", str(tmp_path / "run"), "--summary", str(summary)]
    status = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode
    seen = json.loads(summary.read_text())
    assert (status, seen["failed"]) == (0, "")
    assert seen["win_rate"]["prompts"] >= 400
    assert seen["win_rate"]["value"] >= 0.65
    assert seen["win_rate"]["interval_95"][0] >= 0.55
    assert all(count["agree"] for count in seen["counts"])
