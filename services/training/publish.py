"""Publication: an adapter's files go to storage, then the version's record to the log.

The record is the commit: before it nothing serves the files, and a name with a record is never
written again.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import structlog
from pydantic import BaseModel

from services.training.attempts import Released
from services.training.candidate import Candidate, require_servable
from services.training.errors import StoreUnavailable
from services.training.process import ROOT
from services.training.report import render
from services.training.resolve import ResolvedJob
from services.training.revision import code_revision
from services.training.settings import TrainingSettings
from services.training.snapshot import Dataset
from services.training.versioning import choose_name
from services.training.workspace import Workspace
from shared.clock import Clock
from shared.contracts.events import TrainingMethod, TrainingRequested
from shared.kafka.log import EventLog, LogUnavailable
from shared.kafka.topics import VERSIONS
from shared.registry.adapters import publish
from shared.registry.follow import RegistryFollower
from shared.registry.versions import GateResult, VersionRecord, record_key

log = structlog.get_logger(__name__)

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
SEEN_TIMEOUT_S = 60.0


class Publisher:
    """Publishes released candidates as versions."""

    def __init__(
        self,
        *,
        event_log: EventLog,
        registry: RegistryFollower,
        datasets_root: str,
        settings: TrainingSettings,
        clock: Clock,
    ) -> None:
        self._log = event_log
        self._registry = registry
        self._datasets_root = datasets_root
        self._settings = settings
        self._clock = clock

    async def publish(
        self, resolved: ResolvedJob, released: Released, dataset: Dataset, workspace: Workspace
    ) -> VersionRecord:
        """Store the adapter with its report, and register it.

        Raises:
            TrainerFailed: the candidate's weights are broken.
            StoreUnavailable: the storage refused the files.
            LogUnavailable: the record was not acknowledged, or not read back in time.

        """
        job, settings, candidate = resolved.job, self._settings, released.candidate
        require_servable(candidate)
        version = self._name(resolved, workspace)
        gate = _signed(candidate.gate, job, version)
        hyperparameters = _kept(released.hyperparameters) | {
            "evaluation": _kept(settings.evaluation),
            "gate": _kept(settings.gate),
        }
        if job.method is TrainingMethod.dpo:
            hyperparameters["reward"] = _kept(resolved.reward)
        report = render(
            version,
            parent=resolved.parent_version,
            gate=gate,
            figures=candidate.figures,
            manifest=dataset.manifest,
            parameters=hyperparameters,
            samples=candidate.samples(settings.evaluation.samples),
        )
        folder = workspace.folder / "publish"
        await asyncio.to_thread(gather, candidate, report, folder)
        stored = await asyncio.to_thread(upload, folder, settings.adapters_uri, version)
        record = VersionRecord(
            version=version,
            model=job.model,
            method="sft" if job.method is TrainingMethod.sft else "dpo",
            base=resolved.base,
            parent=resolved.parent_version,
            adapter_uri=stored.uri,
            adapter_sha256=stored.sha256,
            fingerprint=candidate.fingerprint,
            dataset=dataset.reference(self._datasets_root),
            hyperparameters=hyperparameters,
            seed=job.seed,
            code_revision=await asyncio.to_thread(code_revision, settings.code_revision, ROOT),
            packages=candidate.packages,
            metrics=candidate.figures,
            gate=gate,
            job_id=job.job_id,
            created_at=self._clock.now(),
        )
        await self._log.publish(
            VERSIONS, key=record_key(version), event=record, event_id=f"{version}:{job.job_id}"
        )
        await self._seen(version)
        return record

    def _name(self, resolved: ResolvedJob, workspace: Workspace) -> str:
        """The version's name: the one chosen before a kill, unless it was taken meanwhile."""
        resume = workspace.load()
        taken = {version.record.version for version in self._registry.registry.versions()}
        if resume.version and resume.version not in taken:
            return resume.version
        job = resolved.job
        name = choose_name(
            job.model, job.method, wanted=job.version, parent=resolved.parent_version, taken=taken
        )
        workspace.save(resume.model_copy(update={"version": name}))
        return name

    async def _seen(self, version: str) -> None:
        """Wait until our own record came back, so that the next name is chosen knowing it.

        Raises:
            LogUnavailable: it did not come back in time.

        """
        deadline = self._clock.monotonic() + SEEN_TIMEOUT_S
        while self._registry.registry.get(version) is None:
            if self._clock.monotonic() > deadline:
                raise LogUnavailable(f"{VERSIONS}: the record of {version} did not come back")
            await self._clock.sleep(0.05)


@dataclass(frozen=True)
class Published:
    """Where an adapter's files are, and their checksum."""

    uri: str
    sha256: str


def gather(candidate: Candidate, report: str, folder: Path) -> None:
    """Put together what is published: the adapter, the report, the figures. Nothing else goes.

    Trainers also leave a copy of the reference adapter and pickled settings, which have no place
    in an adapter folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ADAPTER_FILES:
        shutil.copyfile(candidate.adapter / name, folder / name)
    (folder / "report.md").write_text(report, encoding="utf-8")
    summary: dict[str, Any] = {
        "figures": candidate.figures,
        "gate": candidate.gate.model_dump(mode="json"),
    }
    (folder / "evaluation.json").write_text(
        json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def upload(folder: Path, root: str, version: str) -> Published:
    """Store an adapter folder under the version's name.

    Files of an earlier try that never got a record are replaced.

    Raises:
        StoreUnavailable: the storage refused it.

    """
    uri = f"{root.rstrip('/')}/{version}"
    try:
        filesystem, path = fsspec.url_to_fs(uri)
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)
        digest = publish(folder, uri)
    except Exception as error:
        raise StoreUnavailable(f"{uri}: cannot be written: {error}") from error
    return Published(uri, digest)


def _signed(gate: GateResult, job: TrainingRequested, version: str) -> GateResult:
    """The gate's result, with who overrode it and why where it did not pass."""
    if gate.passed:
        return gate
    log.warning(
        "gate.overridden",
        job_id=job.job_id,
        version=version,
        actor=job.actor,
        reason=job.reason,
    )
    return gate.model_copy(update={"overridden_by": job.actor, "override_reason": job.reason})


def _kept(settings: BaseModel) -> dict[str, Any]:
    return settings.model_dump(mode="json")
