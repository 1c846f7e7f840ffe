"""The feedback service in this process, on whichever event log a test hands it, with a router of straw."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry

from services.feedback.api import FeedbackApi, Limits, create_app, open_to_browsers
from services.feedback.circuit_breaker import CircuitBreaker
from services.feedback.comparisons import Comparisons
from services.feedback.erasure.api import UserApi, user_router
from services.feedback.metrics import FeedbackMetrics
from services.feedback.open_comparisons import Ballot, Comparison, OpenComparisons
from services.feedback.publisher import FeedbackPublisher
from services.feedback.read_model.api import QueryApi, query_router
from services.feedback.read_model.queries import ReadModelQueries
from services.feedback.router_client import RouterClient
from services.feedback.submissions import DEFAULT_RULES, SubmissionRules
from services.feedback.trace_limits import TraceLimits
from shared.clock import Clock
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackWithdrawn
from shared.contracts.events.signals import SignalObserved
from shared.contracts.events.votes import VoteCast
from shared.contracts.topics import FEEDBACK
from shared.http.operations import OperationsApp
from shared.kafka.envelope import decode, models_by_type
from shared.kafka.log import EventLog, Record, read_to_end
from shared.keys import KeyRing
from shared.observability.health import Health
from shared.observability.spans import OFF, Spans
from shared.quotas import Quotas, RateLimits, feedback_limits
from shared.redaction.detection import Redact
from shared.redaction.redactor import Redactor
from shared.registry.routing import RoutingTable
from shared.registry.versions import Registry
from shared.tenants import ModelTenants
from shared.testing.clock import ManualClock
from tests.support.openapi_answers import hooks

FEEDBACK_MODELS = models_by_type(FeedbackSubmitted, FeedbackWithdrawn, SignalObserved, VoteCast)

UNLIMITED = Quotas(key=lambda _: RateLimits(), tenant=RateLimits())
"""No bound."""


class MemoryComparisons:
    """OpenComparisons in a dict."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, str], Comparison] = {}
        self.ballots: dict[tuple[str, str], Ballot] = {}

    async def put(self, comparison: Comparison) -> None:
        self.open[comparison.tenant, comparison.comparison_id] = comparison

    async def get(self, tenant: str, comparison_id: str) -> Comparison | None:
        return self.open.get((tenant, comparison_id))

    async def claim(self, comparison: Comparison, ballot: Ballot) -> Ballot:
        return self.ballots.setdefault((comparison.tenant, comparison.comparison_id), ballot)

    async def acknowledge(self, comparison: Comparison, ballot: Ballot) -> None:
        place = (comparison.tenant, comparison.comparison_id)
        self.ballots[place] = ballot.model_copy(update={"acknowledged": True})


@dataclass
class StrawRouter:
    """Answers every version with a text that names it; remembers what it was asked."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    missing_status: int = 404
    status: int = 200
    text: str = "the answer of {version}"

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        version = body["model"]
        if version in self.missing:
            return self._error(self.missing_status, f"no model {version}", "model")
        if self.status != 200:
            return self._error(self.status, "the straw burns", None)
        text = self.text.format(version=version)
        return web.json_response(
            {"model": version, "choices": [{"message": {"role": "assistant", "content": text}}]},
            headers={
                "x-ratchet-trace-id": f"trace-{len(self.asked)}",
                "x-ratchet-version": version,
            },
        )

    @staticmethod
    def _error(status: int, message: str, param: str | None) -> web.Response:
        error = {"message": message, "type": "error", "param": param, "code": None}
        return web.json_response({"error": error}, status=status)


@asynccontextmanager
async def straw_router() -> AsyncIterator[StrawRouter]:
    """A router that listens on a port of its own."""
    router = StrawRouter()
    async with answering(router.chat) as router.url:
        yield router


@asynccontextmanager
async def answering(
    chat: Callable[[web.Request], Awaitable[web.Response]],
    score: Callable[[web.Request], Awaitable[web.Response]] | None = None,
) -> AsyncIterator[str]:
    """The address of a server that answers chats, and requests for scores, so."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    if score is not None:
        app.router.add_post("/v1/score", score)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class FeedbackHarness:
    """One feedback service and what a test wants to turn or look at."""

    client: httpx.AsyncClient
    log: EventLog
    routing: RoutingTable
    registry: Registry
    keys: KeyRing
    breaker: CircuitBreaker
    publisher: FeedbackPublisher
    metrics: FeedbackMetrics
    collected: CollectorRegistry
    clock: Clock
    traces: TraceLimits

    async def stored(self, trace_id: str) -> list[Any]:
        """The events on the feedback topic of one trace or comparison, in order."""
        records = await read_to_end(self.log, FEEDBACK, timeout_s=60)
        return [event_of(record) for record in records if record.key == trace_id]

    async def records(self, trace_id: str) -> list[Record]:
        """The records of one trace, in order."""
        records = await read_to_end(self.log, FEEDBACK, timeout_s=60)
        return [record for record in records if record.key == trace_id]

    def value(self, metric: str, **labels: str) -> float:
        """The present value of a metric."""
        found = self.collected.get_sample_value(metric, labels)
        assert found is not None, (metric, labels)
        return found

    async def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        """POST a body as JSON."""
        return await self.client.post(path, content=orjson.dumps(body), **more)


