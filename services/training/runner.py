"""Doing one job: snapshot, attempts, gate, publication, final word. Every step can be done again.

What an interrupted run left behind is used: the snapshot and the version's name from the job's
folder, the trainer's finished stages and checkpoints, and a record that is on the log already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel

from services.training.candidate import (
    Candidate,
    judge_figures,
    read_candidate,
    require_servable,
    stages,
)
from services.training.dataset import JUDGE
from services.training.diagnosis import adjust, diagnose
from services.training.errors import InvalidJob, StoreUnavailable, TrainingError
from services.training.gate import judge_gate
from services.training.hyperparameters import (
    DpoHyperparameters,
    RewardHyperparameters,
    SftHyperparameters,
    parse_hyperparameters,
)
from services.training.metrics import Metrics
from services.training.process import ROOT, TrainerProcess
from services.training.progress import ProgressReporter
from services.training.publish import gather, upload
from services.training.report import render
from services.training.revision import code_revision
from services.training.settings import TrainingSettings
from services.training.snapshot import (
    Dataset,
    DatasetStore,
    ImportedRows,
    Manifest,
    lay_out,
    read_import,
    take_snapshot,
)
from services.training.trainers.job import TrainerJob
from services.training.versioning import choose_name
from services.training.workspace import ResumeState, Workspace
from shared.clock import Clock
from shared.contracts.events import RunPhase, TrainingMethod, TrainingRequested
from shared.kafka.log import EventLog, LogUnavailable
from shared.kafka.topics import VERSIONS
from shared.registry.adapters import FINGERPRINT_TEXTS, AdapterError, AdapterUnavailable, fetch
from shared.registry.follow import RegistryFollower
from shared.registry.versions import GateResult, VersionRecord, record_key

log = structlog.get_logger(__name__)

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0
STORE_TRIES = 20
"""Tries of a job whose storage does not answer, about ten minutes, before it fails."""
SEEN_TIMEOUT_S = 60.0

Trainable = SftHyperparameters | DpoHyperparameters


@dataclass(frozen=True)
class ResolvedJob:
    """A request with everything it left open filled in."""

    job: TrainingRequested
    base: str
    parent: VersionRecord | None
    parameters: Trainable
    reward: RewardHyperparameters


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended."""

    phase: RunPhase
    message: str
    version: str = ""
    metrics: Mapping[str, float] | None = None


