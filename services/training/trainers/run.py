"""`python -m services.training.trainers.run <attempt folder> <service's pid>`: a job's stages.

Torch and transformers are imported once for all of them. A stage whose result is there is not
done again, so a killed run goes on where it was. It dies with the service that started it, even
one that died before this interpreter was up, and two can never work in one folder.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.training.trainers import generation, loads, memory, processes
from services.training.trainers.job import (
    BUSY,
    FAILURE,
    GIVEN_UP,
    CannotTrain,
    Progress,
    Stage,
    TrainerJob,
    write_json,
)
from shared.contracts.recipes import HYPERPARAMETERS
from shared.registry.base_models import WEIGHTS

TOGETHER: frozenset[str] = frozenset({"proxy", *HYPERPARAMETERS})
"""Stages that all processes do; the first alone does the others."""
FILES = [*WEIGHTS, "*.json", "*.jinja", "*.txt", "*.model"]
"""Of a base on the hub: weights, configuration, tokenizer and chat template."""
PACKAGES = ("accelerate", "datasets", "peft", "tokenizers", "torch", "transformers", "trl")


def main(folder: Path, service: int) -> int:
    """Do the stages that have no result yet.

    Args:
        folder: The attempt's folder.
        service: Process id of the service, or of the launcher of several processes, which must be
            the parent: who was adopted by another would never be told of its death.

    Returns:
        The exit status: 0 when all is done, `BUSY`, `GIVEN_UP`, or 1 without the service.

    """
    if not processes.die_with(service):
        print(f"{folder}: no child of process {service}: that service is gone", file=sys.stderr)
        return 1
    job = TrainerJob.model_validate_json((folder / "job.json").read_bytes())
    os.nice(job.nice)
    if processes.rank():
        return _stages(job, folder)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another trainer works here", file=sys.stderr)
            return BUSY
        return _stages(job, folder)


def at_revision(job: TrainerJob) -> TrainerJob:
    """The job with its base as a folder where a revision is asked for: the hub's snapshot of it.

    What is in the hub's cache is not fetched again, nor asked for with HF_HUB_OFFLINE.
    """
    if not job.base_revision or Path(job.base).is_dir():
        return job
    from huggingface_hub import snapshot_download

    with loads.told(f"fetching {job.base}"):
        folder = snapshot_download(job.base, revision=job.base_revision, allow_patterns=FILES)
    return job.model_copy(update={"base": folder})


def _stages(job: TrainerJob, folder: Path) -> int:
    _configure(job)
    todo: list[Stage] = [stage for stage in job.stages if not _result(stage, job, folder).exists()]
    if todo:
        with loads.telling(todo[0], Progress(folder)):
            job = at_revision(job)
    processes.wait()
    try:
        for stage in todo:
            if processes.rank() == 0 or stage in TOGETHER:
                do(stage, job, folder)
    except CannotTrain as error:
        (folder / FAILURE).write_text(str(error), encoding="utf-8")
        return GIVEN_UP
    if processes.rank() == 0:
        (folder / FAILURE).unlink(missing_ok=True)
        packages = {name: importlib.metadata.version(name) for name in PACKAGES}
        write_json(folder / "packages.json", packages | generation.used(folder))
    return 0


def do(stage: Stage, job: TrainerJob, folder: Path) -> None:
    """Do one stage and write its result; where memory is short, with a smaller batch from there on.

    Raises:
        CannotTrain: the stage would fail the same way again.

    """
    run: Callable[[TrainerJob, Path, Progress], dict[str, Any]] = importlib.import_module(
        f"services.training.trainers.{stage}"
    ).run
    result = _result(stage, job, folder)
    result.parent.mkdir(parents=True, exist_ok=True)
    while True:
        times = memory.halvings(folder, stage)
        try:
            progress = Progress(folder)
            with loads.telling(stage, progress):
                figures = run(memory.fitted(job, stage, times), folder, progress)
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            if processes.count() > 1 and stage in TOGETHER:
                raise CannotTrain(
                    f"{stage}: out of memory in one of several processes; lower batch_size"
                ) from error
            print(f"{stage}: half the batch from here on, as {error}", file=sys.stderr)
            memory.halve(folder, stage, job)
        else:
            break
        memory.release()
    if times:
        figures |= {"batch_halved": float(times)}
    if processes.rank() == 0:
        write_json(result, figures)


def _result(stage: Stage, job: TrainerJob, folder: Path) -> Path:
    return (Path(job.judge) if stage == "reward" else folder) / f"{stage}.json"


def _configure(job: TrainerJob) -> None:
    processes.keep_one_device()
    import torch

    if job.threads:
        torch.set_num_threads(job.threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is on disk; the orderly end of torch's interpreter takes seconds.
    os._exit(status)
