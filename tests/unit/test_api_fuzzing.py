"""Whatever is sent to any route of any API, it answers, and the next good request succeeds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from services.feedback.read_model.store import ReadModelStore
from services.inference import api as inference_api
from services.inference.acceptances import Acceptance
from services.inference.errors import UnknownAdapter
from services.inference.generation_api import generation_router
from shared.contracts.events.versions import Lifecycle, record_key, state_key
from shared.http.operations import OperationsApp
from shared.keys import KeyRing
from shared.observability.health import Health
from shared.quotas import Quotas, RateLimits, inference_limits
from shared.registry.versions import Registry
from shared.tenants import ModelTenants
from shared.testing.log import MemoryLog
from tests.support.aggregator import UP, feedback, interaction, vote
from tests.support.feedback import feedback_service, straw_router
from tests.support.openapi_answers import hooks
from tests.support.openapi_requests import OpenApiRequests
from tests.support.read_model import LogBuilder
from tests.support.rollouts import set_routing
from tests.support.spans import NO_SPANS
from tests.support.voting import voting_service
from tests.unit.inference.test_api import RunningEngine, StubAgent
from tests.unit.inference.test_generation_api import MODEL as GENERATING
from tests.unit.inference.test_generation_api import V10, StubGenerator
from tests.unit.rollout.conftest import client as rollout_client
from tests.unit.rollout.fakes import ControllerBench, register, until_known
from tests.unit.training.builders import record, state

REQUESTS = (250, pytest.param(10_000, marks=[pytest.mark.verify, pytest.mark.timeout(3600)]))
GOOD_EVERY = 50
TURNS = [{"role": "user", "content": "q"}]
GENERATED: dict[str, Any] = {
    "/v1/score": {"model": GENERATING, "items": [{"messages": TURNS, "completion": "an answer"}]},
    "/v1/moderated": {"model": GENERATING, "messages": TURNS},
}
"""Bodies that are taken, of routes that answer by a model."""

Opened = AbstractAsyncContextManager[httpx.AsyncClient]


@asynccontextmanager
async def feedback_api(directory: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Ingestion, queries of a filled read model, erasure, comparisons with an answering router."""
    log = LogBuilder()
    events = (interaction(), feedback("f"), feedback("g", kind=UP), vote("c1"))
    log.take(*(one.model_copy(update={"tenant": "default"}) for one in events))
    model = ReadModelStore(directory / "model", max_bytes=100_000_000)
    model.fold(log.records, not_before_ms=0)
    model.close()
    async with (
        straw_router() as router,
        feedback_service(
            MemoryLog(), router_url=router.url, read_model=directory / "model"
        ) as service,
    ):
        set_routing(service.routing, stable="assistant-v1.0", candidate="assistant-v1.1")
        yield service.client


@asynccontextmanager
async def annotation_api(_: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Annotation queue and the voting page's own API."""
    async with voting_service() as (app, _harness):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://feedback", event_hooks=hooks("feedback")
        ) as http:
            yield http


@asynccontextmanager
async def rollout_api(directory: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The control API of a leader with a stable version and one to roll out."""
    bench = ControllerBench(directory)
    await register(bench.log, "v1")
    harness = await bench.harness()
    await harness.round()
    await register(bench.log, "v2")
    await until_known(harness, "v2")
    async with rollout_client(harness, KeyRing(required=False)) as http:
        yield http
    await bench.close()


class StubInference(StubGenerator, StubAgent):
    """Scorer, moderator and agent of straw."""

    def __init__(self) -> None:
        StubGenerator.__init__(self)
        StubAgent.__init__(self)

    def versions(self) -> list[Any]:
        return []

    def acceptance(
        self, version: str, actor: str, reason: str, *, on_behalf_of: str = ""
    ) -> Acceptance:
        if version != "v2":
            raise UnknownAdapter(f"version: {version!r} is not wanted here; see /v1/adapters")
        return super().acceptance(version, actor, reason, on_behalf_of=on_behalf_of)


@asynccontextmanager
async def inference_app(_: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Scores, moderated generation and acceptances."""
    stub: Any = StubInference()
    registry, ring = Registry(), KeyRing(required=False)
    registry.apply(record_key(V10), record(V10).to_json())
    registry.apply(state_key(V10), state(V10, Lifecycle.stable).to_json())
    quotas = Quotas(key=inference_limits(RateLimits()), tenant=RateLimits())
    generation = generation_router(stub, registry, stub, stub, ring, quotas, NO_SPANS)
    access = inference_api.AdapterAccess(registry, ModelTenants())
    app = inference_api.create_app(stub, RunningEngine(), ring, generation, MemoryLog(), access)
    served: Any = OperationsApp(Health(), CollectorRegistry(), inference_api.guarded(app, ring))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(served, raise_app_exceptions=False),
        base_url="http://agent",
        event_hooks=hooks("inference"),
    ) as http:
        yield http


@pytest.mark.parametrize("count", REQUESTS)
@pytest.mark.parametrize(
    ("opened", "good"),
    [
        (feedback_api, "/v1/examples?kind=unpaired"),
        (annotation_api, "/v1/annotations"),
        (rollout_api, "/v1/rollouts"),
        (inference_app, "/v1/adapters"),
    ],
    ids=["feedback", "annotations", "rollout", "inference"],
)
async def test_no_request_breaks_an_api(
    opened: Callable[[Path], Opened], good: str, count: int, tmp_path: Path
) -> None:
    async with opened(tmp_path) as http:
        document = (await http.get("/openapi.json")).json()
        requests = OpenApiRequests(document, seed=14, bodies=GENERATED)
        taken: set[str] = set()
        for number in range(count):
            sent = requests.request()
            answer = await http.request(
                sent.method, sent.url, content=sent.content, headers=sent.headers
            )
            assert answer.status_code < 500, (sent, answer.text)
            if answer.status_code >= 400:
                _check_remedy(answer)
            if answer.status_code < 300:
                taken.add(sent.template)
            if number % GOOD_EVERY == 0:
                assert (await http.get(good)).status_code == 200
        assert len(taken) >= len(document["paths"]) // 4, "hardly any route was reached"
        assert taken >= GENERATED.keys() & document["paths"].keys()


def _check_remedy(answer: httpx.Response) -> None:
    """Every refusal says what to do, and so does each field that it names."""
    refusal = answer.json()
    assert "; " in refusal.get("detail", refusal.get("error", "")), refusal
    for field in refusal.get("errors", ()):
        assert field["field"], refusal
        assert field["rule"], refusal
        assert field["remedy"], refusal


@pytest.mark.parametrize("count", REQUESTS)
async def test_no_request_breaks_an_operations_port(count: int) -> None:
    """Of training and of the intake it is all that listens."""
    app: Any = OperationsApp(Health(), CollectorRegistry())
    document = {
        "paths": {path: {"get": {}} for path in ("/healthz", "/readyz", "/metrics", "/{x}")}
    }
    requests = OpenApiRequests(document, seed=15)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://operations"
    ) as http:
        for _ in range(count):
            sent = requests.request()
            body = requests.mutations.body({"a": 1})
            answer = await http.request(sent.method, sent.url, content=body, headers=sent.headers)
            assert answer.status_code < 500, sent
        assert (await http.get("/readyz")).status_code == 200
