"""Evaluations of versions of settings: recorded prompts, answered beside stable by the engine.

The batch worker answers them after all live traffic. One evaluation runs at a time; the result is
a part of the version in the registry.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Protocol

import structlog
from pydantic import BaseModel, ConfigDict, Field

from services.rollout.errors import Conflict, EvaluationUnavailable, NotAllowed, Unknown
from services.rollout.evaluation import EvaluatedPair, evaluated
from services.rollout.recorded_prompts import recorded_prompts
from shared.clock import Clock
from shared.contracts.events.base import OptionalIdentifier
from shared.contracts.events.generations import GenerationFinished, GenerationRequested
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.versions import SettingsEvaluation, SettingsRecord, evaluation_key
from shared.contracts.subject import subject_of
from shared.contracts.topics import VERSIONS
from shared.http.reward_scores import ScoredAnswer
from shared.kafka.generations import generation_record
from shared.kafka.log import EventLog, LogUnavailable, NewRecord
from shared.observability.events import Unavailable
from shared.registry.versions import Registry
from shared.validation import field_refusal

log = structlog.get_logger(__name__)

SOURCE = "/ratchet/rollout"
MIN_PROMPTS = 10
MAX_PROMPTS = 128
MAX_TOKENS = 512
"""Of an answer, where the version sets no limit of its own."""
DEADLINE_S = 1_800.0
"""The batch worker serves after all live traffic, so an evaluation may take long."""
MAX_WAITING = 4
MAX_KNOWN = 64
"""Evaluations whose progress is remembered."""
TEXT_ROLES = frozenset(("system", "user", "assistant"))
"""Roles of the turns that a reward model reads."""


class EvaluateRequest(BaseModel):
    """Evaluate a version of settings on so many recorded prompts, who wants it, and why."""

    model_config = ConfigDict(extra="forbid")
    prompts: int = Field(default=64, ge=MIN_PROMPTS, le=MAX_PROMPTS)
    on_behalf_of: OptionalIdentifier = ""
    reason: Annotated[str, Field(min_length=1, max_length=1000)]


class AnswerScorer(Protocol):
    """Scores answers by the model's newest reward model."""

    async def scores(self, model: str, answers: Sequence[ScoredAnswer]) -> tuple[str, list[float]]:
        """The reward model's name and a score for each answer; an empty name where there is none."""
        ...


@dataclass(slots=True)
class RunningEvaluation:
    """An evaluation that waits, runs or has failed: its prompts, and the results so far by id."""

    record: SettingsRecord
    against: str
    prompts: Sequence[InteractionRecorded]
    request: EvaluateRequest
    actor: str
    batch: str
    results: dict[str, GenerationFinished] = field(default_factory=dict)
    whole: asyncio.Event = field(default_factory=asyncio.Event)
    failed: str = ""
    asked: frozenset[str] = frozenset()
    """Ids of all its requests."""

    def __post_init__(self) -> None:
        self.asked = frozenset(
            self.request_id(number, version)
            for number in range(len(self.prompts))
            for version in (self.against, self.record.version)
        )

    def request_id(self, number: int, version: str) -> str:
        """Id of the request of one prompt by one version."""
        return f"{self.batch}/{number}/{version}"

    def pairs(self) -> list[EvaluatedPair]:
        """The results of each prompt."""
        return [
            EvaluatedPair(
                self.results.get(self.request_id(number, self.record.version)),
                self.results.get(self.request_id(number, self.against)),
            )
            for number in range(len(self.prompts))
        ]

    def progress(self) -> dict[str, Any]:
        """For the API."""
        return {
            "against": self.against,
            "prompts": len(self.prompts),
            "answers": len(self.results),
            "failed": self.failed,
        }


