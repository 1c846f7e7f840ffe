"""Answers without end: each client of a neighbour stops at its limit and names it."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.feedback import router_client
from services.feedback.errors import RouterFailed
from services.inference import engine
from services.inference.errors import EngineUnavailable
from services.rollout import agents, prometheus
from services.rollout.errors import EvidenceUnavailable
from services.router import engine_connection, moderation_endpoint
from services.router.filter_rules import FilterFindings
from shared.contracts.events.base import Message
from shared.http import reward_scores
from shared.http.answers import AnswerTooLarge, read_answer, read_json

ROOT = Path(__file__).parents[2]
LIMIT = 3_000
SAID = f"larger than {LIMIT} bytes"
WAITS_S = 60.0


class EndlessNeighbour:
    """Answers every request with spaces, compressed, until its client leaves."""

    def __init__(self) -> None:
        self.url = ""
        self.left = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_compression()
        await response.prepare(request)
        try:
            while True:
                await response.write(b" " * 65_536)
        finally:
            self.left.set()


@pytest.fixture
async def neighbour() -> AsyncIterator[EndlessNeighbour]:
    endless = EndlessNeighbour()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", endless.answer)
    async with TestServer(app) as server:
        endless.url = str(server.make_url("")).rstrip("/")
        yield endless
        await asyncio.wait_for(endless.left.wait(), WAITS_S)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as found:
        yield found


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (agents, engine, engine_connection, prometheus, reward_scores, router_client):
        monkeypatch.setattr(module, "MAX_ANSWER_BYTES", LIMIT)
    monkeypatch.setattr(moderation_endpoint, "MAX_VERDICT_BYTES", LIMIT)


async def test_an_answer_is_read_up_to_its_limit(session: aiohttp.ClientSession) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="[" + " " * (LIMIT - 2) + "]", content_type="text/plain")

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestServer(app) as server:
        async with session.get(server.make_url("/")) as response:
            assert len(await read_answer(response, limit=LIMIT)) == LIMIT
        async with session.get(server.make_url("/")) as response:
            assert await read_json(response, limit=LIMIT) == []
        async with session.get(server.make_url("/")) as response:
            with pytest.raises(AnswerTooLarge, match=f"larger than {LIMIT - 1} bytes"):
                await read_answer(response, limit=LIMIT - 1)


async def test_prometheus(neighbour: EndlessNeighbour, session: aiohttp.ClientSession) -> None:
    with pytest.raises(EvidenceUnavailable, match=SAID):
        await prometheus.Prometheus(session, neighbour.url).samples("x[1m]")


async def test_an_agents_report(
    neighbour: EndlessNeighbour, session: aiohttp.ClientSession
) -> None:
    (report,) = (await agents.Agents(session, (neighbour.url,)).reports("v1")).values()
    assert report.ready is None
    assert SAID in report.detail


async def test_scores_of_replicas(
    neighbour: EndlessNeighbour, session: aiohttp.ClientSession
) -> None:
    with capture_logs() as logs:
        assert await agents.Agents(session, (neighbour.url,)).scores("m", [([], "hm")]) == ("", [])
    assert SAID in logs[0]["error"]


async def test_scores_of_pairs(neighbour: EndlessNeighbour, session: aiohttp.ClientSession) -> None:
    with pytest.raises(reward_scores.NotScored, match=SAID):
        await reward_scores.RewardScores(session, (neighbour.url,)).of("m", [([], "hm")])


async def test_the_router(neighbour: EndlessNeighbour, session: aiohttp.ClientSession) -> None:
    asked = router_client.Question([Message(role="user", content="Hm?")], None, None, "", {})
    client = router_client.RouterClient(session, neighbour.url, timeout_s=WAITS_S)
    with pytest.raises(RouterFailed, match=SAID):
        await client.answer(asked, "v1", 1)


async def test_an_engine_asked_by_its_agent(
    neighbour: EndlessNeighbour, session: aiohttp.ClientSession
) -> None:
    with pytest.raises(EngineUnavailable, match=SAID):
        await engine.EngineClient(session, neighbour.url).models()


async def test_an_engine_asked_by_the_router(neighbour: EndlessNeighbour) -> None:
    pool = engine_connection.EnginePool(neighbour.url)
    response = await pool.post("/", b"{}", {}, engine_connection.AttemptDeadlines(WAITS_S))
    with pytest.raises(engine_connection.EngineAnswerTooLarge, match=SAID):
        await response.read()
    response.close()
    await pool.close()


async def test_a_moderation_endpoint(
    neighbour: EndlessNeighbour, session: aiohttp.ClientSession
) -> None:
    policy = moderation_endpoint.ModerationPolicy(neighbour.url, timeout_s=WAITS_S)
    endpoint = moderation_endpoint.ModerationEndpoint(session, policy, dict, CollectorRegistry())
    with capture_logs() as logs:
        await endpoint.judge(["hm"], FilterFindings())
    assert SAID in logs[0]["error"]


def whole_reads(source: str) -> list[int]:
    """Lines that await `read()`, `text()` or `json()` of something, as aiohttp's responses offer."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Await)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr in ("json", "read", "text")
    ]


def test_no_service_reads_an_answer_without_a_limit() -> None:
    assert whole_reads("async def f(a):\n    return await a.json()") == [2]
    clients = [
        path
        for folder in ("services", "shared")
        for path in (ROOT / folder).rglob("*.py")
        if "import aiohttp" in path.read_text()
    ]
    assert len(clients) > 5
    assert {str(path): found for path in clients if (found := whole_reads(path.read_text()))} == {}
