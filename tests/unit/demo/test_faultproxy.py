"""The fault proxy: transparent, streaming too, and failing exactly the share it was told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from demo.faultproxy import FaultProxy

VERSION = "assistant-v1.3"


async def _upstream(request: web.Request) -> web.StreamResponse:
    if request.path == "/stream":
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number in range(3):
            await response.write(f"data: {number}\n\n".encode())
        return response
    body = await request.read()
    return web.Response(
        body=body, status=203, headers={"x-seen": f"{request.method} {request.path_qs}"}
    )


async def _serve(app: web.Application) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    return runner, f"http://{host}:{port}"


class FaultProxyHarness:
    """An upstream, the proxy before it, and a client."""

    def __init__(self, session: aiohttp.ClientSession, url: str, admin: str) -> None:
        self.session, self.url, self.admin = session, url, admin


@pytest.fixture
async def bench() -> AsyncIterator[FaultProxyHarness]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", _upstream)
    upstream, upstream_url = await _serve(app)
    async with aiohttp.ClientSession() as session:
        proxy = FaultProxy(upstream_url, session, seed=1)
        front, url = await _serve(proxy.app())
        back, admin = await _serve(proxy.admin())
        yield FaultProxyHarness(session, url, admin)
        for runner in (front, back, upstream):
            await runner.cleanup()


async def _statuses(bench: FaultProxyHarness, model: str, count: int) -> list[int]:
    async def one() -> int:
        async with bench.session.post(f"{bench.url}/v1/x", json={"model": model}) as answer:
            return answer.status

    return await asyncio.gather(*(one() for _ in range(count)))


async def test_everything_passes_unchanged(bench: FaultProxyHarness) -> None:
    async with bench.session.put(f"{bench.url}/a/b?c=d", data=b"\x00body") as answer:
        assert answer.status == 203
        assert answer.headers["x-seen"] == "PUT /a/b?c=d"
        assert await answer.read() == b"\x00body"


async def test_streams_pass_piece_by_piece(bench: FaultProxyHarness) -> None:
    async with bench.session.get(f"{bench.url}/stream") as answer:
        assert answer.content_type == "text/event-stream"
        assert await answer.text() == "data: 0\n\ndata: 1\n\ndata: 2\n\n"


async def test_only_the_named_version_fails_and_at_its_share(bench: FaultProxyHarness) -> None:
    fault = {"version": VERSION, "share": 0.3}
    async with bench.session.put(f"{bench.admin}/fault", json=fault) as answer:
        assert answer.status == 200
    failed = (await _statuses(bench, VERSION, 300)).count(500)
    assert 60 < failed < 120
    assert set(await _statuses(bench, "assistant-v1.0", 50)) == {203}
    async with bench.session.get(f"{bench.admin}/fault") as answer:
        assert await answer.json() == {**fault, "failed": failed, "passed": 300 - failed}
    async with bench.session.delete(f"{bench.admin}/fault") as answer:
        assert answer.status == 200
    assert set(await _statuses(bench, VERSION, 50)) == {203}


@pytest.mark.parametrize("body", ["no json", '{"version": "a"}', '{"version": "a", "share": 2}'])
async def test_a_bad_fault_is_refused_with_what_is_right(
    bench: FaultProxyHarness, body: str
) -> None:
    async with bench.session.put(f"{bench.admin}/fault", data=body) as answer:
        assert answer.status == 422
        assert "share" in (await answer.json())["error"]["message"]


async def test_a_lost_engine_is_a_lost_connection() -> None:
    async with aiohttp.ClientSession() as session:
        unused = "http://127.0.0.1:9"
        front, url = await _serve(FaultProxy(unused, session, seed=1).app())
        try:
            with pytest.raises(aiohttp.ClientConnectionError):
                await session.get(f"{url}/health")
        finally:
            await front.cleanup()
