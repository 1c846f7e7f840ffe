"""Webhook receiver: an HTTP server that keeps what it got and answers as it is told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

import orjson
from aiohttp import web

SECRET = "the shared secret"


class WebhookReceiver:
    """Answers POSTs at `url` with the statuses it was given, then with 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.silent = False
        """Whether it takes requests and never answers them."""
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.url = ""
        self._ended = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        if self.silent:
            await self._ended.wait()
        status = self.statuses.pop(0) if self.statuses else 200
        headers = {"location": "/elsewhere"} if 300 <= status < 400 else {}
        return web.Response(status=status, headers=headers)

    @property
    def payloads(self) -> list[dict[str, Any]]:
        """The bodies, as JSON."""
        return [orjson.loads(body) for _, body in self.got]

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Serve on a port of its own."""
        app = web.Application()
        for path in ("/hook", "/elsewhere"):
            app.router.add_post(path, self.take)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            self.url = f"http://{host}:{port}/hook"
            yield
        finally:
            self._ended.set()
            await runner.cleanup()


def is_signed(headers: dict[str, str], body: bytes, secret: str = SECRET) -> bool:
    """Whether a delivery is signed as Standard Webhooks says, computed apart from our code."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
