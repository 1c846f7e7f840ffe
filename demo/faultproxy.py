"""A transparent proxy in front of the engine that can fail a share of one version's requests.

It stands between router and vLLM for the whole demo, so that the failing candidate is a healthy
adapter behind a bad network, and no service needs a fault switch. The admin address is another
port: `PUT /fault {"version": …, "share": 0.3}`, `DELETE /fault`, `GET /fault` with the counts.

`python -m demo.faultproxy --port 8100 --admin-port 8101 --upstream http://127.0.0.1:8000`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
    )
)
"""Headers that belong to one connection (RFC 9110, section 7.6.1)."""
BODY_LIMIT = 32 * 1024 * 1024


@dataclass
class Fault:
    """Which version fails and how often. `share` 0 lets everything through."""

    version: str = ""
    share: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    failed: int = 0
    passed: int = 0

    def strikes(self, model: str) -> bool:
        """Whether this request fails; counts only requests of the named version."""
        if not self.version or model != self.version:
            return False
        struck = self.rng.random() < self.share
        self.failed += struck
        self.passed += not struck
        return struck


class FaultProxy:
    """Forwards everything to the upstream, byte for byte, except what the fault strikes."""

    def __init__(self, upstream: str, session: aiohttp.ClientSession, seed: int) -> None:
        self._upstream = upstream.rstrip("/")
        self._session = session
        self._seed = seed
        self.fault = Fault()

    def app(self) -> web.Application:
        """What the router talks to."""
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_route("*", "/{path:.*}", self._forward)
        return app

    def admin(self) -> web.Application:
        """What the demo talks to."""
        app = web.Application()
        app.router.add_get("/fault", self._show)
        app.router.add_put("/fault", self._set)
        app.router.add_delete("/fault", self._clear)
        return app

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.method == "POST" and self.fault.strikes(_model(body)):
            return web.json_response(
                {"error": {"message": "injected fault", "type": "server_error", "code": 500}},
                status=500,
            )
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        try:
            upstream = await self._session.request(
                request.method,
                f"{self._upstream}{request.rel_url}",
                data=body,
                headers=headers,
                allow_redirects=False,
            )
        except aiohttp.ClientConnectionError:
            # The router must see a lost engine as a lost engine, not as a polite 502.
            _hang_up(request)
            raise
        async with upstream:
            kept = {k: v for k, v in upstream.headers.items() if k.lower() not in HOP_BY_HOP}
            response = web.StreamResponse(status=upstream.status, headers=kept)
            if upstream.content_length is not None:
                response.content_length = upstream.content_length
            await response.prepare(request)
            try:
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
            except aiohttp.ClientError:
                _hang_up(request)
                raise
            await response.write_eof()
            return response

    async def _show(self, request: web.Request) -> web.Response:
        del request
        fault = self.fault
        return web.json_response(
            {
                "version": fault.version,
                "share": fault.share,
                "failed": fault.failed,
                "passed": fault.passed,
            }
        )

    async def _set(self, request: web.Request) -> web.Response:
        try:
            asked = await request.json()
            version, share = str(asked["version"]), float(asked["share"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            return _refusal('send {"version": "<name>", "share": 0.3}')
        if not 0.0 <= share <= 1.0:
            return _refusal("share must lie in [0, 1]")
        self.fault = Fault(version, share, random.Random(self._seed))
        return await self._show(request)

    async def _clear(self, request: web.Request) -> web.Response:
        self.fault = Fault()
        return await self._show(request)


def _model(body: bytes) -> str:
    try:
        parsed = json.loads(body)
    except ValueError:
        return ""
    return str(parsed.get("model", "")) if isinstance(parsed, dict) else ""


def _refusal(message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=422)


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def serve(upstream: str, port: int, admin_port: int, seed: int, stop: asyncio.Event) -> None:
    """Serves both addresses on loopback until `stop` is set."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    connector = aiohttp.TCPConnector(limit=256)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=connector, auto_decompress=False
    ) as session:
        proxy = FaultProxy(upstream, session, seed)
        runners = [
            web.AppRunner(proxy.app(), access_log=None, handler_cancellation=True),
            web.AppRunner(proxy.admin(), access_log=None),
        ]
        try:
            for runner, where in zip(runners, (port, admin_port), strict=True):
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", where).start()
            print(f"fault proxy: 127.0.0.1:{port} -> {upstream}", flush=True)
            await stop.wait()
        finally:
            for runner in runners:
                await runner.cleanup()


async def _run(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await serve(arguments.upstream, arguments.port, arguments.admin_port, arguments.seed, stop)


def main() -> None:
    """Serves until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--admin-port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
