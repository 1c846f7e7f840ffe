"""The operations routes of every service: /healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Callable

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from shared.http.asgi import AsgiApp, Receive, Scope, Send, respond
from shared.observability.health import Health

OPERATORS = frozenset(("/metrics", "/docs", "/openapi.json"))
PROBES = frozenset(("/healthz", "/readyz"))
UNKNOWN_PATH = b'{"error":"unknown path; there are /healthz, /readyz and /metrics"}'
OTHER_PORT = b'{"error":"not on this port; ask the service\'s other port"}'


class OperationsApp:
    """ASGI application of the operations routes, in front of `app` where there is one."""

    def __init__(
        self, health: Health, metrics: CollectorRegistry, app: AsgiApp | None = None
    ) -> None:
        self._health = health
        self._metrics = metrics
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve an operations route; hand everything else to the application, or answer 404."""
        if scope["type"] == "http" and await self.serve(scope, send):
            return
        if self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await respond(send, 404, UNKNOWN_PATH, b"application/json")

    async def serve(self, scope: Scope, send: Send) -> bool:
        """Answer an operations route; False for a request to any other path."""
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


class PathFilter:
    """ASGI middleware that answers 404 where `serves(path)` is false."""

    def __init__(self, app: AsgiApp, serves: Callable[[str], bool]) -> None:
        self._app = app
        self._serves = serves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is served here."""
        if scope["type"] == "http" and not self._serves(scope["path"]):
            await respond(send, 404, OTHER_PORT, b"application/json")
        else:
            await self._app(scope, receive, send)


def for_clients(app: AsgiApp) -> AsgiApp:
    """The application without what only operators should read."""
    return PathFilter(app, lambda path: path not in OPERATORS)


def for_operators(app: AsgiApp) -> AsgiApp:
    """What of the application operators and probes read, and nothing else."""
    return PathFilter(app, lambda path: path in OPERATORS or path in PROBES)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
