"""Publication: an adapter's files go to storage, then the version's record to the log.

The record is the commit: before it nothing serves the files, and a name with a record is never
written again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel

from services.training.adjustment import Tried
from services.training.attempts import Refused, Released
from services.training.base_files import base_identity
from services.training.candidate import Candidate, losses, require_servable, who_judged
from services.training.dataset_manifest import Dataset
from services.training.dataset_store import store_files
from services.training.errors import StoreUnavailable, VersionTaken, refusals
from services.training.process import ROOT
from services.training.report import EvaluationReport
from services.training.resolve import ResolvedJob
from services.training.run_spans import RunSpans
from services.training.settings import TrainingSettings
from services.training.versioning import choose_name
from services.training.workspace import Workspace
from shared.clock import Clock
from shared.contracts.events.training import TrainingMethod, TrainingRequested
from shared.contracts.events.versions import GateResult, SettingsRecord, VersionRecord, record_key
from shared.contracts.recipes import TrainerHyperparameters, search_space
from shared.contracts.topics import VERSIONS
from shared.kafka.log import EventLog, LogUnavailable
from shared.registry.adapters import AdapterUnavailable, checksum, publish
from shared.registry.follow import RegistryFollower
from shared.registry.job_origin import require_served_base
from shared.revision import code_revision

log = structlog.get_logger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SETS = ("exclude_modules", "modules_to_save", "target_modules")
"""Lists of PEFT's configuration whose order means nothing."""
MAX_LOSSES = 200
"""Points of a stage's curve in a report."""
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
        spans: RunSpans,
        alive: Callable[[], None],
    ) -> None:
        """`alive` is called while the base's files are hashed."""
        self._alive = alive
        self._log = event_log
        self._registry = registry
        self._datasets_root = datasets_root
        self._settings = settings
        self._clock = clock
        self._spans = spans

    async def publish(
        self, resolved: ResolvedJob, released: Released, dataset: Dataset, workspace: Workspace
    ) -> VersionRecord:
        """Store the adapter with its report, and register it; returns the record that counts.

        Raises:
            TrainerFailed: the candidate's weights are broken.
            StoreUnavailable: the storage refused the files.
            LogUnavailable: the record was not acknowledged, or not read back in time.
            InvalidJob: the model went to another base meanwhile.
            VersionTaken: another job registered the name first.

        """
        job, settings, candidate = resolved.job, self._settings, released.candidate
        require_servable(candidate)
        known = self.registered_by(job)
        if known is not None:
            # Another replica did the same job: a second version of it would be a surprise.
            return known
        if not job.rebases:
            with refusals():
                require_served_base(resolved.base, job.model, self._registry.registry)
        version = self._name(resolved, workspace)
        gate = _signed(candidate.gate, job, version)
        hyperparameters = self._parameters(resolved, released.hyperparameters)
        report = self._report(version, resolved, candidate, gate, dataset, hyperparameters)
        report = replace(report, attempts=_attempts(resolved, released.tried))
        files = adapter_files(candidate.adapter) | _pages(report)
        stored = await asyncio.to_thread(
            store, files, workspace.fresh("publish"), settings.adapters_uri, version
        )
        base = await base_identity(resolved.base, settings, self._alive)
        record = VersionRecord(
            version=version,
            model=job.model,
            method="sft" if job.method is TrainingMethod.sft else "dpo",
            algorithm=job.algorithm,
            base=resolved.base,
            base_revision=base.revision,
            base_sha256=base.sha256,
            parent=resolved.parent_version,
            rebases=job.rebases,
            adapter_uri=stored.uri,
            adapter_sha256=stored.sha256,
            fingerprint=candidate.fingerprint,
            dataset=dataset.reference(self._datasets_root),
            hyperparameters=hyperparameters,
            judged_with=self._judged_with(candidate),
            seed=job.seed,
            code_revision=await asyncio.to_thread(code_revision, settings.code_revision, ROOT),
            packages=candidate.packages,
            metrics=candidate.figures,
            gate=gate,
            job_id=job.job_id,
            created_at=self._clock.now(),
        )
        await self._log.publish(
            VERSIONS,
            key=record_key(version),
            event=record,
            event_id=f"{version}:{job.job_id}",
            traceparent=self._spans.context(job.job_id),
        )
        registered = await self._registered(version)
        trained = isinstance(registered, VersionRecord)
        if not trained or registered.job_id != job.job_id:
            other = f"job {registered.job_id}" if trained else f"{registered.actor} as settings"
            raise VersionTaken(
                f"version: {version} was registered by {other} a moment before; "
                "its files are untouched, ask for this job again under another name"
            )
        return registered

    async def report(
        self,
        resolved: ResolvedJob,
        refused: Refused,
        diagnosis: Sequence[str],
        dataset: Dataset,
        workspace: Workspace,
    ) -> str:
        """Store the report of a job whose candidate was refused; its folder, or empty without one.

        Raises:
            StoreUnavailable: the storage refused the files.

        """
        candidate, trained = refused.candidate, refused.hyperparameters
        if candidate is None or trained is None:
            return ""
        parameters = self._parameters(resolved, trained)
        title = f"{resolved.job.job_id}: no version"
        report = self._report(title, resolved, candidate, refused.gate, dataset, parameters)
        attempts = _attempts(resolved, refused.tried)
        report = replace(report, diagnosis=tuple(diagnosis), attempts=attempts)
        uri = f"{self._datasets_root}/reports/{workspace.folder.name}"
        await asyncio.to_thread(store_files, uri, _pages(report))
        return uri

    def _parameters(self, resolved: ResolvedJob, trained: TrainerHyperparameters) -> dict[str, Any]:
        """All that a candidate and its judge were trained with, as a job takes it."""
        parameters = _kept(trained)
        if resolved.job.method is TrainingMethod.dpo:
            parameters["reward"] = _kept(resolved.reward)
        return parameters

    def _judged_with(self, candidate: Candidate) -> dict[str, Any]:
        """The settings and the reward model by which a candidate was evaluated and judged."""
        settings = self._settings
        return {
            "evaluation": _kept(settings.evaluation),
            "gate": _kept(settings.gate),
            "reward_model": candidate.judged_by,
        }

    def _report(
        self,
        title: str,
        resolved: ResolvedJob,
        candidate: Candidate,
        gate: GateResult,
        dataset: Dataset,
        parameters: dict[str, Any],
    ) -> EvaluationReport:
        return EvaluationReport(
            title=title,
            method=resolved.job.recipe_method,
            parent=resolved.parent_version,
            gate=gate,
            figures=candidate.figures,
            dataset=dataset,
            parameters=parameters | self._judged_with(candidate),
            judge=who_judged(candidate.figures, candidate.predecessor),
            samples=candidate.samples(self._settings.evaluation.samples),
            lost=candidate.lost,
            segments=candidate.segments,
            losses=losses(candidate.folder, MAX_LOSSES),
        )

    def registered_by(self, job: TrainingRequested) -> VersionRecord | None:
        """The record that this job made already, here or on another replica."""
        for version in self._registry.registry.versions(job.model):
            record = version.record
            if isinstance(record, VersionRecord) and record.job_id == job.job_id:
                return record
        return None

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

    async def _registered(self, version: str) -> VersionRecord | SettingsRecord:
        """The record under this name once it is read back: the first on the log, ours or not.

        Raises:
            LogUnavailable: it did not come back in time.

        """
        deadline = self._clock.monotonic() + SEEN_TIMEOUT_S
        while (known := self._registry.registry.get(version)) is None:
            if self._clock.monotonic() > deadline:
                raise LogUnavailable(f"{VERSIONS}: the record of {version} did not come back")
            await self._clock.sleep(0.05)
        return known.record


