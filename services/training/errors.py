"""Training errors, as a tree. A message says what was wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.registry.job_origin import JobRefused


class TrainingError(Exception):
    """Anything this service gives up a job for."""


class InvalidJob(TrainingError):
    """The request cannot be done as it stands; another request can."""


class BadDataset(TrainingError):
    """An import with rows that cannot be trained on, or a snapshot without any."""


class DiskFull(TrainingError):
    """Too little is free for checkpoints: before a job begins, or where its trainer ended."""


class PairIndexDamaged(TrainingError):
    """The file of the pairs that are counted cannot be read; the next start makes it anew."""


class TrainerFailed(TrainingError):
    """The trainer's process ended without a result, more often than it may."""


class TrainerGaveUp(TrainerFailed):
    """Another start of the trainer would end the same: its hyperparameters or its base are at fault."""


class StoreUnavailable(TrainingError):
    """The dataset or adapter storage did not answer; worth another try."""


class JudgeUnavailable(TrainingError):
    """The AI judge of the evaluation did not answer; worth another try."""


class JobsFolderTaken(Exception):
    """Another process works in the folder of this one's jobs."""


class VersionTaken(TrainingError):
    """Another job registered the version's name first."""


@contextmanager
def refusals() -> Iterator[None]:
    """Raise what the registry refuses as this service's own.

    Raises:
        InvalidJob: in place of `JobRefused`.

    """
    try:
        yield
    except JobRefused as error:
        raise InvalidJob(error.detail) from error
