from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from services.inference import api
from services.inference.acceptances import Acceptance
from services.inference.generation_api import generation_router
from services.inference.launcher import EngineState
from shared.clock import SystemClock
from shared.contracts.events.versions import record_key
from shared.http.asgi import AsgiApp
from shared.keys import KeyRing
from shared.registry.versions import Registry
from shared.tenants import ModelTenants
from shared.testing.log import MemoryLog
from tests.support.openapi_answers import hooks
from tests.support.operators import operator_of
from tests.support.spans import NO_SPANS
from tests.unit.training.builders import record

PATH = "/v1/adapters/v1/accept"


class StubAgent:
    """Accepts whatever reaches it."""

    base = "base"

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def acceptance(
        self, version: str, actor: str, reason: str, *, on_behalf_of: str = ""
    ) -> Acceptance:
        now = SystemClock().now()
        return Acceptance(
            version=version,
            sha256="0",
            neighbours=(),
            actor=actor,
            on_behalf_of=on_behalf_of,
            reason=reason,
            at=now,
        )

    def accept(self, acceptance: Acceptance) -> None:
        self.reasons.append(acceptance.reason)


class RunningEngine:
    state = EngineState(ready=True, generation=1, reason="")

    def restart(self, reason: str) -> None:
        """Nothing to start again."""


def guarded_app(
    agent: Any,
    keys: KeyRing | None = None,
    registry: Registry | None = None,
    tenants: ModelTenants | None = None,
) -> AsgiApp:
    keys, registry = keys or KeyRing(required=False), registry or Registry()
    access = api.AdapterAccess(registry, tenants or ModelTenants())
    generation = generation_router(agent, registry, agent, agent, keys, agent, NO_SPANS)
    app = api.create_app(agent, RunningEngine(), keys, generation, MemoryLog(), access)
    return api.guarded(app, keys)


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://agent",
        event_hooks=hooks("inference"),
    )


@pytest.fixture
def agent() -> StubAgent:
    return StubAgent()


@pytest.fixture
async def http(agent: StubAgent) -> AsyncIterator[httpx.AsyncClient]:
    async with client(guarded_app(agent)) as http:
        yield http


def word(size: int) -> bytes:
    """An acceptance of so many bytes, most of them white space that JSON allows."""
    content = json.dumps({"on_behalf_of": "ann", "reason": "a twin"}).encode()
    return content + b" " * (size - len(content))


async def chunked(body: bytes, size: int = 4096) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def test_largest_body_is_taken_and_a_byte_more_is_not(
    http: httpx.AsyncClient, agent: StubAgent
) -> None:
    headers = {"content-type": "application/json"}
    for content in (word(api.MAX_BODY_BYTES), chunked(word(api.MAX_BODY_BYTES))):
        assert (await http.post(PATH, content=content, headers=headers)).status_code == 200
    for content in (word(api.MAX_BODY_BYTES + 1), chunked(word(api.MAX_BODY_BYTES + 1))):
        answer = await http.post(PATH, content=content, headers=headers)
        assert answer.status_code == 413
        error = answer.json()
        assert (error["code"], error["status"]) == ("too_large", 413)
        assert error["detail"] == "the body is larger than 65536 bytes; send a shorter one"
        assert answer.headers["connection"] == "close"
    assert agent.reasons == ["a twin"] * 2


async def test_longest_reason_fits_however_it_is_escaped(http: httpx.AsyncClient) -> None:
    body = json.dumps(
        {"on_behalf_of": "ann", "reason": "\U0001f600" * 2000}, ensure_ascii=True
    ).encode()
    answer = await http.post(PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200


async def test_endless_body_is_not_read_to_its_end(http: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65_536
            assert sent < 10 * api.DISCARDED_BYTES, "the whole of it is read"
            yield b" " * 65_536

    assert (await http.post(PATH, content=endless())).status_code == 413
    assert sent <= api.DISCARDED_BYTES + 65_536


async def test_body_that_does_not_arrive_is_given_up(
    agent: StubAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    monkeypatch.setattr(api, "BODY_TIMEOUT_S", 0.05)
    async with client(guarded_app(agent)) as http:
        answer = await http.post(PATH, content=stalled())
    assert (answer.status_code, answer.json()["code"]) == (408, "too_slow")


async def test_without_a_key_no_body_is_read(agent: StubAgent) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"{}"

    async with client(guarded_app(agent, KeyRing(required=True))) as http:
        refused = await http.post(PATH, content=body())
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
        assert (await http.get("/v1/nothing")).status_code == 404
    assert read == 0


async def test_client_that_leaves_before_its_body_is_complete_gets_no_answer() -> None:
    app = guarded_app(StubAgent())
    messages = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await app(scope, receive, send)
    assert sent == []


async def test_a_tenants_key_accepts_adapters_of_its_models(agent: StubAgent) -> None:
    registry, keys = Registry(), KeyRing(required=True)
    registry.apply(record_key("v1"), record("v1").to_json())
    model = next(registry.versions()).record.model
    app = guarded_app(agent, keys, registry, ModelTenants({model: "acme"}, operators="ops"))
    async with client(app) as http:
        for tenant, status in (("globex", 403), ("acme", 200), ("ops", 200)):
            _, headers = operator_of(tenant, keys)
            answer = await http.post(PATH, json={"reason": "a twin"}, headers=headers)
            assert answer.status_code == status
            if status == 403:
                assert answer.json()["errors"][0]["field"] == "version"
    assert agent.reasons == ["a twin"] * 2
