"""MLflow tracking of ended jobs: parameters, curves, metrics, report, adapter, model registry.

It is off without MLFLOW_TRACKING_URI. A server that is away or slow costs a job at most
`TIMEOUT_S` seconds after its final word; what was not logged is counted and told in the log.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]
import structlog

from services.training.candidate import losses
from services.training.metrics import TrainingMetrics
from services.training.outcome import JobOutcome
from services.training.process import ROOT, end_process, trainer_environment
from services.training.settings import TrainingSettings
from services.training.trainers.job import write_json
from services.training.workspace import Workspace
from shared.clock import Clock
from shared.contracts.events.training import RunPhase, TrainingRequested

log = structlog.get_logger(__name__)

TIMEOUT_S = 60.0
"""For copying the files and logging one job."""
MAX_POINTS = 500
"""Points of all curves together; MLflow takes a thousand metrics at a time."""
MAX_ERROR = 400
STATUS = {RunPhase.succeeded: "FINISHED", RunPhase.rejected: "FINISHED", RunPhase.failed: "FAILED"}


class MlflowTracker:
    """Logs ended jobs, one at a time, in a process that has mlflow."""

    def __init__(self, settings: TrainingSettings, metrics: TrainingMetrics, clock: Clock) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock

    async def track(self, job: TrainingRequested, outcome: JobOutcome, folder: Workspace) -> None:
        """Log a job if tracking is set up. Never raises; a failure is counted."""
        if not self._settings.mlflow_tracking_uri:
            return
        result = "logged"
        try:
            async with asyncio.timeout(TIMEOUT_S):
                place = folder.fresh("tracking")
                told = run_of(job, outcome, folder, int(self._clock.now().timestamp() * 1000))
                write_json(place / "run.json", told)
                if outcome.report_uri:
                    target = place / "artifacts"
                    await asyncio.to_thread(_copy, outcome.report_uri, target)
                await self._log(place)
        except Exception as error:  # noqa: BLE001 storage, mlflow and its server fail as they like
            result = "failed"
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            log.warning("tracking.failed", job_id=job.job_id, error=reason[-MAX_ERROR:])
        self._metrics.tracked.labels(result).inc()

    async def _log(self, place: Path) -> None:
        settings = self._settings
        process = await asyncio.create_subprocess_exec(
            settings.mlflow_python or settings.python,
            *("-m", "services.training.trainers.track", str(place)),
            cwd=ROOT,
            env=trainer_environment(threads=1)
            | {"MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _, said = await process.communicate()
        finally:
            await end_process(process)
        if process.returncode:
            raise RuntimeError(said.decode(errors="replace").strip() or "no reason given")


def run_of(
    job: TrainingRequested, outcome: JobOutcome, folder: Workspace, at_ms: int
) -> dict[str, Any]:
    """What is logged of a job, from its outcome and its attempts' folders."""
    attempts = folder.attempts()
    trained: dict[str, Any] = {}
    told = attempts[outcome.attempt - 1 :][:1] if outcome.attempt else attempts[-1:]
    if told and (told[0] / "job.json").exists():
        trained = json.loads((told[0] / "job.json").read_bytes())
    hyperparameters = _flat(cast("Mapping[str, Any]", trained.get("hyperparameters", {})))
    return {
        "experiment": f"ratchet/{job.model}",
        "name": outcome.version or job.job_id,
        "job_id": job.job_id,
        "at_ms": at_ms,
        "status": STATUS[outcome.phase],
        "params": {
            "method": job.recipe_method,
            "base": trained.get("base", job.base),
            "seed": job.seed,
            "dataset_uri": job.dataset_uri or "the log",
            **hyperparameters,
        },
        "metrics": dict(outcome.metrics or {}),
        "curves": curves(attempts),
        "tags": {
            "ratchet.phase": outcome.phase.value,
            "ratchet.actor": job.actor,
            "mlflow.note.content": outcome.message,
        },
        "registered_model": job.model,
        "version": outcome.version,
    }


def curves(attempts: Iterable[Path]) -> list[dict[str, Any]]:
    """Losses by step of every attempt, thinned evenly to MAX_POINTS."""
    found = [
        {"name": f"{attempt.name}/{stage}_loss", "step": step, "value": loss}
        for attempt in attempts
        for stage, points in losses(attempt, MAX_POINTS).items()
        for step, loss in points
    ]
    every = -(-len(found) // MAX_POINTS) or 1
    return found[::every]


def _flat(value: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, one in value.items():
        place = f"{path}{name}"
        found |= _flat(one, f"{place}.") if isinstance(one, Mapping) else {place: one}
    return found


def _copy(uri: str, folder: Path) -> None:
    """The report's folder: of a version its adapter lies there too."""
    filesystem, root = cast("tuple[Any, str]", fsspec.url_to_fs(uri))  # pyright: ignore[reportUnknownMemberType]
    folder.mkdir()
    for name in filesystem.ls(root, detail=False):
        filesystem.get_file(name, str(folder / name.rpartition("/")[2]))
