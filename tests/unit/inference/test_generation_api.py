"""Scores and moderated generation over HTTP: bodies, keys, streams and refusals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from services.inference import api
from services.inference.errors import EngineUnavailable, NoRewardModel
from services.inference.generation_api import MAX_ANSWERS, MAX_GENERATION_BYTES, generation_router
from services.inference.generation_spans import GenerationSpans
from services.inference.scorer import Scores
from shared.clock import SystemClock
from shared.contracts.events.api_keys import ApiKeyIssued, KeyLimits, Permission
from shared.contracts.events.versions import Lifecycle, record_key, state_key
from shared.keys import KeyRing, new_key
from shared.quotas import Quotas, RateLimits, inference_limits
from shared.registry.versions import Registry
from shared.tenants import ModelTenants
from tests.support.openapi_answers import hooks
from tests.support.spans import NO_SPANS, CollectedSpans
from tests.unit.training.builders import MODEL, record, state

V10 = f"{MODEL}-v1.0"
RESULT: dict[str, Any] = {
    "stage": "result",
    "id": "1",
    "model": V10,
    "text": "b",
    "chosen": "critic",
    "writer": {"text": "a", "score": 0.0, "version": "m-v1"},
    "critic": {"text": "b", "score": 1.0, "version": "m-v1"},
    "margin": 1.0,
    "reward_model": "r",
    "fallback": "",
}


class StubGenerator:
    """Agent, scorer and moderator of straw."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.broken = False

    def ready(self, version: str) -> bool:
        return version == V10

    async def score(self, model: str, rows: Sequence[Any], *, timeout_s: float) -> Scores:
        if model != MODEL:
            raise NoRewardModel(f"model: {model} has no published reward model; train one")
        self.asked += rows
        return Scores("r", tuple(float(len(row["completion"])) for row in rows))

    async def run(self, asked: Any) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(asked)
        yield {"stage": "writer", "text": "a"}
        if self.broken:
            raise EngineUnavailable("away")
        yield RESULT


@pytest.fixture
def stub() -> StubGenerator:
    return StubGenerator()


def client(
    stub: Any,
    *,
    keys: bool = False,
    ring: KeyRing | None = None,
    spans: GenerationSpans = NO_SPANS,
) -> httpx.AsyncClient:
    registry, ring = Registry(), ring or KeyRing(required=keys)
    registry.apply(record_key(V10), record(V10).to_json())
    registry.apply(state_key(V10), state(V10, Lifecycle.stable).to_json())
    quotas = Quotas(key=inference_limits(RateLimits()), tenant=RateLimits())
    generation = generation_router(stub, registry, stub, stub, ring, quotas, spans)
    access = api.AdapterAccess(registry, ModelTenants())
    app: Any = api.guarded(api.create_app(stub, stub, ring, generation, stub, access), ring)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://agent",
        event_hooks=hooks("inference"),
    )


def item(completion: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}], "completion": completion}


def one_key(**fields: Any) -> tuple[KeyRing, dict[str, str]]:
    """Keys of which there is one, and the header that names it."""
    key, ring = new_key(), KeyRing(required=True)
    issued = ApiKeyIssued(
        key_id="k1",
        sha256=hashlib.sha256(key.encode()).hexdigest(),
        tenant="acme",
        scopes=(Permission.infer,),
        issued_at=datetime(2026, 11, 26, tzinfo=UTC),
        **fields,
    )
    ring.apply(issued.key_id, issued.to_json())
    return ring, {"authorization": f"Bearer {key}"}


@pytest.fixture
async def http(stub: StubGenerator) -> AsyncIterator[httpx.AsyncClient]:
    async with client(stub) as http:
        yield http


async def test_one_or_a_batch_is_scored_in_order(http: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "items": [item("abc"), item("a")]}
    answer = await http.post("/v1/score", json=body)
    assert answer.json() == {"reward_model": "r", "scores": [3.0, 1.0], "uncertainties": []}
    one = await http.post("/v1/score", json={"model": MODEL, "items": [item("ab")]})
    assert one.json()["scores"] == [2.0]


