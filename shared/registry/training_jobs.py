"""Training jobs on their topics: each with its newest progress; request, refusal and cancellation of
one.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from shared.contracts.events.training import (
    RunPhase,
    TrainingCancelled,
    TrainingProgress,
    TrainingRequested,
)
from shared.contracts.topics import TRAINING_JOBS, TRAINING_RUNS
from shared.errors import RatchetError
from shared.kafka.audit import Requester
from shared.kafka.log import EventLog, read_events
from shared.registry.job_origin import JobRefused, every, origin_of
from shared.registry.versions import Registry

READ_TIMEOUT_S = 60.0
PUBLISH_TIMEOUT_S = 10.0
FINAL = frozenset({RunPhase.succeeded, RunPhase.rejected, RunPhase.failed})
WAITING = "waiting"
"""Phase of a job that nobody has begun."""
SHOWN = {"phase", "attempt", "progress", "message", "metrics", "checks", "report_uri", "at"}
"""Fields of a job's progress."""


def new_job_id() -> str:
    """An id that no other job has."""
    return f"job-{uuid.uuid4().hex[:12]}"


class UnknownJob(RatchetError):
    """There is no such job."""

    status = 404
    code = "not_found"
    title = "No such job"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"{job_id}: no such job; ratchet train list has them")


class JobEnded(RatchetError):
    """The job has ended, so there is nothing to cancel."""

    status = 409
    code = "conflict"
    title = "Job has ended"

    def __init__(self, job_id: str, phase: str) -> None:
        super().__init__(
            f"{job_id}: has ended ({phase}), so nothing is to be cancelled; ratchet train list has those that run"
        )


def jobs_of(events: Iterable[TrainingRequested | TrainingProgress]) -> list[dict[str, Any]]:
    """Each job with its newest progress; a final word stands, whatever follows it.

    Args:
        events: Requests in their order, and the progress of each job in its order.

    """
    requests: dict[str, TrainingRequested] = {}
    begun: dict[tuple[str, int], TrainingProgress] = {}
    newest: dict[str, TrainingProgress] = {}
    for event in events:
        if not isinstance(event, TrainingProgress):
            requests.setdefault(event.job_id, event)
        elif event.job_id not in newest or newest[event.job_id].phase not in FINAL:
            begun.setdefault((event.job_id, event.attempt), event)
            newest[event.job_id] = event
    rows: list[dict[str, Any]] = []
    for job_id, request in requests.items():
        last = newest.get(job_id)
        first = begun.get((job_id, last.attempt)) if last else None
        rows.append({**_row(request, last), "seconds_left": _seconds_left(first, last)})
    return rows


async def read_jobs(log: EventLog, *, newest: int | None = None) -> list[dict[str, Any]]:
    """All jobs, oldest first; with `newest`, of at most so many records of each topic.

    Raises:
        LogUnavailable: the topics' end was not reached in time.

    """
    events = await read_events(
        log,
        (TRAINING_JOBS, TRAINING_RUNS),
        TrainingRequested,
        TrainingProgress,
        timeout_s=READ_TIMEOUT_S,
        newest=newest,
    )
    return sorted(jobs_of(events), key=lambda job: job["requested_at"])


async def known_job(log: EventLog, job_id: str, *, newest: int | None = None) -> dict[str, Any]:
    """One job; `newest` as for `read_jobs`.

    Raises:
        UnknownJob: there is none.
        LogUnavailable: the topics' end was not reached in time.

    """
    jobs = await read_jobs(log, newest=newest)
    found = next((job for job in jobs if job["job_id"] == job_id), None)
    if found is None:
        raise UnknownJob(job_id)
    return found


async def refuse_impossible(
    log: EventLog,
    request: TrainingRequested,
    registry: Registry,
    *,
    sees: Callable[[str], bool] = every,
    newest: int | None = None,
) -> None:
    """Refuse a job that could not be done, before it is asked for and waits.

    Nothing is refused while a job of the model has not ended, as it may make what is missing.

    Args:
        log: Has the other jobs, which are read only where the registry refuses this one.
        request: What would be asked for.
        registry: All versions.
        sees: Whether a model may be named to who asks.
        newest: As for `read_jobs`.

    Raises:
        JobRefused: names the field, what is wrong with it and what to do.
        LogUnavailable: the topics' end was not reached in time.

    """
    try:
        origin_of(request, registry, sees)
    except JobRefused:
        jobs = await read_jobs(log, newest=newest)
        if all(job["phase"] in FINAL for job in jobs if job["model"] == request.model):
            raise


async def request_job(log: EventLog, request: TrainingRequested) -> None:
    """Ask for a job.

    Raises:
        LogUnavailable: the brokers did not acknowledge it.

    """
    await log.publish(
        TRAINING_JOBS,
        key=request.job_id,
        event=request,
        event_id=request.job_id,
        timeout_s=PUBLISH_TIMEOUT_S,
    )


async def cancel_job(
    log: EventLog, job_id: str, who: Requester, *, now: datetime, newest: int | None = None
) -> None:
    """Ask for the cancellation of a job that has not ended; `newest` as for `read_jobs`.

    Raises:
        UnknownJob: there is none.
        JobEnded: it has ended.
        pydantic.ValidationError: a text is too long.
        LogUnavailable: the topics were not read, or the brokers did not acknowledge it.

    """
    job = await known_job(log, job_id, newest=newest)
    if job["phase"] in FINAL:
        raise JobEnded(job_id, job["phase"])
    event = TrainingCancelled(job_id=job_id, requested_at=now, **who._asdict())
    await log.publish(
        TRAINING_JOBS,
        key=job_id,
        event=event,
        event_id=f"{job_id}:cancel",
        timeout_s=PUBLISH_TIMEOUT_S,
    )


def _seconds_left(first: TrainingProgress | None, last: TrainingProgress | None) -> float | None:
    """Time to the end of an attempt at its pace so far; None where that says nothing."""
    if first is None or last is None or last.phase in FINAL or last.progress <= first.progress:
        return None
    pace = (last.at - first.at).total_seconds() / (last.progress - first.progress)
    return pace * (1 - last.progress)


def _row(request: TrainingRequested, progress: TrainingProgress | None) -> dict[str, Any]:
    row = request.model_dump(mode="json")
    if progress is None:
        return {**row, "phase": WAITING, "message": ""}
    newest = progress.model_dump(mode="json", include=SHOWN)
    return {**row, **newest, "version": progress.version or request.version}
