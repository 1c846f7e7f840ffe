"""Requests to neighbours that never answer: the deadline ends them, and keeps a cancellation."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry, Counter

from services.feedback import router_client
from services.inference import engine
from services.rollout import agents, prometheus
from services.router import moderation_endpoint
from services.router.filter_rules import FilterFindings
from services.training import ai_opinion
from shared.ai_judge import UnlabelledPair
from shared.clock import SystemClock
from shared.contracts.events.base import Message
from shared.http import reward_scores, webhooks
from shared.http.client import request_within
from shared.testing.clock import START
from shared.webhook_message import WebhookMessage

ROOT = Path(__file__).parents[2]
DEADLINE_S = 0.05
METHODS = frozenset(("delete", "get", "head", "options", "patch", "post", "put", "request"))
FOLDERS = (
    "services",
    "shared",
    "deploy",
    "demo",
    "benchmarks",
    "examples",
    "tests/support",
    "tests/chaos",
)
EXEMPT = frozenset(map(Path, ("shared/http/client.py", "demo/faultproxy.py")))
"""The one place that makes requests; a proxy whose requests have no deadline."""
Caller = Callable[[aiohttp.ClientSession, str], Awaitable[object]]


async def routers_answer(session: aiohttp.ClientSession, url: str) -> object:
    asked = router_client.Question([Message(role="user", content="Hm?")], None, None, "", {})
    client = router_client.RouterClient(session, url, timeout_s=DEADLINE_S)
    return await client.answer(asked, "v1", 1)


async def pairs_scores(session: aiohttp.ClientSession, url: str) -> object:
    return await reward_scores.RewardScores(session, (url,)).of("m", [([], "hm")])


async def replicas_scores(session: aiohttp.ClientSession, url: str) -> object:
    return await agents.Agents(session, (url,)).scores("m", [([], "hm")])


async def agents_report(session: aiohttp.ClientSession, url: str) -> object:
    return await agents.Agents(session, (url,)).reports("v1")


async def evidence(session: aiohttp.ClientSession, url: str) -> object:
    return await prometheus.Prometheus(session, url).samples("x[1m]")


async def engines_models(session: aiohttp.ClientSession, url: str) -> object:
    return await engine.EngineClient(session, url).models()


async def moderation(session: aiohttp.ClientSession, url: str) -> object:
    policy = moderation_endpoint.ModerationPolicy(url, timeout_s=DEADLINE_S)
    endpoint = moderation_endpoint.ModerationEndpoint(session, policy, dict, CollectorRegistry())
    return await endpoint.judge(["hm"], FilterFindings())


async def judges_opinion(_: aiohttp.ClientSession, url: str) -> object:
    pair = UnlabelledPair([{"role": "user", "content": "Hm?"}], ("a", "b"))
    return await ai_opinion.AiJudge(url, "m", "Which is better?").shares([pair], lambda: None)


async def webhook(session: aiohttp.ClientSession, url: str) -> object:
    counter = Counter("sent", "by outcome", ("outcome",), registry=CollectorRegistry())
    sender = webhooks.Webhooks(session, (url,), lambda: "secret", SystemClock(), counter)
    sender.post(WebhookMessage("t", "d:1", START, "", {}))
    return await sender._deliver_to(url)


CALLERS: tuple[Caller, ...] = (
    routers_answer,
    pairs_scores,
    replicas_scores,
    agents_report,
    evidence,
    engines_models,
    moderation,
    judges_opinion,
    webhook,
)


class CancelledAtTheDeadline(asyncio.Task[Any]):
    """A task whose owner cancels it in the moment in which a deadline does."""

    def cancel(self, msg: Any | None = None) -> bool:
        super().cancel(msg)
        return super().cancel(msg)


@contextmanager
def cancelling_at_deadlines() -> Iterator[None]:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(
        lambda loop, work, **more: CancelledAtTheDeadline(work, loop=loop, **more)
    )
    try:
        yield
    finally:
        loop.set_task_factory(None)


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    """The address of a neighbour that takes every request and never answers."""
    ended = asyncio.Event()

    async def wait(_: web.Request) -> web.Response:
        await ended.wait()
        return web.Response()

    async def begin(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await ended.wait()
        return response

    app = web.Application()
    app.router.add_get("/begun", begin)
    app.router.add_route("*", "/{path:.*}", wait)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")
        ended.set()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as found:
        yield found


@pytest.fixture(autouse=True)
def deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (agents, ai_opinion, prometheus, reward_scores, webhooks):
        monkeypatch.setattr(module, "TIMEOUT_S", DEADLINE_S)
    monkeypatch.setattr(engine, "QUICK_TIMEOUT_S", DEADLINE_S)


@pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.__name__)
async def test_a_cancellation_at_the_deadline_is_kept(
    caller: Caller, session: aiohttp.ClientSession, silent: str
) -> None:
    with cancelling_at_deadlines():
        asking = asyncio.ensure_future(caller(session, silent))
        await asyncio.wait((asking,), timeout=30.0)
    ended = asking.cancelled()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert ended, "the task goes on, or ended as if nobody had cancelled it"


async def test_a_deadline_alone_is_a_timeout(session: aiohttp.ClientSession, silent: str) -> None:
    for connect_s, timeout_s in ((None, DEADLINE_S), (30.0, DEADLINE_S)):
        with pytest.raises(TimeoutError):
            async with request_within(timeout_s, session, "GET", silent, connect_s=connect_s):
                pass
    async with request_within(30.0, session, "GET", f"{silent}/begun") as answer:
        assert answer.status == 200
    with pytest.raises(TimeoutError):
        async with request_within(DEADLINE_S, session, "GET", f"{silent}/begun") as answer:
            await answer.read()


def requests_with_timers(source: str) -> list[int]:
    """Lines that make a timer of aiohttp's, or open a request without a deadline of ours."""
    tree = ast.parse(source)
    opened = [
        item.context_expr
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
    ]
    opened += [node.value for node in ast.walk(tree) if isinstance(node, ast.Await)]
    return sorted(
        [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute | ast.Name)
            and "ClientTimeout" in (getattr(node, "attr", ""), getattr(node, "id", ""))
        ]
        + [
            call.lineno
            for call in opened
            if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr in METHODS
            and "session" in ast.unparse(call.func.value).lower()
        ]
    )


def test_no_client_leaves_a_deadline_to_aiohttp() -> None:
    assert requests_with_timers("wait = aiohttp.ClientTimeout(total=3)") == [1]
    assert requests_with_timers("async def f(s):\n async with s.session.get(''): pass") == [2]
    assert requests_with_timers("async def f(session):\n return await session.request('')") == [2]
    clients = [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if "import aiohttp" in path.read_text() and path.relative_to(ROOT) not in EXEMPT
    ]
    assert len(clients) > 10
    made = {str(path): requests_with_timers(path.read_text()) for path in clients}
    assert {path: lines for path, lines in made.items() if lines} == {}
