"""`python -m services.training.trainers.run <attempt folder> <service's pid>`: a job's stages.

Torch and transformers are imported once for all of them. A stage whose result is there is not
done again, so a killed run goes on where it was. It dies with the service that started it, even
one that died before this interpreter was up, and two can never work in one folder.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import importlib.metadata
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

PR_SET_PDEATHSIG = 1
PACKAGES = ("accelerate", "datasets", "peft", "tokenizers", "torch", "transformers", "trl")


def main(folder: Path, service: int) -> int:
    """Do the stages that have no result yet.

    Args:
        folder: The attempt's folder.
        service: Process id of the service, which must be the parent: who was adopted by another
            would never be told of its death.

    Returns:
        The exit status: 0 when all is done, `BUSY`, `GIVEN_UP`, or 1 without the service.

    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != service:
        print(f"{folder}: no child of process {service}: that service is gone", file=sys.stderr)
        return 1
    job = TrainerJob.model_validate_json((folder / "job.json").read_bytes())
    os.nice(job.nice)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another trainer works here", file=sys.stderr)
            return BUSY
        progress = Progress(folder)
        _configure(job)
        (folder / FAILURE).unlink(missing_ok=True)
        try:
            for stage in job.stages:
                _do(stage, job, folder, progress)
        except CannotTrain as error:
            (folder / FAILURE).write_text(str(error), encoding="utf-8")
            return GIVEN_UP
        packages = {name: importlib.metadata.version(name) for name in PACKAGES}
        write_json(folder / "packages.json", packages)
    return 0


def _do(stage: Stage, job: TrainerJob, folder: Path, progress: Progress) -> None:
    result = (Path(job.judge) if stage == "reward" else folder) / f"{stage}.json"
    if result.exists():
        return
    result.parent.mkdir(parents=True, exist_ok=True)
    run: Callable[[TrainerJob, Path, Progress], dict[str, Any]] = importlib.import_module(
        f"services.training.trainers.{stage}"
    ).run
    write_json(result, run(job, folder, progress))


def _configure(job: TrainerJob) -> None:
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
