"""DPO of a job's stage beside TRL alone, on the same rows: tokens a second of training.

    python -m benchmarks.training [--rows 256] [--rounds 3] [--folder F]

By turns, from the same adapter, with the same hyperparameters. The stage writes checkpoints and progress and
looks for losses that are no number; TRL alone does none of it. Neither counts what comes before the
first step.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.reinforcement import pairs
from benchmarks.training_stages import ML_PYTHON, ROOT, first_version, run, starter, train, write
from shared.contracts.recipes import DpoHyperparameters

FOLDER = ROOT / ".run/training-speed"
EPOCHS = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    folder = chosen.folder.resolve()
    parent = first_version(folder / "parent", seed=1)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    write(data / "train.jsonl", pairs("train", chosen.rows, random.Random(1)))
    ours, bare, tokens = [], [], 0
    for number in range(chosen.rounds):
        ours.append(seconds_of_stage(folder / f"ours-{number}", parent | {"data": str(data)}))
        found = seconds_of_trl(folder / f"bare-{number}", parent["parent_adapter"], data)
        bare.append(found["seconds"])
        tokens = found["tokens"]
    print("| | tokens a second | of TRL alone |\n|---|---|---|")
    for name, seconds in (("TRL alone", bare), ("a job's stage", ours)):
        rates = sorted(tokens * EPOCHS / one for one in seconds)
        share = median(bare) / median(seconds)
        print(f"| {name} | {median(rates):.0f} ({rates[0]:.0f}–{rates[-1]:.0f}) | {share:.0%} |")
    return 0


def seconds_of_stage(folder: Path, job: dict[str, Any]) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    found = train(folder, "dpo", ["dpo"], job | {"hyperparameters": {"epochs": EPOCHS}})
    return float(found["dpo"]["runtime"])


def seconds_of_trl(folder: Path, adapter: str, data: Path) -> dict[str, Any]:
    """Seconds of TRL's own training, and the tokens of the rows."""
    ours = DpoHyperparameters(epochs=EPOCHS)
    settings = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": ours.batch_size,
        "learning_rate": ours.learning_rate,
        "max_length": ours.max_length,
        "gradient_checkpointing": ours.gradient_checkpointing,
        "beta": ours.beta,
        "loss_type": list(ours.loss),
        "loss_weights": list(ours.loss_weights) or None,
        "lr_scheduler_type": "cosine",
    }
    command = [str(ML_PYTHON), "-m", "benchmarks.bare_trl", starter()["model"], adapter]
    said = run(
        [*command, str(data / "train.jsonl"), json.dumps(settings), str(folder)], capture=True
    )
    return json.loads(said.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
