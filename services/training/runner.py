"""Job runner: snapshot, attempts, publication and the final word of one job, each repeatable.

What an interrupted run left behind is used: the snapshot and the version's name from the job's
folder, the trainer's finished stages and checkpoints, and a record that is on the log already.
"""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import islice
from pathlib import Path

import structlog

from services.training.attempts import Attempts, Refused
from services.training.base_files import require_loadable, require_parents_base
from services.training.candidate import judge_figures, stages
from services.training.dataset_manifest import Dataset
from services.training.dataset_rows import HELDOUT, TRAIN
from services.training.dataset_store import DatasetStore
from services.training.diagnosis import diagnose
from services.training.errors import (
    InvalidJob,
    JudgeUnavailable,
    StoreUnavailable,
    TrainingError,
)
from services.training.job_datasets import JobDatasets
from services.training.metrics import TrainingMetrics
from services.training.outcome import JobOutcome, built, failed, rejected, succeeded
from services.training.policy import accounting, nearest, policy_of
from services.training.progress import FITTED, ProgressReporter
from services.training.publish import Publisher
from services.training.recorded_jobs import resolve_rebase
from services.training.resolve import ResolvedJob, job_hyperparameters, resolve
from services.training.reward_models import RewardModels, refusal
from services.training.run_spans import RunSpans
from services.training.settings import TrainingSettings
from services.training.tracking import MlflowTracker
from services.training.trainers.job import write_rows
from services.training.version_rebuild import VersionRebuilder
from services.training.workspace import Workspace, require_free
from shared.backoff import Backoff
from shared.clock import Clock
from shared.contracts.events.training import (
    RunPhase,
    TrainingCancelled,
    TrainingMethod,
    TrainingRequested,
)
from shared.contracts.recipes import search_space
from shared.kafka.log import EventLog, LogUnavailable
from shared.kafka.user_keys import TextsLocked
from shared.observability.events import Unavailable
from shared.observability.spans import OFF, Spans
from shared.redaction.detection import Redact
from shared.registry.adapters import AdapterError, AdapterUnavailable
from shared.registry.follow import RegistryFollower

log = structlog.get_logger(__name__)

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0
SHOWN_ROWS = 10
"""Rows left out that a log line names."""
OUTAGE_TRIES = 20
"""Tries of a job whose storage or AI judge does not answer, about ten minutes, before it fails."""


