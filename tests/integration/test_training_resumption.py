"""A DPO job's trainer that is killed at ten random moments ends with the record of one that never was."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.training.evaluation import EvaluationSettings
from services.training.trainers.job import TrainerJob, write_rows
from shared.contracts.recipes import RewardHyperparameters
from shared.cpu_environment import CPU_ENVIRONMENT
from shared.registry.adapters import FINGERPRINT_TEXTS

ROOT = Path(__file__).resolve().parents[2]
ML_PYTHON = ROOT / ".venv-ml/bin/python"
KILLS = 10
STAGES = ("reward", "dpo", "evaluate", "quality", "drift", "fingerprint")
TIMES = frozenset({"runtime", "train_runtime"})
"""Figures of a stage that are seconds."""
LIMIT_S = 1800.0

pytestmark = [pytest.mark.verify, pytest.mark.timeout(2 * LIMIT_S)]


class ResumedJob:
    """A job's folder and the trainers that worked in it."""

    def __init__(self, folder: Path, parent: Path, base: Path, data: Path) -> None:
        self.folder = folder
        folder.mkdir()
        job = TrainerJob(
            stages=STAGES,
            base=str(base),
            parent_adapter=str(parent),
            data=str(data),
            judge=str(folder / "judge"),
            hyperparameters={"epochs": 6},
            reward=RewardHyperparameters(epochs=4),
            evaluation=EvaluationSettings(max_new_tokens=12, question_tokens=4),
            seed=5,
            threads=1,
            fingerprint_texts=FINGERPRINT_TEXTS,
        )
        (folder / "job.json").write_text(job.model_dump_json())

    def start(self) -> subprocess.Popen[bytes]:
        return run_trainer(self.folder)

    def finish(self) -> float:
        """Seconds of a trainer that nobody disturbs."""
        began = time.monotonic()
        assert self.start().wait(timeout=LIMIT_S) == 0
        return time.monotonic() - began

    def killed_after(self, seconds: float) -> bool:
        """Whether a trainer was still at work when it was killed."""
        trainer = self.start()
        try:
            status = trainer.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            trainer.kill()
            trainer.wait(timeout=60)
            return True
        assert status == 0
        return False

    def record(self) -> dict[str, Any]:
        """All figures but times, and the bytes of candidate and judge."""
        found: dict[str, Any] = {}
        for stage in STAGES:
            place = self.folder / "judge" if stage == "reward" else self.folder
            figures = json.loads((place / f"{stage}.json").read_bytes())
            found[stage] = {name: one for name, one in figures.items() if name not in TIMES}
        for name in ("adapter", "judge/adapter"):
            found[name] = (self.folder / name / "adapter_model.safetensors").read_bytes()
        return found


def run_trainer(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [ML_PYTHON, "-m", "services.training.trainers.run", folder, str(os.getpid())],
        cwd=ROOT,
        env={**os.environ, **CPU_ENVIRONMENT, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str], ResumedJob]:
    """Makes jobs on the tiny model, from one parent, on the same pairs."""
    base, data, parent = tmp_path / "base", tmp_path / "data", tmp_path / "parent"
    maker = Path(__file__).with_name("training_tiny_model.py")
    subprocess.run([ML_PYTHON, maker, base], check=True, capture_output=True, timeout=120)
    data.mkdir()
    chance = random.Random(3)
    prompts = ["".join(chance.choices("abcd", k=6)) for _ in range(120)]
    turns = [[{"role": "user", "content": text}] for text in prompts]
    pairs = [
        {"messages": one, "chosen": f"oooo {number % 7}", "rejected": f"xyxy {number % 7}"}
        for number, one in enumerate(turns)
    ]
    for name, rows in (
        ("train", pairs[:80]),
        ("heldout", pairs[80:90]),
        ("judge", pairs[90:]),
        ("prompts", [{"messages": one} for one in turns[80:90]]),
    ):
        write_rows(data / f"{name}.jsonl", rows)
    parent.mkdir()
    demonstrations = tmp_path / "demonstrations"
    demonstrations.mkdir()
    rows = [{"messages": one, "answer": "oooo"} for one in turns[:24]]
    write_rows(demonstrations / "train.jsonl", rows)
    sft = TrainerJob(
        stages=("sft",),
        base=str(base),
        data=str(demonstrations),
        judge="",
        method="sft",
        reward=RewardHyperparameters(),
        evaluation=EvaluationSettings(),
        seed=5,
        threads=1,
    )
    (parent / "job.json").write_text(sft.model_dump_json())
    assert run_trainer(parent).wait(timeout=LIMIT_S) == 0
    return lambda name: ResumedJob(tmp_path / name, parent / "adapter", base, data)


def test_killed_at_ten_random_moments_it_ends_with_the_same_record(
    job: Callable[[str], ResumedJob], record_property: Callable[[str, object], None]
) -> None:
    whole = job("whole")
    took = whole.finish()
    chance, moments, number = random.Random(11), list[float](), 0
    while len(moments) < KILLS:
        resumed = job(f"killed-{number}")
        number += 1
        while len(moments) < KILLS:
            moment = chance.uniform(0.0, took)
            if not resumed.killed_after(moment):
                break
            moments.append(moment)
        resumed.finish()
        assert resumed.record() == whole.record()
    record_property("killed after", ", ".join(f"{moment:.1f} s" for moment in moments))
    record_property("jobs", number)
