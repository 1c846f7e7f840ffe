"""Links between services that a test can break: a TCP link that is cut, a Prometheus that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Literal, Self

import aiohttp
from aiohttp import web

from shared.http.client import request_within
from tests.support.rollout_harness import HOST

SLOW_S = 60.0
"""Longer than anybody waits for an answer."""
ANSWER_S = 30.0
"""For an answer of the Prometheus behind."""
CHUNK = 65_536


class CuttableLink:
    """A TCP proxy before `host:port`; `cut` ends every connection and refuses new ones."""

    def __init__(self, port: int, upstream: str) -> None:
        self._port = port
        self._upstream_host, _, self._upstream_port = upstream.rpartition(":")
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def mend(self) -> None:
        """Pass connections on."""
        self._server = await asyncio.start_server(self._serve, HOST, self._port)

    async def cut(self) -> None:
        """End every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        answers, server = await asyncio.open_connection(
            self._upstream_host, int(self._upstream_port)
        )
        ways = [
            asyncio.create_task(_pass(client, server)),
            asyncio.create_task(_pass(answers, reply)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for writer in (server, reply):
                writer.close()
            self._links.discard(task)


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await source.read(CHUNK):
            target.write(chunk)
            await target.drain()


class FaultyPrometheus:
    """Prometheus's query endpoint, as it is or with a fault."""

    def __init__(self, port: int, upstream: str) -> None:
        self.fault: Literal["", "slow", "empty", "nan"] = ""
        self._port = port
        self._upstream = upstream
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        app = web.Application()
        app.router.add_post("/api/v1/query", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self._port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, request: web.Request) -> web.Response:
        if self.fault == "slow":
            await asyncio.sleep(SLOW_S)
        asked = await request.post()
        url = f"{self._upstream}/api/v1/query"
        try:
            async with request_within(
                ANSWER_S, self._session, "POST", url, data=dict(asked)
            ) as answer:
                body = await answer.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            return web.json_response({"status": "error", "error": str(error)}, status=502)
        result: list[dict[str, Any]] = body["data"]["result"]
        if self.fault == "empty":
            result.clear()
        elif self.fault == "nan":
            for series in result:
                for sample in series.get("values", [])[-1:]:
                    sample[1] = "NaN"
        return web.json_response(body)
