"""Batch worker: serves `generations.requests.v1` at the lowest priority, beside live traffic.

The engine schedules by priority, so a waiting live request always goes first; the worker also
holds back by itself while live requests run, for what runs already shares the engine's time.
Each request gets one result. After a crash some are made again: same request_id, so readers drop
the second. One that expired long ago gets none, as nobody waits for it any more: a group that is new
begins at the topic's beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import structlog

from services.inference.admission import BatchAdmission
from services.inference.comparison import compare
from services.inference.engine import EngineClient
from services.inference.errors import EngineLacks, EngineRefused, EngineUnavailable, Stopping
from services.inference.generation_spans import GenerationSpans
from services.inference.metrics import InferenceMetrics
from shared.clock import Clock
from shared.contracts.conversation import answer_text, openai_tools, openai_turn
from shared.contracts.events.base import MAX_TEXT, Event, Message
from shared.contracts.events.generations import (
    GenerationFinished,
    GenerationRequested,
    ShadowComparison,
)
from shared.contracts.events.versions import SettingsRecord
from shared.contracts.topics import GENERATION_REQUESTS, GENERATION_RESULTS
from shared.kafka.envelope import header
from shared.kafka.log import EventLog, Record
from shared.observability import span_attributes as names
from shared.observability.events import Unavailable
from shared.observability.spans import AttributeValue
from shared.observability.tracing import parse_traceparent
from shared.redaction.detection import Redact, Shortened, by_rules, redacted
from shared.redaction.turns import clean_turn
from shared.registry.served_settings import chat_body
from shared.withheld import UNCHECKED

log = structlog.get_logger(__name__)

T = TypeVar("T")

PRIORITY = 100
"""vLLM serves higher numbers later; live traffic has 0."""
ATTEMPTS = 3
RECENT = 10_000
"""Request ids remembered, so that a repeated request gets no second result."""
MAX_ERROR = 500
STALE_S = 3_600.0
"""After its expiry nobody waits for a result; the longest wait of a reader is half an hour."""


class Adapters(Protocol):
    """The part of the agent that the worker uses."""

    async def wait_ready(self, version: str, timeout_s: float) -> bool:
        """Wait until the version may serve here."""
        ...

    def is_elsewhere(self, version: str) -> bool:
        """Whether engines of another base serve the version."""
        ...


@dataclass(frozen=True)
class BatchTimeouts:
    """Seconds for one generation, and for a version to become ready."""

    timeout_s: float
    wait_s: float


@dataclass
class _Work:
    """One request id: its result once made, and whether that was stored."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    result: GenerationFinished | None = None
    stored: bool = False