class Runner:
    """Does jobs, one at a time."""

    def __init__(
        self,
        *,
        event_log: EventLog,
        registry: RegistryFollower,
        store: DatasetStore,
        settings: TrainingSettings,
        metrics: TrainingMetrics,
        clock: Clock,
        redact: Redact,
        spans: Spans = OFF,
    ) -> None:
        self._log = event_log
        self._registry = registry
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._spans = RunSpans(spans, clock)
        self._moved = clock.monotonic()
        self._attempts = Attempts(settings, self.alive)
        self._datasets = JobDatasets(
            event_log=event_log,
            registry=registry,
            store=store,
            settings=settings,
            attempts=self._attempts,
            redact=redact,
            spans=self._spans,
            alive=self.alive,
        )
        self._rewards = RewardModels(
            event_log=event_log,
            registry=registry,
            datasets_root=store.root,
            settings=settings,
            clock=clock,
            alive=self.alive,
        )
        self._tracker = MlflowTracker(settings, metrics, clock)
        self._rebuilder = VersionRebuilder(
            event_log=event_log,
            store=store,
            settings=settings,
            attempts=self._attempts,
            alive=self.alive,
        )
        self._publisher = Publisher(
            event_log=event_log,
            registry=registry,
            datasets_root=store.root,
            settings=settings,
            clock=clock,
            spans=self._spans,
            alive=self.alive,
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

        While Kafka is unavailable it waits without limit, as no job can end without it; for
        storage and the AI judge it tries a bounded number of times. Any other error ends the job as failed, with
        the reason.
        """
        reporter = ProgressReporter(
            self._log, self._clock, self._metrics, job, attempts=self._settings.attempts
        )
        backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S)
        tries, last = 0, ""
        while True:
            self.alive()
            try:
                outcome = await self._outcome(job, reporter)
                await self._finish(reporter, outcome)
            except TextsLocked as error:
                return await self._fail(job, reporter, str(error))
            except LogUnavailable as error:
                log.warning(Unavailable.kafka, during="job", job_id=job.job_id, error=str(error))
            except (StoreUnavailable, AdapterUnavailable) as error:
                tries, last = tries + 1, str(error)
                log.warning(
                    Unavailable.storage, during="job", job_id=job.job_id, error=last, tries=tries
                )
            except JudgeUnavailable as error:
                tries, last = tries + 1, str(error)
                log.warning(
                    Unavailable.judge, during="job", job_id=job.job_id, error=last, tries=tries
                )
            except (TrainingError, AdapterError) as error:
                return await self._fail(job, reporter, str(error))
            except Exception as error:
                log.exception("job.broken", job_id=job.job_id)
                return await self._fail(job, reporter, f"{type(error).__name__}: {error}")
            else:
                await self._ended(job, outcome)
                return outcome
            if tries >= OUTAGE_TRIES:
                return await self._fail(job, reporter, last)
            await self._clock.sleep(backoff.next_s())

    async def refuse(self, job: TrainingRequested) -> bool:
        """End a job at once whose hyperparameters are wrong; tells whether it did.

        Such a job need not wait behind a running one to be told so.
        """
        try:
            job_hyperparameters(job, self._settings)
        except InvalidJob as error:
            reporter = ProgressReporter(self._log, self._clock, self._metrics, job)
            await self._fail(job, reporter, str(error))
            return True
        return False

    async def cancel(self, job: TrainingRequested, event: TrainingCancelled) -> None:
        """End a job that a person cancelled; its trainer has ended already."""
        why = f": {event.reason}" if event.reason else ""
        reporter = ProgressReporter(self._log, self._clock, self._metrics, job)
        await self._fail(job, reporter, f"cancelled by {event.actor}{why}")

    async def _fail(
        self, job: TrainingRequested, reporter: ProgressReporter, message: str
    ) -> JobOutcome:
        outcome = failed(message)
        backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S)
        while True:
            self.alive()
            try:
                await self._finish(reporter, outcome)
            except LogUnavailable as error:
                log.warning(Unavailable.kafka, during="job", job_id=job.job_id, error=str(error))
                await self._clock.sleep(backoff.next_s())
            else:
                await self._ended(job, outcome)
                return outcome

    @staticmethod
    async def _finish(reporter: ProgressReporter, outcome: JobOutcome) -> None:
        await reporter.finish(outcome)

    async def _ended(self, job: TrainingRequested, outcome: JobOutcome) -> None:
        self._metrics.runs.labels(job.method.value, outcome.phase.value).inc()
        self._metrics.note_outcome(job.model, outcome)
        self._spans.ended(job, outcome)
        log.info(
            "job.ended",
            job_id=job.job_id,
            outcome=outcome.phase.value,
            version=outcome.version,
            message=outcome.message,
        )
        workspace = Workspace(self.jobs, job.job_id)
        if workspace.folder.exists():
            await self._tracker.track(job, outcome, workspace)
        workspace.tidy()

    async def _outcome(self, job: TrainingRequested, reporter: ProgressReporter) -> JobOutcome:
        """Take the job through its phases; a version with its record needs only the final word."""
        made = self._publisher.registered_by(job)
        if made is not None:
            return succeeded(made)
        await reporter.enter(RunPhase.accepted, 0.0)
        if job.rebuilds:
            require_free(self.jobs, self._settings.min_free_bytes)
            workspace = Workspace(self.jobs, job.job_id)
            return await self._rebuilder.run(job, self._registry.registry, workspace, reporter)
        resolve_job = resolve_rebase if job.rebases else resolve
        resolved = resolve_job(job, self._registry.registry, self._settings)
        job = resolved.job
        require_free(self.jobs, self._settings.min_free_bytes)
        require_loadable(resolved.base)
        await require_parents_base(resolved, self._settings, self.alive)
        if resolved.parent and job.method is TrainingMethod.dpo and not job.builds_dataset:
            # One that is gone is told of before rows are taken.
            await self._attempts.adapters.of(resolved.parent)
        workspace = Workspace(self.jobs, job.job_id)
        await reporter.enter(RunPhase.snapshot, FITTED[0])
        dataset = await self._datasets.take(resolved, workspace, reporter)
        manifest = dataset.manifest
        log.info(
            "job.snapshot",
            job_id=job.job_id,
            dataset_id=manifest.dataset_id,
            rows={name: file.rows for name, file in manifest.files.items()},
            refused=manifest.refused,
            left_out=[str(row) for row in islice(dataset.left_out_rows(), SHOWN_ROWS)],
        )
        if job.builds_dataset:
            return built(dataset.reference(self._store.root))
        await self._datasets.lay_out_predecessors_pairs(resolved, workspace)
        if job.method is TrainingMethod.reward:
            return await self._reward_model(resolved, dataset, workspace, reporter)
        await self._datasets.lay_out_cases(resolved, workspace)
        registry = self._registry.registry
        chain = resolved.lineage(registry)
        policy = partial(policy_of, registry=registry)
        train, heldout = dataset.rows(TRAIN), dataset.rows(HELDOUT)
        if not workspace.nearest.exists():
            await asyncio.to_thread(write_rows, workspace.nearest, nearest(heldout, chain, policy))
        figures = accounting(train, chain, job.requested_at, policy)
        result = await self._attempts.run(resolved, manifest, workspace, reporter, figures)
        if manifest.origin == "log" and not job.rebases:
            await self._rewards.publish(resolved, dataset, workspace)
        if isinstance(result, Refused):
            diagnosis = diagnose(
                result.gate,
                result.figures,
                method=manifest.method,
                card=manifest.card,
                refused=manifest.refused,
                tried=result.tried,
                gave_up=result.gave_up,
                space=search_space(resolved.hyperparameters),
            )
            uri = await self._publisher.report(resolved, result, diagnosis, dataset, workspace)
            return rejected(
                result.gate,
                result.figures,
                diagnosis,
                manifest.refused,
                report_uri=uri,
                attempt=result.attempt,
            )
        record = await self._publisher.publish(resolved, result, dataset, workspace)
        return succeeded(record)

    async def _reward_model(
        self,
        resolved: ResolvedJob,
        dataset: Dataset,
        workspace: Workspace,
        reporter: ProgressReporter,
    ) -> JobOutcome:
        """Train the reward model alone and publish it; it makes no version."""
        await self._attempts.train(
            resolved,
            resolved.hyperparameters,
            workspace,
            workspace.attempt(1),
            reporter,
            stages=stages(resolved.job.recipe_method, judged=True),
        )
        figures = judge_figures(workspace.judge)
        made = await self._rewards.publish(resolved, dataset, workspace)
        if made is None:
            message = f"not published: {refusal(figures, resolved, self._settings.gate)}"
            return JobOutcome(RunPhase.rejected, message, metrics=figures)
        return JobOutcome(RunPhase.succeeded, f"{made.name}: published", metrics=figures)
