"""General tasks of lm-evaluation-harness, where they are configured: both arms, item by item.

The harness is a process of an environment that has it; its samples say which items either arm got
right, so its tasks are held to the same intervals as the shipped ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from services.training.measures.tasks import RightItems, task_figures
from services.training.trainers import memory, processes
from services.training.trainers.drift import ARMS
from services.training.trainers.job import CannotTrain, Progress, TrainerJob, read_rows
from services.training.trainers.models import dtype

POLL_S = 5.0
RIGHT = 0.5
"""Value of an item's first metric above which it counts as right; accuracies are 0 or 1."""


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, float]:
    """Run the configured tasks with both arms.

    Returns:
        `capability_<task>_items`, `_parent`, `_candidate` (shares that are right), `_lost`
        (right with the parent, wrong with the candidate) and `_won`.

    Raises:
        CannotTrain: the harness ended with an error, took longer than it may, or left no samples
            of a task.

    """
    adapters = {"parent": job.parent_adapter, "candidate": str(folder / "adapter")}
    found = {arm: _answered(job, folder, arm, adapters[arm], progress) for arm in ARMS}
    told = [", ".join(sorted(tasks)) or "nothing" for tasks in found.values()]
    if "nothing" in told or len(set(told)) > 1:
        raise CannotTrain(
            f"lm-eval left samples of {told[0]} for the parent and of {told[1]} for the candidate; "
            "both must have all tasks: look at harness/<arm>/log"
        )
    progress.report("harness", len(ARMS), len(ARMS))
    return task_figures(found["parent"], found["candidate"])


def _answered(
    job: TrainerJob, folder: Path, arm: str, adapter: str, progress: Progress
) -> RightItems:
    out = folder / "harness" / arm
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    settings = job.evaluation
    model = {"pretrained": job.base, "dtype": str(dtype()).removeprefix("torch.")}
    command = [
        settings.lm_eval_python or sys.executable, "-m", "lm_eval", "run",
        "--model", "hf", "--model_args", json.dumps(model | ({"peft": adapter} if adapter else {})),
        "--tasks", ",".join(settings.lm_eval_tasks), "--limit", str(settings.lm_eval_limit),
        "--device", "cuda" if torch.cuda.is_available() else "cpu",
        "--batch_size", str(settings.batch_size), "--seed", str(job.seed),
        "--output_path", str(out), "--log_samples",
    ]  # fmt: skip
    if settings.lm_eval_path:
        command += ["--include_path", settings.lm_eval_path]
    memory.release()
    with (out / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=processes.environment_of_one(),
            # A trainer that is killed would leave it running, beside the next one's.
            preexec_fn=partial(processes.die_with, os.getpid()),  # noqa: PLW1509
        )
    deadline = time.monotonic() + settings.lm_eval_timeout_s
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise CannotTrain(
                    f"lm-eval took longer than lm_eval_timeout_s ({settings.lm_eval_timeout_s:g} s);"
                    " raise it, or lower lm_eval_limit"
                )
            try:
                process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                progress.report("harness", ARMS.index(arm), len(ARMS))
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        tail = (out / "log").read_text("utf-8", "replace").strip().splitlines()[-1:]
        raise CannotTrain(f"lm-eval ended with status {process.returncode}: {' '.join(tail)}")
    return {
        path.name.removeprefix("samples_").rsplit("_", 1)[0]: {
            str(row["doc_id"]): _is_right(row) for row in read_rows(path)
        }
        for path in out.rglob("samples_*.jsonl")
    }


def _is_right(row: Mapping[str, Any]) -> bool:
    return float(row[row["metrics"][0]]) > RIGHT
