"""A whole gateway on a free port, before a stub engine; only Kafka and Redis are left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import orjson
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.stub_engine import EngineTraffic, serve_stub
from deploy.local.ports import free_ports
from services.router.answer_headers import EXPOSED_HEADERS
from services.router.app import Gateway
from services.router.bounds import AnswerBounds
from services.router.candidate_breaker import CandidateBreaker
from services.router.client_ids import ClientIds
from services.router.engines import Engines
from services.router.fields import FieldRules
from services.router.filter_rules import FilterRules
from services.router.identity import IdentityRules
from services.router.interactions import Interactions
from services.router.latency_limits import LatencyLimits
from services.router.metrics import RouterMetrics
from services.router.moderation_endpoint import ModerationEndpoint, ModerationPolicy
from services.router.output_filter import OutputFilter
from services.router.proxy import Deadlines, Proxy
from services.router.series_lifecycle import SeriesLifecycle
from services.router.spool import Spool
from services.router.state import KEYS, REDIS, REGISTRY, ROLLOUTS, RouterState
from services.router.votes import VoteLimits
from shared.clock import SystemClock
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.rollouts import Phase
from shared.http.cors import with_cors
from shared.http.operations import OperationsApp
from shared.http.server import serve
from shared.keys import KeyRing
from shared.observability.health import Health
from shared.observability.spans import OFF, Spans
from shared.quotas import Quotas, RateLimits, inference_limits
from shared.redaction import Redactor
from shared.registry.routing import RoutingState

NO_LIMITS = RateLimits()
SOURCES = (REDIS, ROLLOUTS, REGISTRY, KEYS)


class GatewayHarness:
    """A running gateway and handles on everything around it."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self.stack = stack
        self.keys = KeyRing(required=False)
        self.metrics = RouterMetrics(("gold",))
        self.clock = SystemClock()
        self.breaker = CandidateBreaker(self.clock, failures=5)
        self.state = RouterState(
            self.clock,
            stale_after_s=60,
            assigned=self.metrics.assigned,
            changed=SeriesLifecycle(self.metrics, self.clock, grace_s=900).follow,
            refused=self.breaker.refuses,
        )
        self.metrics.read_at_scrape(
            spool_bytes=lambda: 0.0,
            events_lost=lambda: 0.0,
            events_recovered=dict,
            state_age_s=lambda: 0.0,
            breaker_open=self.breaker.is_open,
        )
        self.spool = Spool(directory, limit_bytes=50_000_000)
        self.interactions = Interactions(self.spool, Redactor())
        self.seen = EngineTraffic()
        self.client = httpx.AsyncClient()
        self.url = ""
        self._seq = 0

    async def start(
        self,
        *,
        engines: tuple[str, ...] = (),
        delay_s: float = 0.0,
        deadlines: Deadlines = Deadlines(60.0, 120.0),  # noqa: B008
        keys_required: bool = False,
        sources: tuple[str, ...] = SOURCES,
        max_body_bytes: int = 100_000,
        body_timeout_s: float = 5.0,
        max_running: int = 100,
        key_limits: RateLimits = NO_LIMITS,
        fair: bool = False,
        bounds: AnswerBounds = AnswerBounds(),  # noqa: B008
        cors_origins: tuple[str, ...] = (),
        rules: FieldRules = FieldRules(),  # noqa: B008
        spans: Spans = OFF,
        filter_rules: FilterRules = FilterRules(),  # noqa: B008
        latency: LatencyLimits = LatencyLimits(),  # noqa: B008
        moderation: ModerationPolicy | None = None,
    ) -> None:
        """Serve; without engines a stub of its own."""
        if not engines:
            server, self.seen = await serve_stub("127.0.0.1", 0, delay_s=delay_s)
            self.stack.callback(server.close)
            engines = (f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",)
        if keys_required:
            self.keys = KeyRing(required=True)
        for source in sources:
            self.state.heard(source)
        registry = CollectorRegistry()
        registry.register(self.metrics)
        endpoint = None
        if moderation is not None:
            session = await self.stack.enter_async_context(aiohttp.ClientSession())
            endpoint = ModerationEndpoint(session, moderation, dict, registry)
        self.output_filter = OutputFilter(filter_rules, registry, endpoint)
        pool = await self.stack.enter_async_context(
            Engines(engines, self.clock, retried=self.metrics.engine_retried)
        )
        gateway = Gateway(
            state=self.state,
            proxy=Proxy(
                pool,
                self.interactions,
                self.metrics,
                deadlines,
                self.breaker,
                VoteLimits(),
                self.state.settings,
                self.output_filter,
            ),
            keys=self.keys,
            metrics=self.metrics,
            ops=OperationsApp(Health(), registry),
            rules=rules,
            identity=IdentityRules(),
            max_body_bytes=max_body_bytes,
            body_timeout_s=body_timeout_s,
            max_running=max_running,
            quotas=Quotas(
                key=inference_limits(key_limits),
                tenant=NO_LIMITS,
                slots=max_running if fair else 0,
            ),
            bounds=bounds,
            spans=spans,
            latency=latency,
            client_ids=ClientIds(),
        )
        app = with_cors(gateway, cors_origins, methods=("GET", "POST"), expose=EXPOSED_HEADERS)
        port = free_ports(["router"])["router"]
        stop = asyncio.Event()
        serving = asyncio.create_task(serve(app, host="127.0.0.1", port=port, stop=stop))

        async def end() -> None:
            stop.set()
            await serving

        self.stack.push_async_callback(end)
        self.url = f"http://127.0.0.1:{port}"
        self.client = await self.stack.enter_async_context(
            httpx.AsyncClient(base_url=self.url, timeout=60)
        )
        await self._reachable(port)

    async def _reachable(self, port: int) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return

    def route(
        self,
        stable: str = "m-v1.0",
        candidate: str = "",
        weight: int = 10_000,
        rollout: str = "r1",
        holdout: int = 0,
        reference: str = "",
    ) -> None:
        """Set the model's routing state; with a candidate in that rollout."""
        self._seq += 1
        self.state.put(
            RoutingState(
                model="m",
                stable=stable,
                candidate=candidate,
                rollout=rollout if candidate else "",
                phase=Phase.progressing if candidate else Phase.healthy,
                weight=weight if candidate else 0,
                holdout=holdout,
                reference=reference,
                token=0,
                seq=self._seq,
                at=datetime.now(UTC),
            )
        )

    async def ask(self, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        """A chat request."""
        value = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **body}
        return await self.client.post("/v1/chat/completions", json=value, headers=headers)

    def events(self) -> list[InteractionRecorded]:
        """Everything recorded so far."""
        return [
            InteractionRecorded.model_validate_json(record.value or b"")
            for record in self.spool.batch()[0]
        ]

    async def attempts(self) -> dict[tuple[str, str, str], int]:
        """Attempts that were counted, by version, arm and outcome, as `/metrics` says."""
        text = (await self.client.get("/metrics")).text
        return {
            (s.labels["version"], s.labels["arm"], s.labels["outcome"]): int(s.value)
            for family in text_string_to_metric_families(text)
            for s in family.samples
            if s.name == "ratchet_router_requests_total" and s.value
        }


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[GatewayHarness]:
    async with AsyncExitStack() as stack:
        bench = GatewayHarness(tmp_path, stack)
        stack.callback(bench.spool.close)
        yield bench


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, after a look at its shape."""
    error = orjson.loads(response.content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error
