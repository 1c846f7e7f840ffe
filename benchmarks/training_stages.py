"""Stages of the trainer as processes, and the starter's first version, for benchmarks of training.

A stage whose result is in its folder is not done again, so a benchmark that was killed goes on.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.contracts.recipes import RewardHyperparameters
from shared.cpu_environment import CPU_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]
ML_PYTHON = ROOT / ".venv-ml/bin/python"
TIMEOUT_S = 1800.0


@functools.cache
def starter() -> dict[str, str]:
    """Paths of the starter model and of its demonstrations; trained now unless it is cached."""
    said = run([str(ML_PYTHON), "-m", "deploy.starter"], capture=True)
    return json.loads(said.splitlines()[-1])


def first_version(folder: Path, seed: int) -> dict[str, Any]:
    """Train v1.0 on the starter's demonstrations; what a job that continues it begins with."""
    data = folder / "demonstrations"
    if not (folder / "sft.json").exists():
        data.mkdir(parents=True, exist_ok=True)
        with Path(starter()["demonstrations"]).open(encoding="utf-8") as file:
            write(data / "train.jsonl", [demonstration(json.loads(line)) for line in file])
    train(folder, "sft", ["sft"], {"seed": seed, "data": str(data)})
    return {"seed": seed, "parent_adapter": str(folder / "adapter")}


def demonstration(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the starter's demonstrations as a dataset has it."""
    return {"messages": row["prompt"], "answer": row["completion"][0]["content"]}


def train(
    folder: Path,
    method: str,
    stages: Sequence[str],
    job: Mapping[str, Any],
    judge: Path | None = None,
) -> dict[str, Any]:
    """Run stages of the trainer as the service does; the figures of each, read where all are done.

    Args:
        folder: Of the attempt.
        method: Of the recipe.
        stages: In their order.
        job: Further fields of the trainer's job; `base` is the starter model where it is not given.
        judge: Where the stage `reward` leaves its figures.

    """
    places = {stage: judge if judge and stage == "reward" else folder for stage in stages}
    written = [at / f"{stage}.json" for stage, at in places.items()]
    if not all(path.exists() for path in written):
        _run_stages(folder, method, stages, job)
    return {path.stem: json.loads(path.read_bytes()) for path in written}


def sample_answers(
    folder: Path, adapter: str, prompts: Iterable[dict[str, Any]], **job: Any
) -> None:
    """Write `answers.jsonl`: what an adapter of the starter model answers, one answer a prompt.

    Args:
        folder: Of the prompts and the answers.
        adapter: Folder of the adapter.
        prompts: `{"messages"}` each.
        job: Further fields of the trainer's job.

    """
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "prompts.jsonl", prompts)
    _write_job(folder, {"stages": [], "parent_adapter": adapter, "data": "", **job})
    run([str(ML_PYTHON), "-m", "benchmarks.answer_sampling", str(folder)])


def _run_stages(folder: Path, method: str, stages: Sequence[str], job: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_job(folder, {**job, "method": method, "stages": stages})
    run([str(ML_PYTHON), "-m", "services.training.trainers.run", str(folder), str(os.getpid())])


def _write_job(folder: Path, job: Mapping[str, Any]) -> None:
    settings = {
        "judge": "",
        "reward": RewardHyperparameters().model_dump(mode="json"),
        "evaluation": {},
        **job,
        "base": job.get("base") or starter()["model"],
    }
    (folder / "job.json").write_text(json.dumps(settings), encoding="utf-8")


def run(command: list[str], *, capture: bool = False) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **CPU_ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=None if capture else subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command[1:3])} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
