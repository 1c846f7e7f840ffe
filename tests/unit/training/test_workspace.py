"""A job's folder: what of it is used again after a kill, and after an upgrade."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.training import workspace as module
from services.training.ai_opinion import RESULT as AI_RESULT
from services.training.evaluation import EvaluationSettings
from services.training.trainers.job import TrainerJob
from services.training.workspace import Workspace, trainers_digest
from shared.contracts.recipes import RewardHyperparameters

TRAINED = ("dpo.json", "adapter/weights", "checkpoints/state", "progress.jsonl")
MEASURED = ("evaluate.json", "quality.json", AI_RESULT)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, "job")


def job(workspace: Workspace, threads: int = 0) -> TrainerJob:
    return TrainerJob(
        stages=("reward", "dpo", "evaluate", "quality"),
        base="base",
        data=str(workspace.data),
        judge=str(workspace.judge),
        reward=RewardHyperparameters(),
        evaluation=EvaluationSettings(),
        seed=0,
        threads=threads,
    )


def begun(workspace: Workspace) -> Path:
    """An attempt that was killed once everything of it was done."""
    attempt = workspace.attempt(1)
    workspace.begin(attempt, job(workspace))
    for name in (*TRAINED, *MEASURED):
        (attempt / name).parent.mkdir(exist_ok=True)
        (attempt / name).write_text("{}")
    (workspace.judge / "reward.json").write_text("{}")
    return attempt


def left(attempt: Path, *names: str) -> list[str]:
    return [name for name in names if (attempt / name).exists()]


def test_all_is_used_again_after_a_kill(workspace: Workspace) -> None:
    attempt = begun(workspace)
    workspace.begin(attempt, job(workspace, threads=3))
    assert left(attempt, *TRAINED, *MEASURED) == [*TRAINED, *MEASURED]
    assert (workspace.judge / "reward.json").exists()


@pytest.mark.parametrize("marked", [True, False], ids=["another release", "one without a mark"])
def test_what_another_release_measured_is_measured_again_and_its_training_goes_on(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, marked: bool
) -> None:
    attempt = begun(workspace)
    if marked:
        monkeypatch.setattr(module, "trainers_digest", lambda: "of another release")
    else:
        for mark in (attempt / "made-from.json", workspace.judge / "made-from.json"):
            content = json.loads(mark.read_bytes())
            del content["trainers"]
            mark.write_text(json.dumps(content))
    workspace.begin(attempt, job(workspace))
    assert left(attempt, *TRAINED, *MEASURED) == [*TRAINED]
    assert not (workspace.judge / "reward.json").exists()
    (attempt / "evaluate.json").write_text("{}")
    workspace.begin(attempt, job(workspace))
    assert left(attempt, "evaluate.json"), "what this release measured is kept"


def test_the_digest_is_of_what_trains_and_measures() -> None:
    assert len(trainers_digest()) == 64
    folder = Path(module.__file__).parent
    assert list(folder.glob("trainers/*.py"))
    assert list(folder.glob("measures/*.yaml"))