class Runner:
    """Does jobs, one at a time."""

    def __init__(
        self,
        *,
        event_log: EventLog,
        registry: RegistryFollower,
        store: DatasetStore,
        settings: TrainingSettings,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._log = event_log
        self._registry = registry
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._moved = clock.monotonic()
        self._process = TrainerProcess(
            python=settings.python,
            threads=settings.threads,
            stall_s=settings.stall_s,
            restarts=settings.restarts,
        )

    @property
    def jobs(self) -> Path:
        """Where jobs' folders are."""
        return self._settings.data_dir.resolve() / "training" / "jobs"

    def idle_s(self) -> float:
        """Seconds since a job last moved."""
        return self._clock.monotonic() - self._moved

    def alive(self) -> None:
        """Note that all is going on, for example because there is nothing to do."""
        self._moved = self._clock.monotonic()

    async def run(self, job: TrainingRequested) -> JobOutcome:
        """Do a job to its end and put its final word on the log.

        Kafka being away is waited for, as nothing can end without it; storage for a bounded
        number of tries. Any other trouble ends the job as failed, with the reason.
        """
        reporter = ProgressReporter(self._log, self._clock, self._metrics, job)
        backoff_s, store_tries = BACKOFF_FIRST_S, 0
        while True:
            self.alive()
            try:
                outcome = await self._outcome(job, reporter)
                await self._finish(reporter, outcome)
            except LogUnavailable as error:
                log.warning("job.log_away", job_id=job.job_id, error=str(error))
            except (StoreUnavailable, AdapterUnavailable) as error:
                store_tries += 1
                log.warning("job.store_away", job_id=job.job_id, error=str(error), n=store_tries)
                if store_tries >= STORE_TRIES:
                    return await self._fail(job, reporter, str(error))
            except (TrainingError, AdapterError) as error:
                return await self._fail(job, reporter, str(error))
            except Exception as error:
                log.exception("job.broken", job_id=job.job_id)
                return await self._fail(job, reporter, f"{type(error).__name__}: {error}")
            else:
                self._ended(job, outcome)
                return outcome
            await self._clock.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _fail(
        self, job: TrainingRequested, reporter: ProgressReporter, message: str
    ) -> JobOutcome:
        outcome = JobOutcome(RunPhase.failed, message)
        backoff_s = BACKOFF_FIRST_S
        while True:
            self.alive()
            try:
                await self._finish(reporter, outcome)
            except LogUnavailable as error:
                log.warning("job.log_away", job_id=job.job_id, error=str(error))
                await self._clock.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
            else:
                self._ended(job, outcome)
                return outcome

    @staticmethod
    async def _finish(reporter: ProgressReporter, outcome: JobOutcome) -> None:
        await reporter.finish(
            outcome.phase, outcome.message, version=outcome.version, metrics=outcome.metrics or {}
        )

    def _ended(self, job: TrainingRequested, outcome: JobOutcome) -> None:
        self._metrics.runs.labels(job.method.value, outcome.phase.value).inc()
        log.info(
            "job.ended",
            job_id=job.job_id,
            outcome=outcome.phase.value,
            version=outcome.version,
            message=outcome.message,
        )
        Workspace(self.jobs, job.job_id).tidy()

    async def _outcome(self, job: TrainingRequested, reporter: ProgressReporter) -> JobOutcome:
        for version in self._registry.registry.versions(job.model):
            if version.record.job_id == job.job_id:
                return _succeeded(version.record)
        await reporter.enter(RunPhase.accepted, 0.0)
        resolved = self._resolve(job)
        workspace = Workspace(self.jobs, job.job_id)
        await reporter.enter(RunPhase.snapshot, 0.01)
        dataset = await self._dataset(resolved, workspace)
        log.info(
            "job.snapshot",
            job_id=job.job_id,
            dataset_id=dataset.manifest.dataset_id,
            rows={name: file.rows for name, file in dataset.manifest.files.items()},
            refused=dataset.manifest.refused,
        )
        if job.method is TrainingMethod.reward:
            return await self._judge_alone(resolved, workspace, reporter)
        return await self._attempts(resolved, dataset, workspace, reporter)

    def _resolve(self, job: TrainingRequested) -> ResolvedJob:
        registry, settings = self._registry.registry, self._settings
        named = registry.get(job.parent) if job.parent else registry.stable(job.model)
        if job.parent and (named is None or named.record.model != job.model):
            raise InvalidJob(f"parent: {job.parent} is no version of {job.model}")
        parent = named.record if named else None
        base = job.base or (parent.base if parent else "")
        if not base:
            raise InvalidJob("base: give a hub id or path; there is no parent to take it from")
        taken = {version.record.version for version in registry.versions()}
        if job.method is not TrainingMethod.reward:
            choose_name(job.model, job.method, wanted=job.version, parent="", taken=taken)
        if job.method is TrainingMethod.dpo and parent is None:
            raise InvalidJob(
                f"parent: {job.model} has no stable version; name one, or do sft first"
            )
        own = job.hyperparameters
        reward = parse_hyperparameters(
            RewardHyperparameters,
            settings.reward,
            own if job.method is TrainingMethod.reward else own.get("reward", {}),
        )
        rest = {name: value for name, value in own.items() if name != "reward"}
        if job.method is TrainingMethod.sft:
            parameters: Trainable = parse_hyperparameters(SftHyperparameters, settings.sft, rest)
            if parameters.lora.rank > settings.max_lora_rank:
                raise InvalidJob(
                    f"hyperparameters: lora.rank is {parameters.lora.rank}; the engine serves "
                    f"{settings.max_lora_rank} at most (RATCHET_TRAINING_MAX_LORA_RANK)"
                )
        else:
            mine = rest if job.method is TrainingMethod.dpo else {}
            parameters = parse_hyperparameters(DpoHyperparameters, settings.dpo, mine)
        sft = job.method is TrainingMethod.sft
        return ResolvedJob(job, base, None if sft else parent, parameters, reward)

    async def _dataset(self, resolved: ResolvedJob, workspace: Workspace) -> Dataset:
        job, resume = resolved.job, workspace.load()
        if resume.dataset_id:
            known = await asyncio.to_thread(self._store.read, resume.dataset_id)
            if known is not None:
                await asyncio.to_thread(lay_out, known, workspace.data)
                return known
        imported: ImportedRows | None = None
        if job.dataset_uri:
            imported = await asyncio.to_thread(read_import, job.dataset_uri)
        rules = self._settings.rules.model_copy(
            update={"prompts": self._settings.evaluation.prompts}
        )
        dataset = await take_snapshot(
            self._log,
            model=job.model,
            method=job.method,
            rules=rules,
            imported=imported,
            alive=self.alive,
        )
        await asyncio.to_thread(self._store.write, dataset)
        await asyncio.to_thread(lay_out, dataset, workspace.data)
        workspace.save(ResumeState(job_id=job.job_id, dataset_id=dataset.manifest.dataset_id))
        return dataset

    async def _judge_alone(
        self, resolved: ResolvedJob, workspace: Workspace, reporter: ProgressReporter
    ) -> JobOutcome:
        folder = workspace.attempt(1)
        await self._train(resolved, resolved.parameters, workspace, folder, reporter, judged=True)
        figures = judge_figures(workspace.judge)
        return JobOutcome(RunPhase.succeeded, f"a judge of {resolved.job.model}", metrics=figures)

    async def _attempts(
        self,
        resolved: ResolvedJob,
        dataset: Dataset,
        workspace: Workspace,
        reporter: ProgressReporter,
    ) -> JobOutcome:
        job, limits, manifest = resolved.job, self._settings.gate, dataset.manifest
        pairs = manifest.files[JUDGE].rows
        judged = pairs >= limits.min_judge_pairs
        if job.method is TrainingMethod.dpo and not judged and not job.override_gate:
            hopeless = judge_gate(job.method, {"judge_pairs": float(pairs)}, limits)
            return self._rejected(hopeless, {"judge_pairs": float(pairs)}, manifest, attempts=0)
        parameters: Trainable | None = resolved.parameters
        number = 0
        while True:
            number += 1
            reporter.attempt = number
            assert parameters is not None
            folder = workspace.attempt(number)
            await self._train(resolved, parameters, workspace, folder, reporter, judged=judged)
            await reporter.enter(RunPhase.gating, 0.95)
            candidate = read_candidate(
                folder, workspace.judge, method=job.method, manifest=manifest, limits=limits
            )
            gate = candidate.gate
            log.info(
                "job.gate",
                job_id=job.job_id,
                attempt=number,
                passed=gate.passed,
                failed=[check.name for check in gate.checks if not check.passed],
                figures=candidate.figures,
            )
            if gate.passed or job.override_gate:
                return await self._publish(resolved, parameters, dataset, workspace, candidate)
            better = adjust(parameters, gate, candidate.figures)
            if better is None or number >= self._settings.attempts:
                return self._rejected(gate, candidate.figures, manifest, attempts=number)
            parameters = better

    @staticmethod
    def _rejected(
        gate: GateResult, figures: Mapping[str, float], manifest: Manifest, *, attempts: int
    ) -> JobOutcome:
        message = diagnose(
            gate, figures, card=manifest.card, refused=manifest.refused, attempts=attempts
        )
        return JobOutcome(RunPhase.rejected, message, metrics=figures)

    async def _train(
        self,
        resolved: ResolvedJob,
        parameters: Trainable,
        workspace: Workspace,
        folder: Path,
        reporter: ProgressReporter,
        *,
        judged: bool,
    ) -> None:
        settings = self._settings
        adapter = ""
        if resolved.parent is not None and resolved.job.method is TrainingMethod.dpo:
            cache = settings.data_dir.resolve() / "training" / "adapters"
            path = await asyncio.to_thread(
                fetch, resolved.parent.adapter_uri, resolved.parent.adapter_sha256, cache
            )
            adapter = str(path)
        trainer_job = TrainerJob(
            stages=stages(resolved.job.method, judged=judged),
            base=resolved.base,
            parent_adapter=adapter,
            data=str(workspace.data),
            judge=str(workspace.judge),
            sft=parameters if isinstance(parameters, SftHyperparameters) else None,
            dpo=parameters if isinstance(parameters, DpoHyperparameters) else None,
            reward=resolved.reward,
            evaluation=settings.evaluation,
            seed=resolved.job.seed,
            threads=settings.threads,
            nice=settings.nice,
            fingerprint_texts=FINGERPRINT_TEXTS,
        )
        workspace.begin(folder, trainer_job)
        await self._process.run(folder, reporter.step, self.alive)

    async def _publish(
        self,
        resolved: ResolvedJob,
        parameters: Trainable,
        dataset: Dataset,
        workspace: Workspace,
        candidate: Candidate,
    ) -> JobOutcome:
        job, settings = resolved.job, self._settings
        require_servable(candidate)
        version = self._name(resolved, workspace)
        gate = candidate.gate
        if not gate.passed:
            gate = gate.model_copy(
                update={"overridden_by": job.actor, "override_reason": job.reason}
            )
            log.warning(
                "gate.overridden",
                job_id=job.job_id,
                version=version,
                actor=job.actor,
                reason=job.reason,
            )
        hyperparameters = _kept(parameters) | {
            "evaluation": _kept(settings.evaluation),
            "gate": _kept(settings.gate),
        }
        if resolved.job.method is TrainingMethod.dpo:
            hyperparameters["reward"] = _kept(resolved.reward)
        folder = workspace.folder / "publish"
        report = render(
            version,
            parent=resolved.parent.version if resolved.parent else "",
            gate=gate,
            figures=candidate.figures,
            manifest=dataset.manifest,
            parameters=hyperparameters,
            samples=candidate.samples(settings.evaluation.samples),
        )
        await asyncio.to_thread(gather, candidate, report, folder)
        stored = await asyncio.to_thread(upload, folder, settings.adapters_uri, version)
        record = VersionRecord(
            version=version,
            model=job.model,
            method="sft" if job.method is TrainingMethod.sft else "dpo",
            base=resolved.base,
            parent=resolved.parent.version if resolved.parent else "",
            adapter_uri=stored.uri,
            adapter_sha256=stored.sha256,
            fingerprint=candidate.fingerprint,
            dataset=dataset.reference(self._store.root),
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
        return _succeeded(record)

    def _name(self, resolved: ResolvedJob, workspace: Workspace) -> str:
        """The version's name: the one chosen before a kill, unless it was taken meanwhile."""
        resume = workspace.load()
        taken = {version.record.version for version in self._registry.registry.versions()}
        if resume.version and resume.version not in taken:
            return resume.version
        parent = resolved.parent.version if resolved.parent else ""
        name = choose_name(
            resolved.job.model,
            resolved.job.method,
            wanted=resolved.job.version,
            parent=parent,
            taken=taken,
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


def _succeeded(record: VersionRecord) -> JobOutcome:
    gate = record.gate
    how = "the gate passed" if gate.passed else f"the gate was overridden by {gate.overridden_by}"
    return JobOutcome(
        RunPhase.succeeded, f"{record.version}: {how}", record.version, dict(record.metrics)
    )


def _kept(parameters: BaseModel) -> dict[str, Any]:
    return parameters.model_dump(mode="json")
