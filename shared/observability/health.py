"""Health that means progress, and the three routes every service has.

`/healthz` fails when something that should go round has stood still: restarting may help.
`/readyz` fails while the service cannot do its work: send it none. Both say why.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from typing import Any

import orjson
import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from shared.observability.head_limit import HeadLimitProtocol

log = structlog.get_logger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

Check = Callable[[], str | None]
"""Returns None when all is well, else what is wrong and what would help."""

STOP_TIMEOUT_S = 10
KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so that they close them and not we under their hands."""


class Health:
    """Named checks of liveness and readiness. Checks are quick and never wait."""

    def __init__(self) -> None:
        self._alive: dict[str, Check] = {}
        self._ready: dict[str, Check] = {}
        self._notes: dict[str, Check] = {}

    def alive(self, name: str, check: Check) -> None:
        """Add a check of progress."""
        self._alive[name] = check

    def ready(self, name: str, check: Check) -> None:
        """Add a check of readiness."""
        self._ready[name] = check

    def note(self, name: str, check: Check) -> None:
        """Add something that readiness says and that does not fail it: service goes on without."""
        self._notes[name] = check

    def progress(self, name: str, idle_s: Callable[[], float], limit_s: float) -> None:
        """Alive means that `idle_s` stays under `limit_s` seconds."""

        def check() -> str | None:
            idle = idle_s()
            if idle <= limit_s:
                return None
            return f"no progress for {idle:.0f} s, at most {limit_s:.0f} s is right"

        self.alive(name, check)

    def liveness(self) -> tuple[bool, dict[str, str]]:
        """Whether all is alive, and what each check says."""
        return _run(self._alive)

    def readiness(self) -> tuple[bool, dict[str, str]]:
        """Whether all is alive and ready, and what each check and note says."""
        well, said = _run({**self._alive, **self._ready})
        return well, {**said, **_run(self._notes)[1]}


def _run(checks: dict[str, Check]) -> tuple[bool, dict[str, str]]:
    said = {name: check() for name, check in checks.items()}
    return all(word is None for word in said.values()), {
        name: word or "ok" for name, word in said.items()
    }


class OpsApp:
    """ASGI application of `/healthz`, `/readyz` and `/metrics`, or a part of a larger one."""

    def __init__(self, health: Health, metrics: CollectorRegistry) -> None:
        self._health = health
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the three routes; 404 for every other."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if not await self.serve(scope, send):
            await respond(send, 404, b'{"error":"unknown path"}', b"application/json")

    async def serve(self, scope: Scope, send: Send) -> bool:
        """Answer one of the three routes; False for a request that is not for them."""
        match scope["path"]:
            case "/healthz":
                await self._report(send, *self._health.liveness())
            case "/readyz":
                await self._report(send, *self._health.readiness())
            case "/metrics":
                body = generate_latest(self._metrics)
                await respond(send, 200, body, CONTENT_TYPE_LATEST.encode())
            case _:
                return False
        return True

    @staticmethod
    async def _report(send: Send, well: bool, checks: dict[str, str]) -> None:
        body = orjson.dumps({"ok": well, "checks": checks})
        await respond(send, 200 if well else 503, body, b"application/json")


async def respond(send: Send, status: int, body: bytes, content_type: bytes) -> None:
    """Send a whole response."""
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the service it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets. Call it inside the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def serve(app: AsgiApp, *, host: str, port: int, stop: asyncio.Event) -> None:
    """Serve an application until `stop` is set, then let open requests end for a bounded time.

    Raises:
        SystemExit: the port cannot be taken.

    """
    config = uvicorn.Config(
        app,
        http=HeadLimitProtocol,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    stopping.cancel()
    await serving
