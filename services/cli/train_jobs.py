"""`ratchet train list` and `ratchet train show`: training jobs, as the event log has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.errors import CliError, Exit
from services.cli.kafka import READ_TIMEOUT_S, with_log
from services.cli.output import AsJson, print_fields, print_json, print_table
from services.cli.settings import load_settings

if TYPE_CHECKING:
    from shared.contracts.events.training import TrainingProgress, TrainingRequested
    from shared.kafka.log import EventLog

WAITING = "waiting"
"""Phase of a job that nobody has begun."""


def list_jobs(
    *,
    model: Annotated[str, typer.Option(help="Only this model's.")] = "",
    as_json: AsJson = False,
) -> None:
    """All training jobs, oldest first: phase, version and why."""
    jobs = [job for job in with_log(load_settings(), _jobs) if model in ("", job["model"])]
    if as_json:
        print_json({"jobs": jobs})
        return
    columns = ("job", "model", "method", "phase", "version", "asked", "by", "why")
    names = ("job_id", "model", "method", "phase", "version", "requested_at", "actor", "message")
    rows = [{**job, "method": job["algorithm"] or job["method"]} for job in jobs]
    print_table("Training jobs", columns, [[row[name] for name in names] for row in rows])


def show_job(
    job_id: Annotated[str, typer.Argument(help="A job's id, as ratchet train list has it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Everything that is known of one training job."""
    found = next((job for job in with_log(load_settings(), _jobs) if job["job_id"] == job_id), None)
    if found is None:
        raise CliError(f"{job_id}: no such job; ratchet train list has them", Exit.failed)
    if as_json:
        print_json(found)
        return
    print_fields(job_id, found)


def jobs_of(events: Iterable[TrainingRequested | TrainingProgress]) -> list[dict[str, Any]]:
    """Each job with its newest progress; a final word stands, whatever follows it.

    Args:
        events: Requests in their order, and the progress of each job in its order.

    """
    from shared.contracts.events.training import RunPhase, TrainingProgress

    final = {RunPhase.succeeded, RunPhase.rejected, RunPhase.failed}
    requests: dict[str, TrainingRequested] = {}
    newest: dict[str, TrainingProgress] = {}
    for event in events:
        if not isinstance(event, TrainingProgress):
            requests.setdefault(event.job_id, event)
        elif event.job_id not in newest or newest[event.job_id].phase not in final:
            newest[event.job_id] = event
    return [_row(request, newest.get(job_id)) for job_id, request in requests.items()]


async def _jobs(log: EventLog) -> list[dict[str, Any]]:
    from shared.contracts.events.training import TrainingProgress, TrainingRequested
    from shared.contracts.topics import TRAINING_JOBS, TRAINING_RUNS
    from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
    from shared.kafka.log import read_to_end

    models = models_by_type(TrainingRequested, TrainingProgress)
    events: list[TrainingRequested | TrainingProgress] = []
    for record in await read_to_end(log, TRAINING_JOBS, TRAINING_RUNS, timeout_s=READ_TIMEOUT_S):
        try:
            event = decode(record.headers, record.value, models)
        except UnreadableRecord:
            continue
        assert isinstance(event, TrainingRequested | TrainingProgress)
        events.append(event)
    jobs = jobs_of(events)
    return sorted(jobs, key=lambda job: job["requested_at"])


def _row(request: TrainingRequested, progress: TrainingProgress | None) -> dict[str, Any]:
    row = request.model_dump(mode="json")
    if progress is None:
        return {**row, "phase": WAITING, "message": ""}
    newest = progress.model_dump(
        mode="json", include={"phase", "attempt", "progress", "message", "metrics", "at"}
    )
    return {**row, **newest, "version": progress.version or request.version}