@pytest.mark.parametrize("count", [0, MAX_ANSWERS + 1])
async def test_a_batch_is_bounded(http: httpx.AsyncClient, count: int) -> None:
    answer = await http.post("/v1/score", json={"model": MODEL, "items": [item("a")] * count})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("items: ")


async def test_a_body_over_the_limit_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/score", content=b" " * (MAX_GENERATION_BYTES + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_a_model_without_a_reward_model_says_so(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/score", json={"model": "other", "items": [item("a")]})
    assert (answer.status_code, answer.json()["code"]) == (404, "no_reward_model")


@pytest.mark.parametrize("path", ["/v1/score", "/v1/moderated"])
async def test_without_a_key_nothing_is_read(stub: StubGenerator, path: str) -> None:
    async with client(stub, keys=True) as http:
        assert (await http.post(path, content=b"{")).status_code == 401


async def test_the_model_s_stable_version_answers(
    http: httpx.AsyncClient, stub: StubGenerator
) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "q"}]}
    answer = await http.post("/v1/moderated", json=body)
    assert (answer.status_code, answer.json()) == (200, RESULT)
    assert (stub.asked[0].model, stub.asked[0].version) == (MODEL, V10)
    unknown = await http.post("/v1/moderated", json={**body, "model": "nobody"})
    assert unknown.status_code == 404


async def test_scores_count_against_the_key_s_limit(stub: StubGenerator) -> None:
    ring, headers = one_key(limits=KeyLimits(requests_per_minute=2))
    body = {"model": MODEL, "items": [item("a")]}
    async with client(stub, ring=ring) as http:
        answers = [await http.post("/v1/score", json=body, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["code"] == "rate_limited"
    assert answers[2].headers["retry-after"]


@pytest.mark.parametrize("explicit", [False, True])
async def test_a_version_is_named_only_by_a_key_that_may(
    stub: StubGenerator, explicit: bool
) -> None:
    ring, headers = one_key(explicit_versions=explicit)
    turns = [{"role": "user", "content": "q"}]
    async with client(stub, ring=ring) as http:
        for name, status in ((MODEL, 200), (V10, 200 if explicit else 403)):
            body = {"model": name, "messages": turns}
            answer = await http.post("/v1/moderated", json=body, headers=headers)
            assert answer.status_code == status, name


@pytest.mark.parametrize("broken", [False, True])
async def test_progress_is_streamed_and_so_is_an_error(
    http: httpx.AsyncClient, stub: StubGenerator, broken: bool
) -> None:
    stub.broken = broken
    body = {"model": MODEL, "messages": [{"role": "user", "content": "q"}], "stream": True}
    answer = await http.post("/v1/moderated", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert events[0] == {"stage": "writer", "text": "a"}
    assert events[1] == ({"stage": "error", "detail": "away"} if broken else RESULT)


async def test_the_clients_trace_goes_on_with_scores_and_moderation(stub: StubGenerator) -> None:
    collected = CollectedSpans(0.0)  # What is sampled is so by the client's flag alone.
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    turns = [{"role": "user", "content": "hello"}]
    body = {"model": MODEL, "messages": turns}
    async with client(stub, spans=GenerationSpans(collected.spans, SystemClock())) as http:
        items = [{"messages": turns, "completion": "ab"}]
        for headers in ({"traceparent": given}, {}):
            scored = {"model": MODEL, "items": items}
            answer = await http.post("/v1/score", json=scored, headers=headers)
            assert answer.status_code == 200, answer.text
        refused = {"model": "other", "items": items}
        await http.post("/v1/score", json=refused, headers={"traceparent": given})
        await http.post("/v1/moderated", json=body, headers={"traceparent": given})
    span, failed = collected.finished()
    assert f"{span.context.trace_id:032x}-{span.parent.span_id:016x}" == given[3:52]
    assert (span.name, span.attributes) == (
        f"score {MODEL}",
        {
            "gen_ai.request.model": MODEL,
            "ratchet.tenant": "default",
            "ratchet.items": 1,
            "ratchet.reward_model": "r",
        },
    )
    assert failed.status.description == "NoRewardModel"
    assert stub.asked[-1].traceparent == given
