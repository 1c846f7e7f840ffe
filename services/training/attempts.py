"""Training attempts: train, evaluate and gate a candidate; adjust and try again a bounded number
of times.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import structlog

from services.training.adjustment import (
    Tried,
    directed,
    direction,
    nearest,
    search_request,
)
from services.training.ai_opinion import AiJudge, second_opinion
from services.training.candidate import Candidate, read_candidate, stages
from services.training.dataset_manifest import Dataset, Manifest
from services.training.dataset_rows import (
    HELDOUT,
    JUDGE,
    PROMPTS,
    LeftOut,
)
from services.training.dataset_store import lay_out
from services.training.errors import TrainerGaveUp
from services.training.fetched_adapters import FetchedAdapters
from services.training.gate import data_gate
from services.training.process import TrainerProcess
from services.training.progress import ProgressReporter
from services.training.resolve import ResolvedJob
from services.training.settings import TrainingSettings
from services.training.trainers.job import (
    SEARCH_REQUEST,
    Stage,
    TrainerJob,
    iterate_rows,
    write_json,
)
from services.training.workspace import Workspace
from shared.contracts.events.training import RunPhase, TrainingMethod
from shared.contracts.events.versions import GateResult, RewardRecord, VersionRecord
from shared.contracts.recipes import MethodName, TrainerHyperparameters, search_space
from shared.registry.adapters import FINGERPRINT_TEXTS, AdapterGone

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Released:
    """A candidate that the gate or an override lets pass, and what it was trained with."""

    candidate: Candidate
    hyperparameters: TrainerHyperparameters
    tried: tuple[Tried, ...]
    """All attempts, this one last."""


@dataclass(frozen=True)
class Refused:
    """What the gate refused: the attempt nearest to passing, or none where nothing was trained."""

    gate: GateResult
    figures: Mapping[str, float]
    tried: tuple[Tried, ...] = ()
    candidate: Candidate | None = None
    hyperparameters: TrainerHyperparameters | None = None
    attempt: int = 0
    """Its number."""
    gave_up: str = ""
    """Why a further attempt ended without a candidate, for example its loss was no finite number."""


@dataclass(frozen=True)
class FirstAdapter:
    """The adapter of the chain's first version: its folder, or why it cannot be had."""

    path: str = ""
    gone: str = ""


