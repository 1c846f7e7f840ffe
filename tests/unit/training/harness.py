"""A job worker with fakes around it: an event log in memory, a trainer that takes milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from services.training.dataset_store import DatasetStore
from services.training.metrics import TrainingMetrics
from services.training.outcome import JobOutcome
from services.training.runner import Runner
from services.training.settings import TrainingSettings
from services.training.workspace import Workspace
from shared.clock import SystemClock
from shared.contracts.events.training import TrainingProgress, TrainingRequested
from shared.contracts.events.versions import (
    Lifecycle,
    RewardRecord,
    VersionRecord,
    record_key,
    state_key,
)
from shared.contracts.topics import PREFERENCES, TRAINING_JOBS, TRAINING_RUNS, VERSIONS
from shared.kafka.encrypted_log import DecryptingLog, EncryptingLog
from shared.kafka.log import EventLog
from shared.kafka.user_key_issuer import UserKeyIssuer
from shared.observability.spans import OFF, Spans
from shared.redaction import Redaction
from shared.redaction.detection import Redact
from shared.registry.adapters import publish
from shared.registry.follow import RegistryFollower
from shared.testing.log import MemoryLog
from tests.unit.training.builders import MODEL, example_event, pair_event, record, state

FAKE = Path(__file__).with_name("fake_trainer.py")
V10 = f"{MODEL}-v1.0"


async def stocked(folder: Path) -> TrainingHarness:
    """A harness with a stable version, and pairs enough for the next one."""
    log = MemoryLog(partitions={VERSIONS: 1, TRAINING_RUNS: 1, TRAINING_JOBS: 1})
    parent = folder / "parent"
    parent.mkdir()
    (parent / "adapter_model.safetensors").write_bytes(b"weights of the parent")
    uri = f"file://{folder}/adapters/{V10}"
    first = record(V10, adapter_uri=uri, adapter_sha256=publish(parent, uri))
    await log.publish(VERSIONS, key=record_key(V10), event=first, event_id="1")
    await log.publish(
        VERSIONS, key=state_key(V10), event=state(V10, Lifecycle.stable), event_id="2"
    )
    events = [
        *(pair_event(n) for n in range(60)),
        *(pair_event(100 + n, panel="judge") for n in range(40)),
        *(example_event(n) for n in range(60)),
    ]
    for event in events:
        await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
    return TrainingHarness(folder, log)


class TrainingHarness:
    """A runner with everything around it; `restart` is what a kill leaves: disk and log."""

    def __init__(self, folder: Path, log: MemoryLog, store: Path | None = None) -> None:
        """`store` is where adapters and datasets go, the harness' own folder by default."""
        self.folder = folder
        store = store or folder
        self.log = log
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        self.settings = TrainingSettings(
            python=str(python),
            data_dir=folder / "state",
            adapters_uri=f"file://{store}/adapters",
            datasets_uri=f"file://{store}/datasets",
            code_revision="cafe",
            restarts=1,
            stall_s=0.7,
        )
        self.redact: Redact = Redaction()
        self.plan({})
        self.metrics = TrainingMetrics(CollectorRegistry())

    def replica(self, folder: Path) -> TrainingHarness:
        """A second replica: its own disk, the same log and stores."""
        return TrainingHarness(folder, self.log, store=self.folder)

    def published(self, record: VersionRecord) -> Path:
        """The folder a record points to."""
        return Path(record.adapter_uri.removeprefix("file://"))

    def plan(self, *starts: dict[str, Any]) -> None:
        (self.folder / "plan.json").write_text(json.dumps(starts))
        (self.folder / "starts.jsonl").unlink(missing_ok=True)

    @property
    def starts(self) -> list[str]:
        path = self.folder / "starts.jsonl"
        if not path.exists():
            return []
        return [json.loads(line)["attempt"] for line in path.read_text().splitlines()]

    @property
    def searches(self) -> list[dict[str, Any]]:
        """What searches were asked."""
        path = self.folder / "searches.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def trainer_job(self, job_id: str) -> dict[str, Any]:
        """What the trainer of a job's first attempt was told."""
        jobs = Workspace(self.folder / "state/training/jobs", job_id)
        return json.loads((jobs.attempt(1) / "job.json").read_bytes())

    @contextlib.asynccontextmanager
    async def runner(self, *, spans: Spans = OFF, **changes: Any) -> AsyncIterator[Runner]:
        follower = RegistryFollower(self.log)
        following = asyncio.create_task(follower.run())
        await follower.caught_up(5)
        try:
            yield Runner(
                event_log=self.log,
                registry=follower,
                store=DatasetStore(self.settings.datasets_uri),
                settings=self.settings.model_copy(update=changes),
                metrics=self.metrics,
                clock=SystemClock(),
                spans=spans,
                redact=self.redact,
            )
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following

    async def run(self, job: TrainingRequested, **changes: Any) -> JobOutcome:
        async with self.runner(**changes) as runner:
            return await runner.run(job)

    async def lock_a_pair(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Publish a pair with encrypted texts; the log is then read without the secret of them."""
        ours = EncryptingLog(self.log, UserKeyIssuer(self.log, b"s" * 32), source="/test")
        pair = pair_event(1)
        await ours.publish(PREFERENCES, key=pair.pair_id, event=pair, event_id=pair.pair_id)
        await ours.stop()
        without = DecryptingLog(cast("EventLog", SimpleNamespace(tail=self.log.tail)), None)
        monkeypatch.setattr(self.log, "tail", without.tail)

    def records(self) -> list[VersionRecord]:
        return [
            VersionRecord.model_validate_json(one.value or b"")
            for one in self.log.all(VERSIONS)
            if one.key.endswith("/record")
        ]

    def rewards(self) -> list[RewardRecord]:
        return [
            RewardRecord.model_validate_json(one.value or b"")
            for one in self.log.all(VERSIONS)
            if one.key.endswith("/reward")
        ]

    def progress(self, job_id: str = "job") -> list[TrainingProgress]:
        """What was said of a job; of all of them for an empty id."""
        events = [
            TrainingProgress.model_validate_json(one.value or b"")
            for one in self.log.all(TRAINING_RUNS)
        ]
        return [event for event in events if job_id in ("", event.job_id)]
