"""Group relative policy optimisation (Shao et al. 2024) against the reward model."""

from __future__ import annotations

from pathlib import Path

from trl import GRPOConfig, GRPOTrainer

from services.training.trainers import online
from services.training.trainers.job import Progress, TrainerJob
from shared.contracts.recipes import GrpoHyperparameters


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, float]:
    """See `online.run`."""
    own = job.trained
    assert isinstance(own, GrpoHyperparameters)
    return online.run(job, folder, progress, "grpo", GRPOTrainer, GRPOConfig, epsilon=own.clip)
