"""`/v1/moderated` at the router: passed on with its key, streamed back, refused without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from services.router.bounds import AnswerBounds
from services.router.engines import Engines, RetryReason
from services.router.filter_rules import MASK, FilterRule, FilterRules
from services.router.identity import IdentityRules
from services.router.moderated import PATH, ModeratedProxy
from services.router.moderation_endpoint import ModerationEndpoint, ModerationPolicy
from services.router.output_filter import OutputFilter
from services.router.state import RouteChoice
from shared.clock import SystemClock
from shared.contracts.events.interactions import FilterAction
from shared.keys import KeyRing
from shared.quotas import Quotas, RateLimits, inference_limits
from shared.testing.clock import ManualClock

STABLE = "m-v1.0"


def url_of(server: TestServer) -> str:
    return str(server.make_url("")).rstrip("/")


async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
    """The rest of the router."""
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
async def inference() -> AsyncIterator[TestServer]:
    async def answer(request: web.Request) -> web.StreamResponse:
        if b"whole" in await request.read():
            return web.Response(body=await request.read(), content_type="application/json")
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: " + await request.read() + b"\n\n")
        await response.write(request.headers.get("authorization", "none").encode())
        await response.write(request.headers.get("traceparent", "").encode())
        return response

    app = web.Application()
    app.router.add_post(PATH, answer)
    async with TestServer(app) as server:
        yield server


def moderated(services: Engines, **more: Any) -> Any:
    keys = more.pop("keys", KeyRing(required=False))
    quotas = Quotas(key=inference_limits(more.pop("key_limits", RateLimits())), tenant=RateLimits())
    return ModeratedProxy(
        elsewhere,
        services=services,
        keys=keys,
        quotas=quotas,
        bounds=more.pop("bounds", AnswerBounds()),
        identity=IdentityRules(),
        output_filter=OutputFilter(
            more.pop("rules", FilterRules()), CollectorRegistry(), more.pop("moderation", None)
        ),
        writer_of=lambda name: RouteChoice(name.removesuffix("-v1.0"), STABLE, ""),
        limit=1_000,
    )


@asynccontextmanager
async def client(*urls: str, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with Engines(urls, ManualClock(), retried=more.pop("retried", ignored)) as services:
        transport = httpx.ASGITransport(moderated(services, **more))
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as http:
            yield http


def ignored(_: RetryReason) -> None:
    """Another service was asked."""


async def test_body_and_key_go_on_and_the_stream_comes_back(inference: TestServer) -> None:
    url = url_of(inference)
    async with client(url) as http:
        answer = await http.post(PATH, content=b"{}", headers={"authorization": "Bearer k"})
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.text == "data: {}\n\nBearer k"
        assert (await http.get(PATH)).status_code == 418
        assert (await http.post("/v1/chat/completions")).status_code == 418


async def test_the_clients_trace_goes_on(inference: TestServer) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with client(url_of(inference)) as http:
        for given, passed_on in ((trace, trace), ("no trace", "")):
            answer = await http.post(PATH, content=b"{}", headers={"traceparent": given})
            assert answer.text == f"data: {{}}\n\nnone{passed_on}"


async def test_keys_sizes_and_an_absent_service_are_refusals(inference: TestServer) -> None:
    url = url_of(inference)
    async with client(url, keys=KeyRing(required=True)) as http:
        assert (await http.post(PATH, content=b"{}")).status_code == 401
    async with client(url) as http:
        assert (await http.post(PATH, content=b" " * 1_001)).status_code == 413
    async with client("http://127.0.0.1:9") as http:
        answer = await http.post(PATH, content=b"{}")
        assert (answer.status_code, answer.json()["code"]) == (503, "moderation_unavailable")


@pytest.mark.parametrize(
    ("limits", "statuses"),
    [(RateLimits(requests=4), [200, 200, 429]), (RateLimits(running=1), [200, 200, 200])],
    ids=["two requests each", "one at a time"],
)
async def test_the_key_s_limits_hold_and_slots_come_back(
    inference: TestServer, limits: RateLimits, statuses: list[int]
) -> None:
    url = url_of(inference)
    async with (
        client(url, key_limits=limits) as http,
    ):
        answers = [await http.post(PATH, content=b"{}") for _ in statuses]
    assert [one.status_code for one in answers] == statuses
    if statuses[-1] == 429:
        assert answers[-1].json()["code"] == "rate_limited"
        assert answers[-1].headers["retry-after"]


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        (b'{"max_tokens":9}', '{"max_tokens":9}'),
        (b'{"max_tokens":10}', "max_tokens: at most 9"),
        (b'{"max_tokens":"9"}', "max_tokens: must be a whole number"),
        (b'{"n":3}', "n: at most 2 answers"),
        (b"{}", '{"max_tokens":9}'),
        (b"[]", "the body must be a JSON object"),
        (b"{", "the body is not valid JSON: "),
        (b'{"max_tokens":10,"temperature":NaN}', "the body is not valid JSON: "),
        (b'{"a":' + b"[" * 260 + b"]" * 260 + b"}", "the body cannot be passed on: "),
        ('{"max_tokens":10}'.encode("utf-16"), "the body is not valid JSON: "),
    ],
)
async def test_the_bounds_of_one_request_hold(
    inference: TestServer, sent: bytes, asked: str
) -> None:
    url = url_of(inference)
    async with (
        client(url, bounds=AnswerBounds(max_choices=2, max_tokens=9)) as http,
    ):
        answer = await http.post(PATH, content=sent)
        assert asked in answer.text
        assert answer.status_code == (200 if asked.startswith("{") else 400)


@pytest.mark.parametrize(
    ("action", "form", "status", "shown"),
    [
        ("mask", "whole", 200, MASK),
        ("block", "whole", 400, "content_filter"),
        ("mask", "stream", 400, "content_filter"),
        ("flag", "stream", 200, "Heron"),
    ],
)
@pytest.mark.parametrize("model", ["m", "m-v1.0"])
async def test_the_output_filter_holds(
    inference: TestServer, model: str, action: str, form: str, status: int, shown: str
) -> None:
    url = url_of(inference)
    rule = FilterRule(
        name="code", action=FilterAction(action), words=("Project Heron",), models=("m",)
    )
    async with (
        client(url, rules=FilterRules([rule])) as http,
    ):
        body = {"model": model, "stage": form, "writer": {"text": "It is Project Heron."}}
        answer = await http.post(PATH, json=body)
        other = await http.post(PATH, json={**body, "model": "other"})
    assert answer.status_code == status
    assert shown in answer.text
    assert ("Heron" in answer.text) == (action == "flag")
    assert "Heron" in other.text


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_an_answer_that_cannot_be_read_is_refused_and_holds_nothing(kind: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b'data: {"broken', content_type=kind)

    app = web.Application()
    app.router.add_post(PATH, answer)
    rules = FilterRules([FilterRule(name="code", action=FilterAction.flag, words=("Heron",))])
    async with TestServer(app) as server, Engines((url_of(server),), SystemClock()) as services:
        proxy = moderated(services, rules=rules)
        transport = httpx.ASGITransport(app=proxy)
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as http:
            refused = await http.post(PATH, json={"model": "m"})
    assert (refused.status_code, refused.json()["code"]) == (503, "moderation_unavailable")
    held = proxy._filter.held
    assert (held.held, held.streams) == (0, 0)


@pytest.mark.parametrize("form", ["whole", "stream"])
async def test_the_moderation_endpoint_judges_it_too(inference: TestServer, form: str) -> None:
    url = url_of(inference)
    async with aiohttp.ClientSession() as session:
        away = ModerationPolicy("http://127.0.0.1:1")
        moderation = ModerationEndpoint(session, away, dict, CollectorRegistry())
        async with client(url, moderation=moderation) as http:
            body = {"model": "m", "stage": form, "writer": {"text": "It is noon."}}
            answer = await http.post(PATH, json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "content_filter")
    assert "noon" not in answer.text


async def test_a_request_without_a_length_keeps_the_service_s_default(
    inference: TestServer,
) -> None:
    url = url_of(inference)
    async with (
        client(url, bounds=AnswerBounds(max_tokens=100_000)) as http,
    ):
        assert '{"max_tokens":256}' in (await http.post(PATH, content=b"{}")).text


@pytest.mark.parametrize("begun", [False, True], ids=["before the answer", "in the stream"])
async def test_a_client_that_leaves_ends_the_service_s_request(begun: bool) -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        if begun:
            await response.prepare(request)
            await response.write(b"data: {}\n\n")
        asked.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return response

    app = web.Application()
    app.router.add_post(PATH, silent)
    async with TestServer(app) as server, Engines((url_of(server),), SystemClock()) as services:
        proxy = moderated(services)
        body = [{"type": "http.request", "body": b"{}", "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            if body:
                return body.pop()
            await asked.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
        async with asyncio.timeout(60):
            await proxy(scope, receive, send)
            await ended.wait()
    assert "http.response.start" in sent or not begun


async def test_who_asks_goes_along_from_the_header_too(inference: TestServer) -> None:
    url = url_of(inference)
    async with client(url) as http:
        answer = await http.post(PATH, content=b"{}", headers={"x-ratchet-user": "ann"})
    assert '"user":"ann"' in answer.text


class RefusingOrAnswering:
    """An inference service: its answer, or its refusal, and how often it was asked."""

    def __init__(self, status: int = 200, text: str = "") -> None:
        self.status = status
        self.text = text
        self.asked = 0
        app = web.Application()
        app.router.add_post(PATH, self._answer)
        self.server = TestServer(app)

    async def _answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.status == 200:
            return web.json_response({"text": self.text})
        problem = {"status": self.status, "code": f"refused_{self.status}"}
        return web.json_response(
            problem, status=self.status, content_type="application/problem+json"
        )


@pytest.fixture
async def both() -> AsyncIterator[tuple[RefusingOrAnswering, RefusingOrAnswering]]:
    old, new = RefusingOrAnswering(text="old base"), RefusingOrAnswering(404, "new base")
    async with old.server, new.server:
        yield old, new


async def test_a_service_that_has_the_writer_s_version_answers_as_it_moves_to_another_base(
    both: tuple[RefusingOrAnswering, RefusingOrAnswering],
) -> None:
    """No address is changed: who has the version is found, and asked first from then on."""
    old, new = both
    reasons: list[RetryReason] = []
    urls = url_of(new.server), url_of(old.server)
    async with client(*urls, retried=reasons.append) as http:

        async def texts(count: int) -> set[str]:
            answers = [await http.post(PATH, json={"model": "m"}) for _ in range(count)]
            assert {one.status_code for one in answers} == {200}
            return {one.json()["text"] for one in answers}

        assert await texts(20) == {"old base"}
        assert (new.asked, reasons) == (1, [RetryReason.missing])
        old.status, new.status = 404, 200
        assert await texts(20) == {"new base"}
        assert reasons == [RetryReason.missing] * 2


@pytest.mark.parametrize(("status", "others"), [(404, 1), (503, 1), (504, 0), (502, 0), (422, 0)])
async def test_another_service_is_asked_only_where_the_first_has_done_nothing(
    both: tuple[RefusingOrAnswering, RefusingOrAnswering], status: int, others: int
) -> None:
    first, second = both
    first.status = second.status = status
    async with client(url_of(first.server), url_of(second.server)) as http:
        answer = await http.post(PATH, json={"model": "m"})
    assert (answer.status_code, answer.json()["code"]) == (status, f"refused_{status}")
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert (first.asked, second.asked) == (1, others)


async def test_a_service_that_is_away_is_passed_over(
    both: tuple[RefusingOrAnswering, RefusingOrAnswering],
) -> None:
    old, _ = both
    async with client("http://127.0.0.1:9", url_of(old.server)) as http:
        assert (await http.post(PATH, json={"model": "m"})).json() == {"text": "old base"}
