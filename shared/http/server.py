"""The HTTP server of a service, and the signals that stop it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Generator
from pathlib import Path

import uvicorn

from shared.http.asgi import AsgiApp
from shared.http.head_limit import HeadLimitProtocol
from shared.http.operations import for_clients, for_operators

STOP_TIMEOUT_S = 10
KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so the client closes first."""

READY_LOOK_S = 0.05
"""How often a process with a shared port looks whether it is ready."""
UNREADY_S = 10.0
"""How long it waits, and then looks each time, before it serves a port that nobody serves; and how
often, while it serves one, whether another process had better do so alone."""
LISTENS = "0A"
"""State of a listening socket in the kernel's tables."""


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the service it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def stop_on_signals(hurry: asyncio.Event | None = None) -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets; a second one sets `hurry`, where it is given.

    Call it inside the running loop.
    """
    stop = asyncio.Event()

    def stopped() -> None:
        if stop.is_set() and hurry is not None:
            hurry.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped)
    return stop


async def serve(
    app: AsgiApp,
    *,
    host: str,
    port: int,
    stop: asyncio.Event,
    operations_port: int = 0,
    shared_port: Callable[[], bool] | None = None,
) -> None:
    """Serve an application until `stop` is set, then let open requests end for a bounded time.

    With an `operations_port` /metrics and the documentation of the API are on that port alone. A
    `shared_port` is one that other processes of this user serve too (SO_REUSEPORT). It is opened
    once the function says that this process is ready: from then on it gets its share of clients.
    Where no process is, it is opened after UNREADY_S: clients get the refusal that says why, as a
    port that is closed looks like a dead machine. A process that is not ready closes it, and the
    connections that it has there, once it sees that another one serves it.

    Raises:
        SystemExit: a port cannot be taken.

    """
    if not operations_port:
        await _serve(app, host=host, port=port, stop=stop, shared=shared_port)
        return
    async with asyncio.TaskGroup() as group:
        clients = _serve(for_clients(app), host=host, port=port, stop=stop, shared=shared_port)
        group.create_task(clients)
        group.create_task(_serve(for_operators(app), host=host, port=operations_port, stop=stop))


async def _may_open(
    host: str, port: int, ready: Callable[[], bool], stop: asyncio.Event, look_in_s: float
) -> bool:
    """Wait until a process may open a shared port; False where it is to stop before that."""
    now = asyncio.get_running_loop().time
    look_at = now() + look_in_s
    while not ready() and not stop.is_set():
        if now() >= look_at:
            if not await _is_served(host, port):
                return True
            look_at = now() + UNREADY_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_LOOK_S):
                await stop.wait()
    return not stop.is_set()


async def _had_better_close(port: int, ready: Callable[[], bool]) -> None:
    """Wait until this process is not ready while another one serves its port, too."""
    while True:
        await asyncio.sleep(UNREADY_S)
        if not ready() and _listeners(port) > 1:
            return


def _listeners(port: int) -> int:
    """How many sockets listen on a TCP port; 0 where the system does not say."""
    found = 0
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
                _, local, _, state, _ = line.split(maxsplit=4)
                found += state == LISTENS and int(local.rpartition(":")[2], 16) == port
    return found


async def _is_served(host: str, port: int) -> bool:
    """Whether a process accepts connections to a port; one too busy to do so now serves it."""
    try:
        async with asyncio.timeout(UNREADY_S):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return True
    except OSError:
        return False
    writer.close()
    return True


def _shared_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, reuse_port=True)
    except OSError as error:
        raise SystemExit(f"{host}:{port} cannot be taken: {error}") from None


async def _serve(
    app: AsgiApp,
    *,
    host: str,
    port: int,
    stop: asyncio.Event,
    shared: Callable[[], bool] | None = None,
) -> None:
    if shared is None:
        await _serve_until(app, host, port, asyncio.create_task(stop.wait()))
        return
    look_in_s = UNREADY_S
    while await _may_open(host, port, shared, stop, look_in_s):
        ends = (
            asyncio.create_task(stop.wait()),
            asyncio.create_task(_had_better_close(port, shared)),
        )
        await _serve_until(app, host, port, *ends, listening=[_shared_socket(host, port)])
        # Where all closed it at once, the first to look opens it again.
        look_in_s = 0.0


async def _serve_until(
    app: AsgiApp,
    host: str,
    port: int,
    *ends: asyncio.Task[object],
    listening: list[socket.socket] | None = None,
) -> None:
    """Serve until one of some tasks ends, which are cancelled then."""
    config = uvicorn.Config(
        app,
        http=HeadLimitProtocol,
        ws="none",
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
    serving = asyncio.create_task(server.serve(listening))
    await asyncio.wait((serving, *ends), return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    for end in ends:
        end.cancel()
    await serving
