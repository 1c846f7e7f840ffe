"""Out of memory: the batch is halved, the effective batch stays, and the end is told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.training.evaluation import EvaluationSettings
from services.training.trainers.job import CannotTrain, TrainerJob
from services.training.trainers.memory import fitted, halve, halvings
from services.training.trainers.run import do
from shared.contracts.recipes import RewardHyperparameters


def job(method: Any = "dpo", **hyperparameters: Any) -> TrainerJob:
    return TrainerJob(
        stages=(method,),
        base="base",
        data="data",
        judge="judge",
        method=method,
        hyperparameters=hyperparameters,
        reward=RewardHyperparameters(batch_size=4, accumulation=3),
        evaluation=EvaluationSettings(batch_size=32),
        seed=0,
    )


def test_half_the_rows_and_twice_the_steps() -> None:
    trained = fitted(job(batch_size=8, accumulation=2), "dpo", 2).trained
    assert (trained.batch_size, trained.accumulation) == (2, 8)


def test_the_judge_and_the_evaluation_have_batches_of_their_own() -> None:
    reward = fitted(job(), "reward", 1).reward
    assert (reward.batch_size, reward.accumulation) == (2, 6)
    for stage in ("evaluate", "quality"):
        assert fitted(job(), stage, 3).evaluation.batch_size == 4


@pytest.mark.parametrize(
    ("method", "parameters", "times"),
    [
        ("dpo", {"batch_size": 1}, 1),
        ("dpo", {"batch_size": 6}, 2),
        ("kto", {"batch_size": 2}, 1),
        ("online_dpo", {"batch_size": 4, "generations": 4}, 1),
    ],
)
def test_what_cannot_be_halved_any_more_is_told_with_the_remedy(
    method: str, parameters: dict[str, Any], times: int
) -> None:
    with pytest.raises(CannotTrain, match="gradient_checkpointing or four_bit"):
        fitted(job(method, **parameters), method, times)  # pyright: ignore[reportArgumentType]


def test_a_restart_knows_how_often(tmp_path: Path) -> None:
    asked = job(batch_size=4)
    assert halvings(tmp_path, "dpo") == 0
    halve(tmp_path, "dpo", asked)
    halve(tmp_path, "dpo", asked)
    assert (halvings(tmp_path, "dpo"), halvings(tmp_path, "evaluate")) == (2, 0)
    with pytest.raises(CannotTrain):
        halve(tmp_path, "dpo", asked)
    assert halvings(tmp_path, "dpo") == 2


def test_of_several_processes_it_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "services.training.trainers.dpo", SimpleNamespace(run=run))
    with pytest.raises(CannotTrain, match="one of several processes; lower batch_size"):
        do("dpo", job(), tmp_path)
    assert halvings(tmp_path, "dpo") == 0
