"""Batch size after out of memory: half the rows a step, twice the steps a weight update.

The effective batch and so the steps stay, and a stage goes on from its last checkpoint. How often a
stage's batch was halved is in `batches.json`, so that a restart does not fail the same way again.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.training.trainers.job import (
    CannotTrain,
    Stage,
    TrainerJob,
    write_json,
)

FILE = "batches.json"


def ran_out(error: Exception) -> bool:
    """Whether an exception means that memory is short, on a GPU or on a CPU."""
    if isinstance(error, MemoryError):
        return True
    from accelerate.utils.memory import should_reduce_batch_size

    return should_reduce_batch_size(error)


def release() -> None:
    """Give back what ended work still holds."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def halvings(folder: Path, stage: Stage) -> int:
    """How often this stage's batch was halved in this folder."""
    return _noted(folder).get(stage, 0)


def halve(folder: Path, stage: Stage, job: TrainerJob) -> None:
    """Note that the stage's batch is to be halved once more.

    Raises:
        CannotTrain: it is as small as the method can take.

    """
    times = halvings(folder, stage) + 1
    fitted(job, stage, times)
    write_json(folder / FILE, _noted(folder) | {stage: times})


def fitted(job: TrainerJob, stage: Stage, times: int) -> TrainerJob:
    """The job with the stage's batch halved so often.

    Raises:
        CannotTrain: the method cannot take so small a batch.

    """
    if not times:
        return job
    if stage in ("reward", "proxy"):
        return job.model_copy(update={"reward": _smaller(job.reward, stage, times)})
    if stage == job.method:
        smaller = _smaller(job.trained, stage, times).model_dump(mode="json")
        return job.model_copy(update={"hyperparameters": smaller})
    if stage in ("evaluate", "quality") and job.evaluation.batch_size >> times:
        size = job.evaluation.batch_size >> times
        evaluation = job.evaluation.model_copy(update={"batch_size": size})
        return job.model_copy(update={"evaluation": evaluation})
    raise CannotTrain(f"{stage}: out of memory; give the trainer more, or take a smaller base")


def _noted(folder: Path) -> dict[str, int]:
    path = folder / FILE
    return json.loads(path.read_bytes()) if path.exists() else {}


def _smaller(parameters: Any, stage: Stage, times: int) -> Any:
    size, rest = divmod(parameters.batch_size, 2**times)
    wanted = {"batch_size": size, "accumulation": parameters.accumulation * 2**times}
    try:
        if rest:
            raise ValueError
        return type(parameters).model_validate(parameters.model_dump() | wanted)
    except (ValidationError, ValueError):
        raise CannotTrain(
            f"{stage}: out of memory, and batch_size {parameters.batch_size} cannot be halved "
            f"{times} times; lower max_length, or set gradient_checkpointing or four_bit"
        ) from None