@dataclass(frozen=True)
class Published:
    """Where an adapter's files are, and their checksum."""

    uri: str
    sha256: str


def adapter_files(folder: Path) -> dict[str, bytes]:
    """An adapter's two files; the configuration's sets, which PEFT writes in any order, sorted."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
    for name in SETS:
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    text = json.dumps(config, indent=2, sort_keys=True)
    return {CONFIG: f"{text}\n".encode(), WEIGHTS: (folder / WEIGHTS).read_bytes()}


def _pages(report: EvaluationReport) -> dict[str, bytes]:
    """The report's files: the page, and the same as JSON."""
    data = json.dumps(report.data(), indent=1, sort_keys=True, ensure_ascii=False)
    return {"report.html": report.html().encode(), "evaluation.json": f"{data}\n".encode()}


def store(files: Mapping[str, bytes], folder: Path, root: str, name: str) -> Published:
    """Store an artefact's files, and no others, by way of an empty folder of the job's.

    Trainers also leave a copy of the reference adapter and pickled settings, which have no place
    in an adapter folder.

    Raises:
        StoreUnavailable: the storage refused them.

    """
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return upload(folder, root, name)


def upload(folder: Path, root: str, version: str) -> Published:
    """Store an adapter folder in a place of its own: `<root>/<version>/<checksum>`.

    Two replicas that make the same version number write to different places, so neither can
    touch the other's files; the record that comes first says whose are served.

    Raises:
        StoreUnavailable: the storage refused it.

    """
    uri = f"{root.rstrip('/')}/{version}/{checksum(folder)}"
    try:
        return Published(uri, publish(folder, uri))
    except AdapterUnavailable as error:
        raise StoreUnavailable(str(error)) from error


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


def _attempts(resolved: ResolvedJob, tried: Sequence[Tried]) -> tuple[dict[str, Any], ...]:
    space = search_space(resolved.hyperparameters)
    return tuple(one.data(number, space) for number, one in enumerate(tried, start=1))


def _kept(settings: BaseModel) -> dict[str, Any]:
    return settings.model_dump(mode="json")
