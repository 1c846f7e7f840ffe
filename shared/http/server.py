"""The HTTP server of a service, and the signals that stop it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Generator

import uvicorn

from shared.http.asgi import AsgiApp
from shared.http.head_limit import HeadLimitProtocol
from shared.http.operations import for_clients, for_operators

STOP_TIMEOUT_S = 10
KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so the client closes first."""


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


async def serve(
    app: AsgiApp, *, host: str, port: int, stop: asyncio.Event, operations_port: int = 0
) -> None:
    """Serve an application until `stop` is set, then let open requests end for a bounded time.

    With an `operations_port` /metrics and the documentation of the API are on that port alone.

    Raises:
        SystemExit: a port cannot be taken.

    """
    if not operations_port:
        await _serve(app, host=host, port=port, stop=stop)
        return
    async with asyncio.TaskGroup() as group:
        group.create_task(_serve(for_clients(app), host=host, port=port, stop=stop))
        group.create_task(_serve(for_operators(app), host=host, port=operations_port, stop=stop))


async def _serve(app: AsgiApp, *, host: str, port: int, stop: asyncio.Event) -> None:
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
