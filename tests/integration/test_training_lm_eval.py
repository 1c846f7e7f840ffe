"""The stage of lm-eval: what it asks, what it reads back, and that nothing of it stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ML_PYTHON = ROOT / ".venv-ml" / "bin" / "python"
SCRIPT = Path(__file__).with_name("training_lm_eval.py")
DEADLINE_S = 120.0

ANSWERS = """
import json, os, pathlib, sys

def given(name):
    return sys.argv[sys.argv.index(name) + 1]

trained = "peft" in json.loads(given("--model_args"))
out = pathlib.Path(given("--output_path"))
out.joinpath("seen.json").write_text(json.dumps([sys.argv[1:4], sorted(os.environ)]))
out.joinpath("base").mkdir()
for task, metric in (("arc_easy", "acc"), ("gsm8k", "exact_match")):
    rows = [
        {"doc_id": n, "metrics": [metric], metric: float(not trained or n < 3)} for n in range(4)
    ]
    path = out / "base" / f"samples_{task}_2026-01-01T00-00-00.000000.jsonl"
    path.write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""
SLEEPS = """
import os, pathlib, sys, time

out = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1])
out.joinpath("pid.partial").write_text(str(os.getpid()))
out.joinpath("pid.partial").rename(out / "pid")
time.sleep(600)
"""

pytestmark = pytest.mark.timeout(300)


def interpreter(folder: Path, program: str) -> Path:
    """An executable that runs the program whatever module it is asked for."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{program}")
    path.chmod(0o755)
    return path


def stage(folder: Path, program: str) -> subprocess.Popen[str]:
    """The stage as the first of two processes does it."""
    return subprocess.Popen(
        [ML_PYTHON, SCRIPT, folder, interpreter(folder, program)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RANK": "0", "WORLD_SIZE": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_both_arms_are_asked_alone_and_each_task_has_its_change(tmp_path: Path) -> None:
    said, _ = stage(tmp_path, ANSWERS).communicate(timeout=DEADLINE_S)
    figures = json.loads(said)
    for task in ("arc_easy", "gsm8k"):
        assert figures[f"capability_{task}_items"] == 4
        assert figures[f"capability_{task}_candidate"] == 0.75
        assert (figures[f"capability_{task}_lost"], figures[f"capability_{task}_won"]) == (1, 0)
    for arm in ("parent", "candidate"):
        command, names = json.loads((tmp_path / "harness" / arm / "seen.json").read_text())
        assert command == ["-m", "lm_eval", "run"]
        assert "PATH" in names
        assert not {"RANK", "WORLD_SIZE"} & set(names), "it would wait for the second process"


def test_a_task_without_samples_is_no_pass(tmp_path: Path) -> None:
    program = ANSWERS.replace("metric in ((", "metric in () if trained else ((")
    with stage(tmp_path, program) as trainer:
        _, errors = trainer.communicate(timeout=DEADLINE_S)
    assert trainer.returncode != 0
    assert "samples of arc_easy, gsm8k for the parent and of nothing for the candidate" in errors


def test_it_ends_with_a_trainer_that_is_killed(tmp_path: Path) -> None:
    noted = tmp_path / "harness" / "parent" / "pid"
    with stage(tmp_path, SLEEPS) as trainer:
        until(noted.exists)
        trainer.kill()
    until(lambda: not runs(int(noted.read_text())))


def until(holds: Callable[[], bool]) -> None:
    """Wait for what a test expects."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether a process is there that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False
