"""`python training_lm_eval.py <folder> <interpreter>` in the ML environment: the stage of lm-eval.

The interpreter stands in for one that has lm-eval. Prints the stage's figures as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from services.training.evaluation import EvaluationSettings
from services.training.trainers import harness, job
from shared.contracts.recipes import RewardHyperparameters


def main(folder: Path, python: str) -> dict[str, float]:
    """Ask both arms two tasks."""
    asked = job.TrainerJob(
        stages=("harness",),
        base="base",
        data=str(folder),
        judge=str(folder),
        reward=RewardHyperparameters(),
        evaluation=EvaluationSettings(lm_eval_tasks=("arc_easy", "gsm8k"), lm_eval_python=python),
        seed=1,
    )
    return harness.run(asked, folder, job.Progress(folder))


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