class Attempts:
    """Runs the attempts of one job at a time."""

    def __init__(self, settings: TrainingSettings, alive: Callable[[], None]) -> None:
        """`alive` is called while a trainer is watched."""
        self._settings = settings
        self._alive = alive
        self.adapters = FetchedAdapters(settings)
        self._process = TrainerProcess(
            python=settings.python,
            threads=settings.threads,
            stall_s=settings.stall_s,
            restarts=settings.restarts,
            accelerate=settings.accelerate,
            min_free_bytes=settings.min_free_bytes,
        )

    async def run(
        self,
        resolved: ResolvedJob,
        manifest: Manifest,
        workspace: Workspace,
        reporter: ProgressReporter,
        known_of_data: Mapping[str, float],
    ) -> Released | Refused:
        """A released candidate, or what the gate refused.

        `known_of_data` are figures of the dataset, for the record.

        Raises:
            TrainerFailed: the trainer ended without a result; where it gave up, at the first attempt.
            AdapterError: the parent's adapter cannot be fetched.
            JudgeUnavailable: an AI judge is set and does not answer.

        """
        job, limits = resolved.job, self._settings.gate
        known = _rows_of(manifest)
        todo = stages(
            job.recipe_method,
            judged=known["judge_pairs"] >= limits.min_judge_pairs,
            harness=bool(self._settings.evaluation.lm_eval_tasks),
        )
        first = await self._first(resolved)
        hopeless = data_gate(job.method, known, limits, first.gone)
        if not hopeless.passed and not job.override_gate:
            return Refused(hopeless, known)
        space = search_space(resolved.hyperparameters)
        hyperparameters, chosen_by = resolved.hyperparameters, "recipe"
        tried: list[Tried] = []
        candidates: list[Candidate] = []
        while True:
            number = len(tried) + 1
            reporter.attempt = number
            folder = workspace.attempt(number)
            try:
                await self.train(
                    resolved,
                    hyperparameters,
                    workspace,
                    folder,
                    reporter,
                    stages=todo,
                    first_adapter=first.path,
                )
            except TrainerGaveUp as error:
                if not tried:
                    raise
                return _refused(tried, candidates, gave_up=str(error))
            await self._second_opinion(job.method, manifest, workspace, folder, reporter)
            await reporter.enter(RunPhase.gating, 1.0)
            candidate = read_candidate(
                folder,
                workspace.judge,
                job=job,
                manifest=manifest,
                limits=limits,
                evaluation=self._settings.evaluation,
                known=known_of_data,
                first_gone=first.gone,
                predecessor=resolved.predecessor.name if resolved.predecessor else "",
            )
            gate = candidate.gate
            way = direction(hyperparameters, gate, candidate.figures)
            tried.append(Tried(hyperparameters, chosen_by, gate, way))
            candidates.append(candidate)
            _log_gate(job.job_id, tried, candidate)
            if gate.passed or job.override_gate:
                return Released(candidate, hyperparameters, tuple(tried))
            if way is None or number >= self._settings.attempts:
                return _refused(tried, candidates)
            moved, chosen_by = directed(tried, space), "rule"
            if moved is None:
                moved, chosen_by = (
                    await self._searched(resolved, tried, workspace, reporter),
                    "search",
                )
            hyperparameters = moved

    async def _searched(
        self,
        resolved: ResolvedJob,
        tried: Sequence[Tried],
        workspace: Workspace,
        reporter: ProgressReporter,
    ) -> TrainerHyperparameters:
        """The next hyperparameters by the search, the same whenever these attempts are followed.

        Raises:
            TrainerFailed: the trainer ended without a result.

        """
        own = resolved.hyperparameters
        folder = workspace.fresh("search")
        asked = search_request(tried, search_space(own), resolved.job.seed)
        write_json(folder / SEARCH_REQUEST, asked.model_dump(mode="json"))
        job = self._trainer_job(resolved, own, workspace, stages=("search",), data=workspace.data)
        write_json(folder / "job.json", job.model_dump(mode="json"))
        await self._process.run(folder, reporter.step, self._alive)
        chosen: dict[str, float] = json.loads((folder / "search.json").read_bytes())["parameters"]
        log.info("job.searched", job_id=resolved.job.job_id, attempt=len(tried) + 1, **chosen)
        return own.model_copy(update=chosen)

    async def _second_opinion(
        self,
        method: TrainingMethod,
        manifest: Manifest,
        workspace: Workspace,
        folder: Path,
        reporter: ProgressReporter,
    ) -> None:
        """Ask the AI judge about an attempt's answers, where one is set and there is a parent's."""
        settings = self._settings.evaluation
        if not settings.judge_url or method is TrainingMethod.sft:
            return
        await reporter.enter(RunPhase.judging, 0.99, f"asking {settings.judge_model}")
        judge = AiJudge(
            settings.judge_url,
            settings.judge_model,
            settings.judge_criteria,
            self._settings.judge_key(),
        )
        heldout = iterate_rows(workspace.data / HELDOUT)
        await second_opinion(judge, folder, heldout, manifest.rules.people_only, self._alive)

    async def fit(
        self,
        resolved: ResolvedJob,
        dataset: Dataset,
        workspace: Workspace,
        reporter: ProgressReporter,
    ) -> tuple[LeftOut, ...]:
        """Rows of the dataset that the base's chat template refuses or that are too long for it.

        Raises:
            TrainerFailed: the trainer ended without a result.

        """
        folder = workspace.fresh("fit")
        await asyncio.to_thread(lay_out, dataset, folder / "data")
        job = self._trainer_job(
            resolved,
            resolved.hyperparameters,
            workspace,
            stages=("fit",),
            data=folder / "data",
        )
        write_json(folder / "job.json", job.model_dump(mode="json"))
        await self._process.run(folder, reporter.step, self._alive)
        found = json.loads((folder / "fit.json").read_bytes())["left_out"]
        return tuple(LeftOut.model_validate(row) for row in found)

    async def train(
        self,
        resolved: ResolvedJob,
        hyperparameters: TrainerHyperparameters,
        workspace: Workspace,
        folder: Path,
        reporter: ProgressReporter,
        *,
        stages: tuple[Stage, ...],
        first_adapter: str = "",
    ) -> None:
        """Run some of the trainer's stages of one attempt, from its checkpoints where it has some.

        A predecessor whose adapter or dataset is gone is not compared with.

        Raises:
            TrainerFailed: the trainer ended without a result.
            AdapterError: the parent's adapter cannot be fetched.

        """
        continues = resolved.job.method is TrainingMethod.dpo
        parent = await self._fetched(resolved.parent if continues else None)
        comparable = "reward" in stages and workspace.predecessor_pairs.exists()
        try:
            predecessor = await self._fetched(resolved.predecessor if comparable else None)
        except AdapterGone as error:
            log.warning("reward.predecessor_gone", job_id=resolved.job.job_id, error=str(error))
            predecessor = ""
        trainer_job = self._trainer_job(
            resolved,
            hyperparameters,
            workspace,
            stages=stages,
            data=workspace.data,
            parent_adapter=parent,
            first_adapter=first_adapter,
            predecessor=predecessor,
            predecessor_pairs=str(workspace.predecessor_pairs) if predecessor else "",
        )
        workspace.begin(folder, trainer_job)
        await self._process.run(folder, reporter.step, self._alive)

    async def _first(self, resolved: ResolvedJob) -> FirstAdapter:
        """The adapter of the chain's first version, or why there is none.

        The parent's is fetched before it: a volume that is not mounted has neither, and the job is
        tried again.

        Raises:
            AdapterError: the parent's adapter cannot be fetched, or storage does not answer.

        """
        if resolved.job.method is not TrainingMethod.dpo or resolved.first is None:
            return FirstAdapter()
        await self._fetched(resolved.parent)
        try:
            return FirstAdapter(path=await self._fetched(resolved.first))
        except AdapterGone:
            first = resolved.first
            log.warning("job.first_adapter_gone", job_id=resolved.job.job_id, version=first.version)
            return FirstAdapter(
                gone=f"the adapter of {first.version} is gone from {first.adapter_uri}"
            )

    async def _fetched(self, record: VersionRecord | RewardRecord | None) -> str:
        """The folder with an adapter's files; empty without a record."""
        return str(await self.adapters.of(record)) if record else ""

    def _trainer_job(
        self,
        resolved: ResolvedJob,
        hyperparameters: TrainerHyperparameters,
        workspace: Workspace,
        *,
        stages: tuple[Stage, ...],
        data: Path,
        parent_adapter: str = "",
        first_adapter: str = "",
        predecessor: str = "",
        predecessor_pairs: str = "",
    ) -> TrainerJob:
        settings = self._settings
        return TrainerJob(
            stages=stages,
            base=resolved.base,
            base_revision=settings.revision_of(resolved.base),
            parent_adapter=parent_adapter,
            first_adapter=first_adapter,
            predecessor=predecessor,
            predecessor_pairs=predecessor_pairs,
            data=str(data),
            judge=str(workspace.judge),
            nearest=str(workspace.nearest),
            cases=str(workspace.cases),
            method=cast("MethodName", resolved.job.recipe_method),
            hyperparameters=hyperparameters.model_dump(mode="json"),
            reward=resolved.reward,
            evaluation=settings.evaluation,
            generation=settings.generation,
            seed=resolved.job.seed,
            threads=settings.threads,
            nice=settings.nice,
            fingerprint_texts=FINGERPRINT_TEXTS,
        )


def _rows_of(manifest: Manifest) -> dict[str, float]:
    """What the dataset alone tells the gate."""
    files = {"judge_pairs": JUDGE, "heldout": HELDOUT, "judged": PROMPTS}
    return {name: float(manifest.files[file].rows) for name, file in files.items()}


def _refused(tried: Sequence[Tried], candidates: Sequence[Candidate], gave_up: str = "") -> Refused:
    best = nearest(tried)
    candidate = candidates[best]
    return Refused(
        candidate.gate,
        candidate.figures,
        tuple(tried),
        candidate,
        tried[best].parameters,
        attempt=best + 1,
        gave_up=gave_up,
    )


def _log_gate(job_id: str, tried: Sequence[Tried], candidate: Candidate) -> None:
    last = tried[-1]
    log.info(
        "job.gate",
        job_id=job_id,
        attempt=len(tried),
        chosen_by=last.chosen_by,
        passed=candidate.gate.passed,
        failed=list(last.failed),
        shortfall=last.shortfall,
        figures=candidate.figures,
    )
