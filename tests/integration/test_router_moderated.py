"""Moderated generation through a router process, before inference services of two bases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.router_process import router_process

PATH = "/v1/moderated"
EVENTS = b'data: {"stage": "writer"}\n\ndata: {"stage": "result"}\n\n'


class InferenceOfOneBase:
    """An inference service that has a model's stable version, or says that it is not here."""

    def __init__(self, *, has: bool) -> None:
        self.has = has
        self.keys: list[str | None] = []
        app = web.Application()
        app.router.add_post(PATH, self._answer)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("")).rstrip("/")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.keys.append(request.headers.get("authorization"))
        if not self.has:
            return web.json_response({"code": "unknown_adapter"}, status=404)
        if not (await request.json()).get("stream"):
            return web.json_response({"text": "Soon."})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(EVENTS)
        return response


@pytest.fixture
async def services() -> AsyncIterator[tuple[InferenceOfOneBase, InferenceOfOneBase]]:
    made = InferenceOfOneBase(has=False), InferenceOfOneBase(has=True)
    async with AsyncExitStack() as stack:
        for one in made:
            await stack.enter_async_context(one.server)
        yield made


async def test_the_service_that_has_the_version_answers_whole_and_streamed(
    kafka: str,
    redis_server: str,
    unique: str,
    tmp_path: Path,
    services: tuple[InferenceOfOneBase, InferenceOfOneBase],
) -> None:
    lacks, has = services
    redis_url = redis_server.rsplit("/", 1)[0] + "/7"
    async with router_process(kafka, redis_url, unique, tmp_path, has.url) as harness:
        await harness.controller.decide(0, outside=True)
        await harness.router.start(RATCHET_ROUTER_MODERATION_URL=f"{lacks.url}, {has.url}/")
        await harness.router.ready()
        headers = {"authorization": "Bearer mine"}
        async with httpx.AsyncClient(base_url=harness.router.url, headers=headers) as http:
            asked = {"model": harness.model, "messages": [{"role": "user", "content": "Hm?"}]}
            whole = [await http.post(PATH, json=asked) for _ in range(5)]
            stream = await http.post(PATH, json={**asked, "stream": True})
            metrics = (await http.get("/metrics")).text
    assert [(one.status_code, one.json()) for one in whole] == [(200, {"text": "Soon."})] * 5
    assert (stream.headers["content-type"], stream.content) == ("text/event-stream", EVENTS)
    assert set(has.keys) == {"Bearer mine"}
    assert 1 <= len(lacks.keys) < 6
    (retries,) = (
        line
        for line in metrics.splitlines()
        if "engine_retries_total" in line and "missing" in line
    )
    assert float(retries.split()[-1]) == len(lacks.keys)
