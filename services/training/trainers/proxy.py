"""Reward model that an RL method raises: trained on the training pairs, never on the judge's.

The judge stays independent of it, so a policy that only games this model does not win.
"""

from __future__ import annotations

from pathlib import Path

from services.training.trainers import reward
from services.training.trainers.job import Progress, TrainerJob, stored_rows


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, float]:
    """Train on `train.jsonl`, write `proxy/`, measure it on `heldout.jsonl`; see `reward.fit`."""
    data = Path(job.data)
    rows, heldout = stored_rows(data / "train.jsonl"), stored_rows(data / "heldout.jsonl")
    return reward.fit(job, rows, heldout, folder / "proxy", "proxy", progress)
