"""Job queue: the fold of `training.jobs.v1` and `training.runs.v1`."""

# pyright: strict
from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime

from shared.contracts.events.training import (
    RunPhase,
    TrainingCancelled,
    TrainingMethod,
    TrainingProgress,
    TrainingRequested,
)

FINAL = frozenset({RunPhase.succeeded, RunPhase.rejected, RunPhase.failed})


class JobQueue:
    """Every job and how it ended, in the order of the log.

    A job is done when its final progress is on the log, whatever happened to who worked on it.
    The two topics may be folded in any order; a job_id seen again is the same job.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, TrainingRequested] = {}
        self._ended: dict[str, TrainingProgress] = {}
        self._noted: set[str] = set()
        self._cancelled: dict[str, TrainingCancelled] = {}

    def put(self, event: TrainingRequested | TrainingProgress | TrainingCancelled) -> bool:
        """Fold one event; tells whether a job became known by it."""
        if isinstance(event, TrainingCancelled):
            self._cancelled.setdefault(event.job_id, event)
            return False
        if isinstance(event, TrainingProgress):
            if event.phase in FINAL:
                self._ended.setdefault(event.job_id, event)
            return False
        if event.job_id in self._jobs:
            return False
        self._jobs[event.job_id] = event
        return True

    def waiting(self) -> Iterator[TrainingRequested]:
        """Jobs to do, oldest first: without an end, on the log or noted."""
        for job_id, job in self._jobs.items():
            if job_id not in self._ended and job_id not in self._noted:
                yield job

    def unfinished(self, model: str) -> bool:
        """Whether a job of the model has no end on the log; what was only noted does not count."""
        return any(
            job.model == model and job_id not in self._ended for job_id, job in self._jobs.items()
        )

    def cancelled(self, job_id: str) -> TrainingCancelled | None:
        """The cancellation of a job, or None; one that came after the end changes nothing."""
        return self._cancelled.get(job_id)

    def find(self, job_id: str) -> TrainingRequested | None:
        """The job with this id that has not ended, or None."""
        return next((job for job in self.waiting() if job.job_id == job_id), None)

    def note(self, job_id: str) -> None:
        """Note that a job's end is on the log, though it was not read back yet."""
        self._noted.add(job_id)

    def ended(self, job_id: str) -> RunPhase | None:
        """How a job ended, as the log has it, or None while it has not."""
        end = self._ended.get(job_id)
        return end.phase if end else None

    def last_rejected(self, model: str, method: TrainingMethod, actor: str) -> bool:
        """Whether the model's job of the method that ended last is this actor's and was refused,
        by the gate or by a person who cancelled it.
        """
        for job_id, end in reversed(self._ended.items()):
            job = self._jobs.get(job_id)
            if job is None or job.rebuilds or job.builds_dataset:
                continue
            if (job.model, job.method) == (model, method):
                refused = end.phase is RunPhase.rejected or job_id in self._cancelled
                return job.actor == actor and refused
        return False

    def fruitless(
        self, model: str, method: TrainingMethod, actor: str, since: datetime
    ) -> list[TrainingProgress]:
        """Ends of this actor's jobs that did not succeed, of those asked for after a time."""
        jobs = ((self._jobs.get(job_id), end) for job_id, end in self._ended.items())
        return [
            end
            for job, end in jobs
            if job is not None
            and (job.model, job.method, job.actor) == (model, method, actor)
            and end.phase is not RunPhase.succeeded
            and job.requested_at > since
        ]

    def next_id(self, model: str, method: TrainingMethod, actor: str, since: str) -> str:
        """Id of the next job that this actor asks for; replicas that ask at once give the same.

        `since` names what came before the job: the last dataset, or the newest reward model.
        """
        asked = sum(
            (job.model, job.method, job.actor) == (model, method, actor)
            for job in self._jobs.values()
        )
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"ratchet/{model}/{since}/{asked}"))

    def trailing_failures(self, model: str, actor: str) -> list[datetime]:
        """When the actor's jobs failed since a job of the model, anyone's, did not; newest first."""
        failures: list[datetime] = []
        for job_id, end in reversed(self._ended.items()):
            job = self._jobs.get(job_id)
            if job is None or job.model != model or job.builds_dataset:
                continue
            if job_id in self._cancelled:
                continue
            if end.phase is not RunPhase.failed:
                break
            if job.actor == actor:
                failures.append(end.at)
        return failures
