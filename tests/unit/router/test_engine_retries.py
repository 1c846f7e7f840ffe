"""Retries on another engine within an attempt: engines that drain, stop or have just started."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.stub_engine import TEXT, serve_stub
from services.router.engine_connection import AttemptDeadlines, ConnectFailed
from services.router.engines import DOWN_FOR_S, Engines
from shared.testing.clock import ManualClock
from tests.unit.router.conftest import GatewayHarness, error_of

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
TOKEN = {"choices": [{"index": 0, "delta": {"content": "Your "}}]}
ABORT = {"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}


def gives_up(*before: object) -> Callable[[web.Request], Awaitable[web.Response]]:
    """An engine that stops while it writes: what its client has by then, and the abort."""

    async def answer(request: web.Request) -> web.Response:
        if (await request.json()).get("stream"):
            events = [b"data: %b\n\n" % orjson.dumps(event) for event in (*before, ABORT)]
            return web.Response(body=b"".join(events), content_type="text/event-stream")
        message = {"role": "assistant", "content": "Your "}
        return web.json_response({"choices": [{"message": message, "finish_reason": "abort"}]})

    return answer


def refuses(status: int) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "not here"}}, status=status)

    return answer


LEAVING = {"given_up": gives_up(ROLE), "unavailable": refuses(503), "missing": refuses(404)}


class LeavingEngine:
    """An engine on a free port; counts requests."""

    def __init__(self, answer: Callable[[web.Request], Awaitable[web.Response]]) -> None:
        self.requests = 0
        self._answer = answer

    async def _handle(self, request: web.Request) -> web.Response:
        self.requests += 1
        return await self._answer(request)

    async def start(self, bench: GatewayHarness) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._handle)
        server = await bench.stack.enter_async_context(TestServer(app))
        return str(server.make_url("")).rstrip("/")


async def stub(bench: GatewayHarness) -> str:
    server, bench.seen = await serve_stub("127.0.0.1", 0)
    bench.stack.callback(server.close)
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def retries(bench: GatewayHarness) -> dict[str, int]:
    text = (await bench.client.get("/metrics")).text
    return {
        sample.labels["reason"]: int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "ratchet_router_engine_retries_total" and sample.value
    }


@BOTH
@pytest.mark.parametrize("reason", LEAVING)
async def test_another_engine_answers_for_one_that_leaves_and_the_attempt_counts_once(
    bench: GatewayHarness, reason: str, stream
):
    leaving = LeavingEngine(LEAVING[reason])
    await bench.start(engines=(await leaving.start(bench), await stub(bench)))
    bench.route(candidate="m-v1.1")
    response = await bench.ask(user="ana", stream=stream)
    assert response.status_code == 200
    assert response.text.count("assistant") == 1
    assert response.headers["x-ratchet-arm"] == "candidate"
    assert (leaving.requests, bench.seen.requests) == (1, 1)
    assert await bench.attempts() == {("m-v1.1", "candidate", "ok"): 1}
    assert await retries(bench) == {reason: 1}
    (event,) = bench.events()
    assert (event.completion, event.outcome, len(event.attempts)) == (TEXT, "ok", 1)


@BOTH
@pytest.mark.parametrize("reason", LEAVING)
async def test_with_all_engines_leaving_each_is_asked_once_and_the_failure_counts_once(
    bench: GatewayHarness, reason: str, stream
):
    leaving = [LeavingEngine(LEAVING[reason]) for _ in range(3)]
    await bench.start(engines=tuple([await engine.start(bench) for engine in leaving]))
    bench.route()
    response = await bench.ask(stream=stream)
    assert (response.status_code, error_of(response)["code"]) == (502, "engine_error")
    assert [engine.requests for engine in leaving] == [1, 1, 1]
    assert await bench.attempts() == {("m-v1.0", "", "server_error"): 1}
    assert await retries(bench) == {reason: 2}


@BOTH
async def test_of_engines_on_two_bases_each_version_is_asked_of_the_one_that_has_it(
    bench: GatewayHarness, stream
):
    """The engine on the old base has no adapter of the new one: one request in a while finds out."""
    old = LeavingEngine(refuses(404))
    await bench.start(engines=(await old.start(bench), await stub(bench)))
    bench.route(candidate="m-v2.0")
    for _ in range(20):
        assert (await bench.ask(user="ana", stream=stream)).status_code == 200
    assert (old.requests, bench.seen.requests) == (1, 20)
    assert await retries(bench) == {"missing": 1}


async def test_a_stream_whose_first_token_has_left_is_asked_of_no_other_engine(
    bench: GatewayHarness,
):
    begun = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: %b\n\n" % orjson.dumps(TOKEN))
        await begun.wait()
        await response.write(b"data: %b\n\n" % orjson.dumps(ABORT))
        return response

    leaving = LeavingEngine(answer)  # pyright: ignore[reportArgumentType]
    await bench.start(engines=(await leaving.start(bench), await stub(bench)))
    bench.route()
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with bench.client.stream("POST", "/v1/chat/completions", json=body) as response:
        events = response.aiter_lines()
        assert "Your " in await anext(events)
        begun.set()
        assert "engine_error" in "".join([line async for line in events])
    assert (leaving.requests, bench.seen.requests) == (1, 0)
    assert await retries(bench) == {}


@BOTH
async def test_an_only_url_is_asked_once_more_over_a_new_connection(bench: GatewayHarness, stream):
    """A Service of Kubernetes: old connections lead to the pod that leaves, new ones to others."""
    connections: list[object] = []
    leaves = False

    async def answer(request: web.Request) -> web.Response:
        if request.transport not in connections:
            connections.append(request.transport)
        if leaves and request.transport is connections[0]:
            return await refuses(503)(request)
        body = {"choices": [{"message": {"content": TEXT}, "finish_reason": "stop"}]}
        if (await request.json()).get("stream"):
            chunk = {"choices": [{"index": 0, "delta": {"content": TEXT}}]}
            events = b"data: %b\n\ndata: [DONE]\n\n" % orjson.dumps(chunk)
            return web.Response(body=events, content_type="text/event-stream")
        return web.json_response(body)

    await bench.start(engines=(await LeavingEngine(answer).start(bench),))
    bench.route()
    assert (await bench.ask(stream=stream)).status_code == 200
    leaves = True
    assert (await bench.ask(stream=stream)).status_code == 200
    assert len(connections) == 2
    assert await retries(bench) == {"unavailable": 1}
    assert await bench.attempts() == {("m-v1.0", "", "ok"): 2}


async def test_an_only_engine_is_asked_at_most_twice(bench: GatewayHarness):
    leaving = LeavingEngine(gives_up())
    await bench.start(engines=(await leaving.start(bench),))
    bench.route()
    assert (await bench.ask()).status_code == 502
    assert leaving.requests == 2


async def test_an_engine_that_leaves_is_asked_last_for_a_while(bench: GatewayHarness):
    bench.clock = clock = ManualClock()
    leaving = LeavingEngine(refuses(503))
    await bench.start(engines=(await leaving.start(bench), await stub(bench)))
    bench.route()
    for _ in range(3):
        assert (await bench.ask()).status_code == 200
    assert leaving.requests == 1
    clock.advance(2 * DOWN_FOR_S)
    assert (await bench.ask()).status_code == 200
    assert leaving.requests == 2


async def test_all_engines_share_the_deadline_of_the_request():
    given: list[float] = []

    class Pool:
        async def post(self, *args: object, anew: bool) -> None:
            given.append(args[-1].total_s)  # pyright: ignore[reportAttributeAccessIssue]
            await asyncio.sleep(0.01)
            raise ConnectFailed("refused")

    engines = Engines(("http://one:1", "http://two:1"), ManualClock())
    for engine in engines.order():
        engine.pool = Pool()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConnectFailed):
        await engines.request("chat", b"{}", {}, AttemptDeadlines(30.0)).__aenter__()
    assert given[1] < given[0] - 0.005
    assert [engine.in_flight for engine in engines.order()] == [0, 0]
