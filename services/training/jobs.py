"""Which jobs wait: the fold of `training.jobs.v1` and `training.runs.v1`."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator

from shared.contracts.events import RunPhase, TrainingMethod, TrainingProgress, TrainingRequested

FINAL = frozenset({RunPhase.succeeded, RunPhase.rejected, RunPhase.failed})


class JobBook:
    """Every job and how it ended, in the order of the log.

    A job is done when its final progress is on the log, whatever happened to who worked on it.
    The two topics may be folded in any order; a job_id seen again is the same job.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, TrainingRequested] = {}
        self._ended: dict[str, RunPhase] = {}

    def put(self, event: TrainingRequested | TrainingProgress) -> bool:
        """Fold one event; tells whether a job became known by it."""
        if isinstance(event, TrainingProgress):
            if event.phase in FINAL:
                self._ended.setdefault(event.job_id, event.phase)
            return False
        if event.job_id in self._jobs:
            return False
        self._jobs[event.job_id] = event
        return True

    def waiting(self, model: str = "") -> Iterator[TrainingRequested]:
        """Jobs without an end (of a model), oldest first."""
        for job_id, job in self._jobs.items():
            if job_id not in self._ended and model in ("", job.model):
                yield job

    def end(self, job_id: str, phase: RunPhase) -> None:
        """Note an end whose record is on the log but was not read back yet."""
        self._ended.setdefault(job_id, phase)

    def ended(self, job_id: str) -> RunPhase | None:
        """How a job ended, or None while it has not."""
        return self._ended.get(job_id)

    def count(self, model: str, method: TrainingMethod, actor: str) -> int:
        """How many jobs this actor ever asked for."""
        return sum(
            (job.model, job.method, job.actor) == (model, method, actor)
            for job in self._jobs.values()
        )

    def trailing_failures(self, model: str, actor: str) -> int:
        """How many of the actor's latest jobs failed one after another."""
        failures = 0
        for job in reversed(self._jobs.values()):
            if job.model == model and job.actor == actor:
                if self._ended.get(job.job_id) is not RunPhase.failed:
                    break
                failures += 1
        return failures
