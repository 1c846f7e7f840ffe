"""The training service's own jobs on an event log in memory, for the learning benchmark.

Snapshot, judge, attempts, gate and publication are those of `services.training` with its shipped
settings. The log is filled anew for each job from what earlier jobs left, as after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from benchmarks.training_stages import ML_PYTHON
from services.training.dataset_store import DatasetStore
from services.training.metrics import TrainingMetrics
from services.training.runner import Runner
from services.training.settings import TrainingSettings
from services.training.sides import DatasetRules
from services.training.workspace import Workspace
from shared.clock import SystemClock
from shared.contracts.events.preferences import PreferencePair, UnpairedExample
from shared.contracts.events.training import RunPhase, TrainingRequested
from shared.contracts.events.versions import Lifecycle, VersionState, state_key
from shared.contracts.topics import PREFERENCES, VERSIONS
from shared.kafka.log import NewRecord
from shared.redaction import Redaction
from shared.registry.follow import RegistryFollower
from shared.testing.log import MemoryLog

MODEL = "assistant"
READ_S = 60.0
"""Longest wait for the log in memory to be read."""

Feedback = PreferencePair | UnpairedExample
VersionRow = tuple[str, str]
"""Key and value of a record of `versions.v1`."""


@dataclass(frozen=True)
class JobResult:
    """How a job ended."""

    released: bool
    version: str
    message: str
    attempts: int
    figures: Mapping[str, float]
    failed: Sequence[str]
    """Checks of the gate that refused the attempt nearest to passing."""
    candidate: str
    """Folder of the adapter of the attempt that the outcome is of."""
    versions: Sequence[VersionRow]
    """All of `versions.v1` afterwards; a released version is the stable one."""


def do_job(
    folder: Path,
    job: TrainingRequested,
    *,
    versions: Sequence[VersionRow] = (),
    feedback: Sequence[Feedback] = (),
    rules: Mapping[str, Any] | None = None,
) -> JobResult:
    """Do a job as the service does; one whose result is in its file is read back.

    Args:
        folder: State, datasets and adapters; a job that was killed goes on from there.
        job: What is asked for.
        versions: What `versions.v1` has.
        feedback: What `preferences.v1` has.
        rules: Of `RATCHET_TRAINING_RULES`.

    Raises:
        RuntimeError: the job failed, or nothing was trained.

    """
    path = folder / f"{job.job_id}.json"
    if path.exists():
        known = json.loads(path.read_bytes())
        return JobResult(
            **{**known, "versions": [(key, value) for key, value in known["versions"]]}
        )
    folder.mkdir(parents=True, exist_ok=True)
    settings = TrainingSettings(
        python=str(ML_PYTHON),
        data_dir=folder / "state",
        adapters_uri=f"file://{folder}/adapters",
        datasets_uri=f"file://{folder}/datasets",
        adapter_roots=(f"file://{folder.parent}",),
        rules=DatasetRules.model_validate(rules or {}),
    )
    result = asyncio.run(_do_job(settings, job, versions, feedback))
    path.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    return result


async def _do_job(
    settings: TrainingSettings,
    job: TrainingRequested,
    versions: Sequence[VersionRow],
    feedback: Sequence[Feedback],
) -> JobResult:
    log = MemoryLog(partitions={VERSIONS: 1})
    if versions:
        await log.append_many([NewRecord(VERSIONS, key, value.encode()) for key, value in versions])
    for event in feedback:
        await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
    registry = RegistryFollower(log)
    following = asyncio.create_task(registry.run())
    try:
        await registry.caught_up(READ_S)
        runner = Runner(
            event_log=log,
            registry=registry,
            store=DatasetStore(settings.datasets_uri),
            settings=settings,
            metrics=TrainingMetrics(CollectorRegistry()),
            clock=SystemClock(),
            redact=Redaction(),
        )
        outcome = await runner.run(job)
        folder = Workspace(runner.jobs, job.job_id)
        attempts = len(folder.attempts())
        if outcome.phase is RunPhase.failed or not attempts:
            raise RuntimeError(f"{job.job_id}: {outcome.message}")
        if outcome.version:
            stable = VersionState(
                version=outcome.version,
                model=MODEL,
                state=Lifecycle.stable,
                token=0,
                at=job.requested_at,
            )
            key = state_key(outcome.version)
            await log.publish(VERSIONS, key=key, event=stable, event_id=key)
        return JobResult(
            released=outcome.phase is RunPhase.succeeded,
            version=outcome.version,
            message=outcome.message,
            attempts=attempts,
            figures=dict(outcome.metrics or {}),
            failed=[check.name for check in outcome.checks if not check.passed],
            candidate=str(folder.attempt(outcome.attempt or attempts).resolve() / "adapter"),
            versions=[(one.key, (one.value or b"").decode()) for one in log.all(VERSIONS)],
        )
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