class BatchWorker:
    """Handles `generations.requests.v1`, at least once, one result per request_id."""

    def __init__(
        self,
        *,
        client: EngineClient,
        adapters: Adapters,
        settings: Callable[[str], SettingsRecord | None],
        event_log: EventLog,
        admission: BatchAdmission,
        policy: BatchTimeouts,
        redact: Redact,
        clock: Clock,
        metrics: InferenceMetrics,
        spans: GenerationSpans,
        stop: asyncio.Event,
    ) -> None:
        """`settings` looks up what a version serves beside or without an adapter."""
        self._spans = spans
        self._client = client
        self._adapters = adapters
        self._settings = settings
        self._log = event_log
        self._admission = admission
        self._policy = policy
        self._redact = redact
        self._clock = clock
        self._metrics = metrics
        self._stop = stop
        self._recent: OrderedDict[str, _Work] = OrderedDict()

    async def handle(self, event: Event, record: Record) -> None:
        """Make the result of one request and store it, unless that was done before.

        A request of a version that is elsewhere is left to the workers of its base, which read the
        topic in a group of their own, and one that expired long ago to nobody.

        Raises:
            LogUnavailable: the result was made and not stored; the next call stores it.
            Stopping: the service is being stopped.

        """
        assert isinstance(event, GenerationRequested)
        work = self._work(event.request_id)
        async with work.lock:
            if work.stored:
                log.info("generation.repeated", request_id=event.request_id)
                return
            if self._adapters.is_elsewhere(event.version):
                log.info("generation.elsewhere", request_id=event.request_id, version=event.version)
                self._metrics.generations.labels(event.purpose, "elsewhere").inc()
                return
            if work.result is None and self._left(event) < -STALE_S:
                self._metrics.generations.labels(event.purpose, "stale").inc()
                return
            trace = event.trace_id or parse_traceparent(header(record.headers, "traceparent"))
            attributes: dict[str, AttributeValue] = {
                names.OPERATION: "chat",
                names.REQUEST_MODEL: event.version,
                names.KIND: event.purpose,
            }
            name, cause = f"process {GENERATION_REQUESTS}", f"generation/{event.request_id}"
            with self._spans.about(name, trace or "", cause, attributes) as context:
                if work.result is None:
                    work.result = await self._make(event, context)
                attributes[names.OUTCOME] = work.result.outcome
                await self._log.publish(
                    GENERATION_RESULTS,
                    key=event.request_id,
                    event=work.result,
                    event_id=event.request_id,
                    traceparent=context,
                )
            work.stored = True
            self._metrics.generations.labels(event.purpose, work.result.outcome).inc()

    def _work(self, request_id: str) -> _Work:
        work = self._recent.setdefault(request_id, _Work())
        self._recent.move_to_end(request_id)
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        return work

    async def _make(self, event: GenerationRequested, traceparent: str) -> GenerationFinished:
        if event.encrypted is not None:
            return self._finished(event, "expired", error="who asked was erased")
        fault = ""
        for attempt in range(1, ATTEMPTS + 1):
            left = self._left(event)
            if left <= 0:
                return self._finished(event, "expired", error="it expired before it was made")
            wait_s = min(left, self._policy.wait_s)
            if not await self._unless_stopped(self._adapters.wait_ready(event.version, wait_s)):
                if wait_s == left:
                    return self._finished(
                        event, "expired", error=f"it expired before {event.version} was ready"
                    )
                return self._finished(
                    event,
                    "failed",
                    error=f"version: {event.version} was not ready within {wait_s:g} s; "
                    "see /v1/adapters",
                )
            try:
                return await self._unless_stopped(self._generate(event, traceparent))
            except EngineRefused as error:
                unsuited = await self._unless_stopped(self._refused_alike(event))
                return self._finished(event, "failed", error=str(error), unsuited=unsuited)
            except EngineUnavailable as error:
                log.warning(
                    Unavailable.engine,
                    during="generation",
                    trace_id=event.trace_id,
                    request_id=event.request_id,
                    attempt=attempt,
                    error=str(error),
                )
                fault = str(error)
        return self._finished(event, "failed", error=f"after {ATTEMPTS} tries: {fault}")

    async def _generate(self, event: GenerationRequested, traceparent: str) -> GenerationFinished:
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(max(0.0, self._left(event))):
                    await stack.enter_async_context(self._admission.slot())
            except TimeoutError:
                return self._finished(
                    event, "expired", error="it expired while live traffic kept the engine busy"
                )
            began = self._clock.monotonic()
            made = await self._client.generate(
                self._engine_body(event),
                timeout_s=self._policy.timeout_s,
                traceparent=traceparent,
            )
            took = self._clock.monotonic() - began
        self._metrics.generation_s.observe(took)
        comparison = answer = None
        completion = ""
        if event.shown is not None:
            # Nobody reads a shadow answer: what is kept of it is how it differs.
            made = replace(made, text=await self._as_shown(made.text))
            comparison = compare(event.shown, made, took * 1000)
        else:
            turn = await redacted(self._redact, partial(_turn_kept, dict(made.turn)))
            answer, completion = Message.model_validate(turn), answer_text(turn)[:MAX_TEXT]
        return self._finished(
            event,
            "ok",
            completion=completion,
            answer=None if answer is None or answer.is_text else answer,
            comparison=comparison,
            finish_reason=made.finish_reason,
            completion_tokens=made.tokens,
            duration_ms=took * 1000,
        )

    async def _as_shown(self, text: str) -> str:
        """A text redacted as the shown one was, of which nothing is stored but how it differs."""
        kept = await redacted(self._redact, lambda redact: redact(text))
        return (by_rules(self._redact)(text) if kept == UNCHECKED else kept)[:MAX_TEXT]

    async def _refused_alike(self, event: GenerationRequested) -> bool:
        """Whether the engine refuses a shadow request to its base, too: no fault of the version."""
        if event.shown is None:
            return False
        try:
            base = (await self._client.models()).base
            # With its own lengths: they may be what the engine refuses.
            await self._client.generate(
                {"model": base, **_fields(event)}, timeout_s=self._policy.timeout_s
            )
        except EngineRefused as error:
            return not isinstance(error, EngineLacks)
        except EngineUnavailable:
            return False
        return False

    def _engine_body(self, event: GenerationRequested) -> dict[str, Any]:
        """The request for the engine, under the version's settings where it has any."""
        return chat_body(event.version, self._settings(event.version), _fields(event))

    async def _unless_stopped(self, work: Awaitable[T]) -> T:
        """Await, but no longer than the service is to run."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Stopping(
                    "the service is being stopped; another worker takes the request over"
                )
            return working.result()
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    def _left(self, event: GenerationRequested) -> float:
        return (event.expires_at - self._clock.now()).total_seconds()

    def _finished(
        self,
        event: GenerationRequested,
        outcome: Literal["ok", "failed", "expired"],
        *,
        completion: str = "",
        answer: Message | None = None,
        finish_reason: str = "",
        completion_tokens: int = 0,
        duration_ms: float = 0.0,
        error: str = "",
        comparison: ShadowComparison | None = None,
        unsuited: bool = False,
    ) -> GenerationFinished:
        return GenerationFinished(
            request_id=event.request_id,
            batch_id=event.batch_id,
            purpose=event.purpose,
            version=event.version,
            outcome=outcome,
            completion=completion,
            answer=answer,
            finish_reason=finish_reason,
            completion_tokens=completion_tokens,
            duration_ms=duration_ms,
            error=error[:MAX_ERROR],
            comparison=comparison,
            unsuited=unsuited,
            tenant=event.tenant,
            subjects=event.subjects,
            finished_at=self._clock.now(),
        )


def _turn_kept(turn: dict[str, Any], redact: Redact) -> dict[str, Any]:
    """A turn as it is kept: redacted, and no text longer than an event's."""
    return clean_turn(turn, Shortened(redact, MAX_TEXT))


def _fields(event: GenerationRequested) -> dict[str, Any]:
    """The request for an engine, but for the model."""
    return {
        "messages": [openai_turn(turn) for turn in event.messages],
        **_sampling(event),
        **({"tools": openai_tools(event.tools)} if event.tools else {}),
        "priority": PRIORITY,
    }


def _sampling(event: GenerationRequested) -> dict[str, Any]:
    if event.sampling is not None:
        return event.sampling
    seed = {} if event.seed is None else {"seed": event.seed}
    return {"max_tokens": event.max_tokens, "temperature": event.temperature, **seed}