class Evaluations:
    """Begins evaluations, gathers their results and writes them to the registry's topic."""

    def __init__(
        self, event_log: EventLog, registry: Registry, scorer: AnswerScorer, clock: Clock
    ) -> None:
        self._log = event_log
        self._registry = registry
        self._scorer = scorer
        self._clock = clock
        self._waiting: asyncio.Queue[RunningEvaluation] = asyncio.Queue(MAX_WAITING)
        self._known: dict[str, RunningEvaluation] = {}
        self._beginning = asyncio.Lock()

    async def begin(self, version: str, request: EvaluateRequest, actor: str) -> dict[str, Any]:
        """Read the prompts and queue the evaluation; returns its progress.

        Raises:
            RolloutError: it cannot be evaluated, or not now.

        """
        # Reading takes a while and many records: one call at a time, and the next one sees this one.
        async with self._beginning:
            running = await self._prepared(version, request, actor)
            try:
                self._waiting.put_nowait(running)
            except asyncio.QueueFull:
                raise EvaluationUnavailable("too many evaluations wait; try again later") from None
            while len(self._known) >= MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[version] = running
        return running.progress()

    def progress(self, version: str) -> dict[str, Any] | None:
        """Of an evaluation that this replica runs, or that failed on it; else None."""
        running = self._known.get(version)
        return running.progress() if running is not None else None

    def take(self, result: GenerationFinished) -> None:
        """Take a result of the batch worker; others' results, and those not asked for, are left."""
        for running in self._known.values():
            if running.batch == result.batch_id and result.request_id in running.asked:
                running.results[result.request_id] = result
                if len(running.results) == len(running.asked):
                    running.whole.set()

    async def run(self) -> None:
        """Run one evaluation after the other, until cancelled."""
        while True:
            running = await self._waiting.get()
            try:
                await self._evaluate(running)
            except LogUnavailable as error:
                log.warning(Unavailable.kafka, during="evaluation", error=str(error))
                running.failed = f"the log is unavailable: {error}; ask again"
            else:
                self._known.pop(running.record.version, None)

    async def _prepared(
        self, version: str, request: EvaluateRequest, actor: str
    ) -> RunningEvaluation:
        record, against = self._checked(version)
        batch = f"evaluation-{secrets.token_hex(8)}"
        try:
            prompts = await recorded_prompts(self._log, record.model, request.prompts, batch)
        except LogUnavailable as error:
            raise EvaluationUnavailable(
                f"the recorded prompts could not be read: {error}; try again"
            ) from None
        if len(prompts) < MIN_PROMPTS:
            raise Conflict(
                f"{record.model} has {len(prompts)} recorded prompts that can be asked again, and "
                f"an evaluation needs {MIN_PROMPTS}; wait for traffic"
            )
        return RunningEvaluation(record, against, prompts, request, actor, batch)

    def _checked(self, version: str) -> tuple[SettingsRecord, str]:
        record, known = self._registry.settings(version), self._registry.get(version)
        if known is None:
            raise Unknown(f"version {version}: unknown; GET /v1/versions lists them")
        if record is None:
            raise field_refusal(
                NotAllowed,
                "version",
                f"{version} is trained, and its own gate evaluated it",
                "read that with ratchet train report",
            )
        stable = self._registry.stable(record.model)
        if stable is None or stable.record.version == version:
            raise Conflict(
                f"model {record.model} has no other stable version to compare with; "
                "release one first"
            )
        running = self._known.get(version)
        if running is not None and not running.failed:
            raise Conflict(f"version {version} is being evaluated; wait for the result")
        return record, stable.record.version

    async def _evaluate(self, running: RunningEvaluation) -> None:
        await self._ask(running)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await running.whole.wait()
        except TimeoutError:
            log.warning("evaluation.incomplete", version=running.record.version)
        reward_model, pairs = await self._scored(running)
        record = running.record
        evaluation = SettingsEvaluation(
            version=record.version,
            model=record.model,
            against=running.against,
            prompts=len(pairs),
            pairs=sum(pair.answered for pair in pairs),
            reward_model=reward_model,
            gate=evaluated(pairs),
            actor=running.actor,
            on_behalf_of=running.request.on_behalf_of,
            reason=running.request.reason,
            at=self._clock.now(),
        )
        key = evaluation_key(record.version)
        await self._log.publish(VERSIONS, key=key, event=evaluation, event_id=running.batch)
        log.info("version.evaluated", version=record.version, passed=evaluation.gate.passed)

    async def _ask(self, running: RunningEvaluation) -> None:
        """Write the requests for the batch worker, those of both versions of a prompt together."""
        expires_at = self._clock.now() + timedelta(seconds=DEADLINE_S)
        records: list[NewRecord] = []
        for number, prompt in enumerate(running.prompts):
            subject = subject_of(prompt.tenant, prompt.user_id)
            for version in (running.against, running.record.version):
                request = GenerationRequested(
                    request_id=running.request_id(number, version),
                    batch_id=running.batch,
                    purpose="evaluation",
                    version=version,
                    messages=prompt.messages,
                    tools=prompt.tools,
                    sampling=self._sampling(version),
                    expires_at=expires_at,
                    tenant=prompt.tenant,
                    subjects=(subject,) if subject else (),
                )
                records.append(generation_record(request, source=SOURCE, time=self._clock.now()))
        await self._log.append_many(records)

    def _sampling(self, version: str) -> dict[str, Any]:
        """What a client asks for who leaves sampling to the version."""
        settings = self._registry.settings(version)
        limited = settings is not None and settings.settings.defaults.max_tokens is not None
        return {} if limited else {"max_tokens": MAX_TOKENS}

    async def _scored(self, running: RunningEvaluation) -> tuple[str, list[EvaluatedPair]]:
        """The pairs with their scores, where a reward model can read them, and its name."""
        pairs = running.pairs()
        readable = [
            number
            for number, (pair, prompt) in enumerate(zip(pairs, running.prompts, strict=True))
            if pair.answered and _is_text(prompt)
        ]
        answers: list[ScoredAnswer] = []
        for number in readable:
            for result in (pairs[number].candidate, pairs[number].stable):
                assert result is not None
                answers.append((running.prompts[number].messages, result.completion))
        if not answers:
            return "", pairs
        reward_model, scores = await self._scorer.scores(running.record.model, answers)
        if reward_model:
            for place, number in enumerate(readable):
                pair = pairs[number]
                both = (scores[2 * place], scores[2 * place + 1])
                pairs[number] = EvaluatedPair(pair.candidate, pair.stable, both)
        return reward_model, pairs


def _is_text(prompt: InteractionRecorded) -> bool:
    return all(turn.is_text and turn.role in TEXT_ROLES for turn in prompt.messages)
