"""What a job trains on: the log's rows, an import, or the stored dataset of a version; and its cases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from services.training.attempts import Attempts
from services.training.dataset_manifest import Dataset
from services.training.dataset_rows import JUDGE, AskedPrompt
from services.training.dataset_store import DatasetStore, lay_out, read_import
from services.training.errors import BadDataset, InvalidJob
from services.training.import_check import checked_import
from services.training.policy import settings_policies
from services.training.progress import ProgressReporter
from services.training.recorded_jobs import named_anew, recorded
from services.training.resolve import ResolvedJob
from services.training.run_spans import RunSpans
from services.training.settings import TrainingSettings
from services.training.snapshot import take_snapshot
from services.training.trainers.job import write_rows
from services.training.workspace import ResumeState, Workspace
from shared.contracts.events.training import TrainingMethod, TrainingRequested
from shared.contracts.topics import CASES, PREFERENCES
from shared.kafka.envelope import UnreadableRecord, decode
from shared.kafka.log import EventLog, read_to_end
from shared.redaction.detection import Redact
from shared.registry.cases import CASE_MODELS, FailureMemory, rolled_back
from shared.registry.follow import RegistryFollower

log = structlog.get_logger(__name__)

CASES_TIMEOUT_S = 600.0
"""Longest wait for the failure memory to be read to its end."""


class JobDatasets:
    """Takes the datasets of jobs, stores them and lays them out; the same ones after a kill."""

    def __init__(
        self,
        *,
        event_log: EventLog,
        registry: RegistryFollower,
        store: DatasetStore,
        settings: TrainingSettings,
        attempts: Attempts,
        redact: Redact,
        spans: RunSpans,
        alive: Callable[[], None],
    ) -> None:
        """`alive` is called while rows are read and selected."""
        self._log = event_log
        self._registry = registry
        self._store = store
        self._settings = settings
        self._attempts = attempts
        self._redact = redact
        self._spans = spans
        self._alive = alive

    async def take(
        self, resolved: ResolvedJob, workspace: Workspace, reporter: ProgressReporter
    ) -> Dataset:
        """The job's snapshot: the one taken before a kill, or a new one, stored and laid out."""
        job, resume, start_ns = resolved.job, workspace.load(), self._spans.now_ns()
        if resume.dataset_id:
            known = await asyncio.to_thread(self._store.read, resume.dataset_id)
            if known is not None:
                await asyncio.to_thread(lay_out, known, workspace.data)
                return known
        taken = await self._taken(resolved)
        left_out = await self._attempts.fit(resolved, taken, workspace, reporter)
        dataset = taken.without(left_out)
        if job.rebases and left_out:
            dataset = named_anew(dataset)
        await asyncio.to_thread(self._store.write, dataset)
        await asyncio.to_thread(lay_out, dataset, workspace.data)
        workspace.save(ResumeState(job_id=job.job_id, dataset_id=dataset.manifest.dataset_id))
        self._spans.snapshot(job, dataset, start_ns)
        return dataset

    async def lay_out_predecessors_pairs(self, resolved: ResolvedJob, workspace: Workspace) -> None:
        """Write the pairs that the last published reward model learned from, where they are known.

        The job's own judge is compared with it on other pairs, and not at all where its dataset is
        gone or broken.

        Raises:
            StoreUnavailable: the storage did not answer.

        """
        predecessor, place = resolved.predecessor, workspace.predecessor_pairs
        place.unlink(missing_ok=True)
        if predecessor is None:
            return
        name = predecessor.dataset.dataset_id
        try:
            stored = await asyncio.to_thread(self._store.read, name)
        except BadDataset as error:
            stored, why = None, str(error)
        else:
            why = f"{name} is gone from {self._store.root}"
        if stored is None:
            log.warning(
                "reward.predecessor_gone",
                job_id=resolved.job.job_id,
                reward_model=predecessor.name,
                error=why,
            )
            return
        await asyncio.to_thread(write_rows, place, stored.rows(JUDGE))

    async def _taken(self, resolved: ResolvedJob) -> Dataset:
        """What a job trains on, with rows that may not fit its base: an import, the log's rows, or
        the stored dataset of the version that is made again.
        """
        job = resolved.job
        if job.rebases:
            return await self._recorded_dataset(job)
        imported = None
        if job.dataset_uri:
            imported = await asyncio.to_thread(
                read_import,
                job.dataset_uri,
                self._settings.readable_import_roots,
                strict=job.strict,
            )
            imported = await checked_import(imported, self._redact, self._alive)
        rules = self._settings.rules.model_copy(
            update={"prompts": self._settings.evaluation.prompts}
        )
        if rules.lag_weight < 1:
            chain = resolved.lineage(self._registry.registry)
            policies = settings_policies(chain, self._registry.registry)
            rules = rules.model_copy(update={"lineage": chain, "policies": policies})
        return await take_snapshot(
            self._log,
            model=job.model,
            method=job.method,
            rules=rules,
            labelled=self._takes_thumbs(job),
            imported=imported,
            alive=self._alive,
        )

    async def _recorded_dataset(self, job: TrainingRequested) -> Dataset:
        registry = self._registry.registry
        recorded_as = recorded(job.rebases, job.model, registry, field="rebases").dataset.dataset_id
        stored = await asyncio.to_thread(self._store.read, recorded_as)
        if stored is None:
            raise InvalidJob(
                f"rebases: {recorded_as}, the dataset of {job.rebases}, is gone from "
                f"{self._store.root}; restore it, or train on the log's pairs"
            )
        return stored

    def _takes_thumbs(self, job: TrainingRequested) -> bool:
        """Whether a dataset has single answers: KTO's, and its judge's where there is no vote."""
        if job.method is TrainingMethod.reward and not job.dataset_uri:
            return self._settings.method == "kto"
        return job.algorithm == "kto"

    async def lay_out_cases(self, resolved: ResolvedJob, workspace: Workspace) -> None:
        """Write the failure cases that this job's candidates are asked; the same after a kill."""
        if workspace.cases.exists():
            return
        memory = FailureMemory()
        records = await read_to_end(self._log, PREFERENCES, CASES, timeout_s=CASES_TIMEOUT_S)
        for record in records:
            self._alive()
            with contextlib.suppress(UnreadableRecord):
                memory.apply(decode(record.headers, record.value, CASE_MODELS))
        cases = [
            case
            for case in memory.cases(rolled_back(self._registry.registry))
            if case.model == resolved.job.model and not case.retired
        ]
        rows = [
            {
                "case_id": case.case_id,
                "name": case.kind,
                **AskedPrompt(case.messages).row(),
                "good": case.good,
                "bad": case.bad,
            }
            for case in cases[max(0, len(cases) - self._settings.evaluation.cases) :]
        ]
        workspace.folder.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(write_rows, workspace.cases, rows)
