"""`ratchet train list`, `show`, `logs` and `cancel`: training jobs, as the event log has them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.errors import CliError, Exit
from services.cli.identity import OnBehalfOf, requester, who
from services.cli.kafka import READ_TIMEOUT_S, read_registry, with_log
from services.cli.output import AsJson, print_json, print_known, print_table
from services.cli.record_tables import print_checks, print_figures
from services.cli.settings import load_settings

if TYPE_CHECKING:
    from shared.contracts.events.training import TrainingProgress
    from shared.kafka.log import EventLog, Record

FINAL = frozenset({"succeeded", "rejected", "failed"})
JOB_FIELDS = (
    *("phase", "message", "version", "report_uri", "progress", "seconds_left", "attempt", "at"),
    *("model", "method", "parent", "base", "dataset_uri", "hyperparameters", "seed"),
    *("requested_at", "actor", "on_behalf_of", "reason"),
)
"""Fields of a job in the order of `ratchet train show`."""
MAX_FIGURES = 10
"""A line of progress has its few; an end has more than a hundred."""


def list_jobs(
    *,
    model: Annotated[str, typer.Option(help="Only this model's.")] = "",
    as_json: AsJson = False,
) -> None:
    """List all training jobs, oldest first: phase, version and why."""
    from shared.registry.training_jobs import read_jobs

    jobs = [job for job in with_log(load_settings(), read_jobs) if model in ("", job["model"])]
    if as_json:
        print_json({"jobs": jobs})
        return
    columns = ("job", "model", "method", "phase", "version", "asked", "by", "why")
    names = ("job_id", "model", "method", "phase", "version", "requested_at", "actor", "message")
    rows = [{**job, "method": job["algorithm"] or job["method"]} for job in jobs]
    cells = [[row[name] for name in names] for row in rows]
    print_table("Training jobs", columns, cells, sparse=True)


def show_job(
    job_id: Annotated[str, typer.Argument(help="A job's id, as ratchet train list has it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show everything that is known of one training job."""
    from shared.registry.training_jobs import read_jobs

    jobs = with_log(load_settings(), read_jobs)
    found = next((job for job in jobs if job["job_id"] == job_id), None)
    if found is None:
        raise CliError(f"{job_id}: no such job; ratchet train list has them", Exit.failed)
    if as_json:
        print_json(found)
        return
    shown = {name: value for name, value in found.items() if value is not False}
    shown |= {"job_id": "", "method": found["algorithm"] or found["method"], "algorithm": ""}
    left_s = found["seconds_left"]
    shown["seconds_left"] = None if left_s is None else round(left_s)
    ended = found["phase"] in FINAL
    checks, figures = shown.pop("checks", None), shown.pop("metrics", None)
    awaited = () if ended else ("version", "report_uri", "checks")
    print_known(job_id, shown, order=JOB_FIELDS, awaited=awaited)
    print_checks(checks or [])
    print_figures(figures or {})


def show_logs(
    job_id: Annotated[str, typer.Argument(help="A job's id, as ratchet train list has it.")],
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")
    ] = False,
) -> None:
    """Print a training job's progress: phases, steps, losses, its end."""
    with_log(load_settings(), lambda log: _logs(log, job_id, follow=follow))


def write_report(
    name: Annotated[str, typer.Argument(help="A version, or a job that the gate refused.")],
    *,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="File to write; a name that ends in .json gets JSON."),
    ] = None,
) -> None:
    """Fetch the evaluation report of a version or a rejected job, as an HTML page."""
    uri = with_log(load_settings(), lambda log: _report_uri(log, name))
    target = to or Path(f"{name}.html")
    page = "evaluation.json" if target.suffix == ".json" else "report.html"
    target.write_bytes(_fetch(f"{uri.rstrip('/')}/{page}"))
    typer.echo(f"{target}: the evaluation of {name}")


def cancel_job(
    job_id: Annotated[str, typer.Argument(help="A job's id, as ratchet train list has it.")],
    *,
    reason: Annotated[str, typer.Option(help="Why; kept on record.")] = "",
    on_behalf_of: OnBehalfOf = "",
) -> None:
    """Cancel a job that waits or runs; its trainer is ended, and no version comes of it."""
    from shared.registry.training_jobs import cancel_job as cancel

    settings = load_settings()
    asked = requester(settings, on_behalf_of or who(), reason)
    with_log(settings, lambda log: cancel(log, job_id, asked, now=datetime.now(UTC)))
    typer.echo(f"{job_id}: cancellation requested; ratchet train show {job_id} says when it ended")


def say_progress(progress: TrainingProgress) -> None:
    """One line for people; the many figures of an end are left to `train show`."""
    if len(progress.metrics) > MAX_FIGURES:
        figures = f"{len(progress.metrics)} figures: ratchet train show {progress.job_id}"
    else:
        figures = "  ".join(f"{name} {value:.3g}" for name, value in progress.metrics.items())
    typer.echo(
        f"{progress.at:%H:%M:%S}  {progress.phase.value:<10} {progress.progress:>4.0%}  "
        f"{progress.version}  {progress.message}  {figures}".rstrip()
    )


async def _logs(log: EventLog, job_id: str, *, follow: bool) -> None:
    from shared.contracts.topics import TRAINING_RUNS
    from shared.kafka.log import read_to_end

    if not follow:
        records = await read_to_end(log, TRAINING_RUNS, timeout_s=READ_TIMEOUT_S)
        told = [one for record in records if (one := progress_of(record, job_id)) is not None]
        if not told:
            raise CliError(f"{job_id}: nothing was said of it yet", Exit.failed)
        for progress in told:
            say_progress(progress)
        return
    tail = log.tail(TRAINING_RUNS)
    try:
        async for record in tail:
            progress = progress_of(record, job_id)
            if progress is None:
                continue
            say_progress(progress)
            if progress.phase.value in FINAL:
                return
    finally:
        await tail.close()


def progress_of(record: Record, job_id: str) -> TrainingProgress | None:
    """The progress of this job that a record is, or None."""
    from shared.contracts.events.training import TrainingProgress
    from shared.kafka.envelope import UnreadableRecord, decode, models_by_type

    if record.key != job_id:
        return None
    try:
        progress = decode(record.headers, record.value, models_by_type(TrainingProgress))
    except UnreadableRecord:
        return None
    assert isinstance(progress, TrainingProgress)
    return progress


async def _report_uri(log: EventLog, name: str) -> str:
    """The folder of a version's or job's report."""
    from shared.registry.training_jobs import read_jobs

    version = (await read_registry(log)).adapter(name)
    if version is not None:
        return version.adapter_uri
    job = next((job for job in await read_jobs(log) if job["job_id"] == name), None)
    if job is None:
        raise CliError(f"{name}: neither a version nor a job", Exit.failed)
    if not job.get("report_uri"):
        raise CliError(f"{name}: has no report; {job['phase']}: {job['message']}", Exit.failed)
    return str(job["report_uri"])


def _fetch(uri: str) -> bytes:
    """A file of the adapter or dataset storage."""
    import fsspec  # pyright: ignore[reportMissingTypeStubs]

    try:
        with fsspec.open(uri, "rb") as file:
            return file.read()  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # noqa: BLE001
        # Storage libraries raise errors of their own.
        raise CliError(f"{uri}: cannot be read: {error}", Exit.unreachable) from None