def event_of(record: Record) -> Any:
    """The event that a record holds."""
    return decode(record.headers, record.value, FEEDBACK_MODELS)


@dataclass
class FeedbackParts:
    """The service's parts with twins behind them, wired as `__main__` wires the real ones."""

    clock: Clock
    collected: CollectorRegistry
    metrics: FeedbackMetrics
    breaker: CircuitBreaker
    publisher: FeedbackPublisher
    keys: KeyRing
    routing: RoutingTable
    registry: Registry
    store: OpenComparisons
    comparisons: Comparisons
    model: ReadModelQueries
    traces: TraceLimits
    api: FeedbackApi


@asynccontextmanager
async def feedback_parts(
    log: EventLog,
    *,
    router_url: str = "http://127.0.0.1:9",
    router_timeout_s: float = 5.0,
    store: OpenComparisons | None = None,
    keys_required: bool = False,
    anonymous_votes: bool = True,
    max_waiting: int = 1_000_000,
    timeout_s: float = 4.0,
    body_timeout_s: float = 0.5,
    clock: Clock | None = None,
    rules: SubmissionRules = DEFAULT_RULES,
    key_limits: RateLimits = RateLimits(),  # noqa: B008
    read_model: Path = Path("/nonexistent"),
    redact: Redact = Redactor().text,  # noqa: B008
    spans: Spans = OFF,
) -> AsyncIterator[FeedbackParts]:
    """The service's parts, which share one session with the router."""
    clock = clock or ManualClock()
    store = store or MemoryComparisons()
    collected = CollectorRegistry()
    metrics = FeedbackMetrics(collected)
    breaker = CircuitBreaker(max_waiting=max_waiting)
    publisher = FeedbackPublisher(log, breaker, metrics, clock, timeout_s=timeout_s)
    keys = KeyRing(required=keys_required)
    routing, registry = RoutingTable(), Registry()
    async with aiohttp.ClientSession() as session:
        comparisons = Comparisons(
            router=RouterClient(session, router_url, timeout_s=router_timeout_s),
            store=store,
            publisher=publisher,
            routing=routing,
            registry=registry,
            metrics=metrics,
            clock=clock,
            redact=redact,
            anonymous_votes=anonymous_votes,
            max_asking=8,
            rng=random.Random(7),
        )
        model = ReadModelQueries(read_model)
        traces = TraceLimits(model)
        api = FeedbackApi(
            publisher=publisher,
            comparisons=comparisons,
            keys=keys,
            metrics=metrics,
            clock=clock,
            redact=redact,
            limits=Limits(body_bytes=100_000, batch_bytes=1_000_000, body_timeout_s=body_timeout_s),
            traces=traces,
            quotas=Quotas(key=feedback_limits(key_limits), tenant=RateLimits()),
            rules=rules,
            spans=spans,
        )
        yield FeedbackParts(
            clock, collected, metrics, breaker, publisher, keys, routing, registry, store,
            comparisons, model, traces, api,
        )  # fmt: skip


@asynccontextmanager
async def feedback_service(
    log: EventLog,
    *,
    cors_origins: Sequence[str] = (),
    queries_per_minute: int = 0,
    tenants: ModelTenants | None = None,
    **parts_options: Any,
) -> AsyncIterator[FeedbackHarness]:
    """The service, called without a network between; options are those of `feedback_parts`."""
    async with feedback_parts(log, **parts_options) as parts:
        queries = QueryApi(
            queries=parts.model,
            age_s=lambda: 0.0,
            reindex=lambda: None,
            keys=parts.keys,
            registry=parts.registry,
            clock=parts.clock,
            quotas=Quotas(key=lambda _: RateLimits(queries_per_minute), tenant=RateLimits()),
            tenants=tenants or ModelTenants(),
        )
        users = UserApi(log, parts.keys, parts.clock, pseudonym=DEFAULT_RULES.pseudonyms.of)
        served = open_to_browsers(
            create_app(parts.api, parts.metrics, query_router(queries), user_router(users)),
            tuple(cors_origins),
        )
        app: Any = OperationsApp(Health(), parts.collected, served)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://feedback", event_hooks=hooks("feedback")
        ) as client:
            yield FeedbackHarness(
                client=client,
                log=log,
                routing=parts.routing,
                registry=parts.registry,
                keys=parts.keys,
                breaker=parts.breaker,
                publisher=parts.publisher,
                metrics=parts.metrics,
                collected=parts.collected,
                clock=parts.clock,
                traces=parts.traces,
            )
