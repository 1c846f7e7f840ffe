"""REINFORCE leave-one-out (Ahmadian et al. 2024) against the reward model."""

from __future__ import annotations

from pathlib import Path

from trl import RLOOConfig, RLOOTrainer

from services.training.trainers import online
from services.training.trainers.job import Progress, TrainerJob
from shared.contracts.recipes import RlooHyperparameters


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, float]:
    """See `online.run`."""
    own = job.trained
    assert isinstance(own, RlooHyperparameters)
    return online.run(job, folder, progress, "rloo", RLOOTrainer, RLOOConfig, epsilon=own.clip)
