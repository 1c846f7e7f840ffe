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
from services.training.errors import InvalidJob, StoreUnavailable, TrainingError
from services.training.gate import judge_gate
from services.training.metrics import Metrics
from services.training.parameters import (
    DpoParameters,
    RewardParameters,
    SftParameters,
    parse_parameters,
)
from services.training.process import ROOT, TrainerProcess
from services.training.progress import ProgressReporter
from services.training.publish import gather, upload
from services.training.remedy import adjust, diagnose
from services.training.report import render
from services.training.revision import code_revision
from services.training.settings import TrainingSettings
from services.training.snapshot import (
    Dataset,
    DatasetStore,
    Import,
    Manifest,
    lay_out,
    read_import,
    take_snapshot,
)
from services.training.trainers.job import TrainerJob
from services.training.versioning import choose_name
from services.training.workspace import Decided, Workspace
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

Trainable = SftParameters | DpoParameters


@dataclass(frozen=True)
class Plan:
    """A request with everything it left open filled in."""

    job: TrainingRequested
    base: str
    parent: VersionRecord | None
    parameters: Trainable
    reward: RewardParameters


@dataclass(frozen=True)
class Ending:
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

    async def run(self, job: TrainingRequested) -> Ending:
        """Do a job to its end and put its final word on the log.

        Kafka being away is waited for, as nothing can end without it; storage for a bounded
        number of tries. Any other trouble ends the job as failed, with the reason.
        """
        reporter = ProgressReporter(self._log, self._clock, self._metrics, job)
        backoff_s, store_tries = BACKOFF_FIRST_S, 0
        while True:
            self.alive()
            try:
                ending = await self._ending(job, reporter)
                await self._finish(reporter, ending)
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
                self._ended(job, ending)
                return ending
            await self._clock.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _fail(
        self, job: TrainingRequested, reporter: ProgressReporter, message: str
    ) -> Ending:
        ending = Ending(RunPhase.failed, message)
        backoff_s = BACKOFF_FIRST_S
        while True:
            self.alive()
            try:
                await self._finish(reporter, ending)
            except LogUnavailable as error:
                log.warning("job.log_away", job_id=job.job_id, error=str(error))
                await self._clock.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
            else:
                self._ended(job, ending)
                return ending

    @staticmethod
    async def _finish(reporter: ProgressReporter, ending: Ending) -> None:
        await reporter.finish(
            ending.phase, ending.message, version=ending.version, metrics=ending.metrics or {}
        )

    def _ended(self, job: TrainingRequested, ending: Ending) -> None:
        self._metrics.runs.labels(job.method.value, ending.phase.value).inc()
        log.info(
            "job.ended",
            job_id=job.job_id,
            outcome=ending.phase.value,
            version=ending.version,
            message=ending.message,
        )
        Workspace(self.jobs, job.job_id).tidy()

    async def _ending(self, job: TrainingRequested, reporter: ProgressReporter) -> Ending:
        for version in self._registry.registry.versions(job.model):
            if version.record.job_id == job.job_id:
                return _succeeded(version.record)
        await reporter.enter(RunPhase.accepted, 0.0)
        plan = self._plan(job)
        workspace = Workspace(self.jobs, job.job_id)
        await reporter.enter(RunPhase.snapshot, 0.01)
        dataset = await self._dataset(plan, workspace)
        log.info(
            "job.snapshot",
            job_id=job.job_id,
            dataset_id=dataset.manifest.dataset_id,
            rows={name: file.rows for name, file in dataset.manifest.files.items()},
            refused=dataset.manifest.refused,
        )
        if job.method is TrainingMethod.reward:
            return await self._judge_alone(plan, workspace, reporter)
        return await self._attempts(plan, dataset, workspace, reporter)

    def _plan(self, job: TrainingRequested) -> Plan:
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
        reward = parse_parameters(
            RewardParameters,
            settings.reward,
            own if job.method is TrainingMethod.reward else own.get("reward", {}),
        )
        rest = {name: value for name, value in own.items() if name != "reward"}
        if job.method is TrainingMethod.sft:
            parameters: Trainable = parse_parameters(SftParameters, settings.sft, rest)
            if parameters.lora.rank > settings.max_lora_rank:
                raise InvalidJob(
                    f"hyperparameters: lora.rank is {parameters.lora.rank}; the engine serves "
                    f"{settings.max_lora_rank} at most (RATCHET_TRAINING_MAX_LORA_RANK)"
                )
        else:
            mine = rest if job.method is TrainingMethod.dpo else {}
            parameters = parse_parameters(DpoParameters, settings.dpo, mine)
        sft = job.method is TrainingMethod.sft
        return Plan(job, base, None if sft else parent, parameters, reward)

    async def _dataset(self, plan: Plan, workspace: Workspace) -> Dataset:
        job, decided = plan.job, workspace.load()
        if decided.dataset_id:
            known = await asyncio.to_thread(self._store.read, decided.dataset_id)
            if known is not None:
                await asyncio.to_thread(lay_out, known, workspace.data)
                return known
        imported: Import | None = None
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
        workspace.save(Decided(job_id=job.job_id, dataset_id=dataset.manifest.dataset_id))
        return dataset

    async def _judge_alone(
        self, plan: Plan, workspace: Workspace, reporter: ProgressReporter
    ) -> Ending:
        folder = workspace.attempt(1)
        await self._train(plan, plan.parameters, workspace, folder, reporter, judged=True)
        figures = judge_figures(workspace.judge)
        return Ending(RunPhase.succeeded, f"a judge of {plan.job.model}", metrics=figures)

    async def _attempts(
        self,
        plan: Plan,
        dataset: Dataset,
        workspace: Workspace,
        reporter: ProgressReporter,
    ) -> Ending:
        job, limits, manifest = plan.job, self._settings.gate, dataset.manifest
        pairs = manifest.files[JUDGE].rows
        judged = pairs >= limits.min_judge_pairs
        if job.method is TrainingMethod.dpo and not judged and not job.override_gate:
            hopeless = judge_gate(job.method, {"judge_pairs": float(pairs)}, limits)
            return self._rejected(hopeless, {"judge_pairs": float(pairs)}, manifest, attempts=0)
        parameters: Trainable | None = plan.parameters
        number = 0
        while True:
            number += 1
            reporter.attempt = number
            assert parameters is not None
            folder = workspace.attempt(number)
            await self._train(plan, parameters, workspace, folder, reporter, judged=judged)
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
                return await self._publish(plan, parameters, dataset, workspace, candidate)
            better = adjust(parameters, gate, candidate.figures)
            if better is None or number >= self._settings.attempts:
                return self._rejected(gate, candidate.figures, manifest, attempts=number)
            parameters = better

    @staticmethod
    def _rejected(
        gate: GateResult, figures: Mapping[str, float], manifest: Manifest, *, attempts: int
    ) -> Ending:
        message = diagnose(
            gate, figures, card=manifest.card, refused=manifest.refused, attempts=attempts
        )
        return Ending(RunPhase.rejected, message, metrics=figures)

    async def _train(
        self,
        plan: Plan,
        parameters: Trainable,
        workspace: Workspace,
        folder: Path,
        reporter: ProgressReporter,
        *,
        judged: bool,
    ) -> None:
        settings = self._settings
        adapter = ""
        if plan.parent is not None and plan.job.method is TrainingMethod.dpo:
            cache = settings.data_dir.resolve() / "training" / "adapters"
            path = await asyncio.to_thread(
                fetch, plan.parent.adapter_uri, plan.parent.adapter_sha256, cache
            )
            adapter = str(path)
        trainer_job = TrainerJob(
            stages=stages(plan.job.method, judged=judged),
            base=plan.base,
            parent_adapter=adapter,
            data=str(workspace.data),
            judge=str(workspace.judge),
            sft=parameters if isinstance(parameters, SftParameters) else None,
            dpo=parameters if isinstance(parameters, DpoParameters) else None,
            reward=plan.reward,
            evaluation=settings.evaluation,
            seed=plan.job.seed,
            threads=settings.threads,
            nice=settings.nice,
            fingerprint_texts=FINGERPRINT_TEXTS,
        )
        workspace.begin(folder, trainer_job)
        await self._process.run(folder, reporter.step, self.alive)

    async def _publish(
        self,
        plan: Plan,
        parameters: Trainable,
        dataset: Dataset,
        workspace: Workspace,
        candidate: Candidate,
    ) -> Ending:
        job, settings = plan.job, self._settings
        require_servable(candidate)
        version = self._name(plan, workspace)
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
        if plan.job.method is TrainingMethod.dpo:
            hyperparameters["reward"] = _kept(plan.reward)
        folder = workspace.folder / "publish"
        report = render(
            version,
            parent=plan.parent.version if plan.parent else "",
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
            base=plan.base,
            parent=plan.parent.version if plan.parent else "",
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

    def _name(self, plan: Plan, workspace: Workspace) -> str:
        """The version's name: the one chosen before a kill, unless it was taken meanwhile."""
        decided = workspace.load()
        taken = {version.record.version for version in self._registry.registry.versions()}
        if decided.version and decided.version not in taken:
            return decided.version
        parent = plan.parent.version if plan.parent else ""
        name = choose_name(
            plan.job.model, plan.job.method, wanted=plan.job.version, parent=parent, taken=taken
        )
        workspace.save(decided.model_copy(update={"version": name}))
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


def _succeeded(record: VersionRecord) -> Ending:
    gate = record.gate
    how = "the gate passed" if gate.passed else f"the gate was overridden by {gate.overridden_by}"
    return Ending(
        RunPhase.succeeded, f"{record.version}: {how}", record.version, dict(record.metrics)
    )


def _kept(parameters: BaseModel) -> dict[str, Any]:
    return parameters.model_dump(mode="json")
