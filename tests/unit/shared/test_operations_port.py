"""With an operations port, strangers on the service's port read neither metrics nor documents."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter

import httpx
import pytest
from prometheus_client import CollectorRegistry

from deploy.local.ports import free_ports
from shared.http import server
from shared.http.asgi import Receive, Scope, Send, respond
from shared.http.operations import OperationsApp
from shared.http.server import serve
from shared.observability.health import Health
from tests.support.waiting import eventually


async def answered(_: Scope, __: Receive, send: Send) -> None:
    await respond(send, 200, b"{}", b"application/json")


async def test_metrics_are_on_the_operations_port_alone() -> None:
    ports, stop = free_ports(["clients", "operators"]), asyncio.Event()
    app = OperationsApp(Health(), CollectorRegistry(), answered)
    serving = asyncio.create_task(
        serve(
            app,
            host="127.0.0.1",
            port=ports["clients"],
            stop=stop,
            operations_port=ports["operators"],
        )
    )
    async with httpx.AsyncClient() as client:

        async def status(port: str, path: str) -> int:
            try:
                return (await client.get(f"http://127.0.0.1:{ports[port]}{path}")).status_code
            except httpx.ConnectError:
                return 0

        async def both() -> bool:
            return [await status(port, "/healthz") for port in ports] == [200, 200]

        await eventually(both, "both ports")
        found = {
            path: (await status("clients", path), await status("operators", path))
            for path in ("/metrics", "/docs", "/openapi.json", "/readyz", "/v1/feedback")
        }
    stop.set()
    await serving
    assert found == {
        "/metrics": (404, 200),
        "/docs": (404, 200),
        "/openapi.json": (404, 200),
        "/readyz": (200, 200),
        "/v1/feedback": (200, 404),
    }


async def test_a_shared_port_is_opened_by_a_process_that_is_ready() -> None:
    ports, stop, ready = free_ports(["clients", "operators"]), asyncio.Event(), asyncio.Event()

    async def opened(port: str) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", ports[port])
        except OSError:
            return False
        writer.close()
        return True

    app = OperationsApp(Health(), CollectorRegistry(), answered)
    serving = asyncio.create_task(
        serve(
            app,
            host="127.0.0.1",
            port=ports["clients"],
            stop=stop,
            operations_port=ports["operators"],
            shared_port=ready.is_set,
        )
    )
    await eventually(lambda: opened("operators"), "the operations port")
    assert not await opened("clients")
    ready.set()
    await eventually(lambda: opened("clients"), "the clients' port")
    stop.set()
    await serving


async def test_a_shared_port_of_which_no_process_is_ready_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[int] = []
    open_socket = server._shared_socket

    def opening(host: str, port: int) -> socket.socket:
        opened.append(port)
        return open_socket(host, port)

    monkeypatch.setattr(server, "_shared_socket", opening)
    monkeypatch.setattr(server, "UNREADY_S", 0.1)
    port, stop, looks = free_ports(["clients"])["clients"], asyncio.Event(), Counter[int]()
    health = Health()
    health.ready("log", lambda: "not read yet")

    def process(number: int) -> asyncio.Task[None]:
        def ready() -> bool:
            looks[number] += 1
            return False

        app = OperationsApp(health, CollectorRegistry(), answered)
        return asyncio.create_task(
            serve(app, host="127.0.0.1", port=port, stop=stop, shared_port=ready)
        )

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:

        async def status() -> int:
            try:
                return (await http.get("/readyz")).status_code
            except httpx.TransportError:
                return 0

        first = process(1)
        assert await eventually(status, "the port") == 503
        second = process(2)
        await eventually(lambda: looks[2] > 10, "the second has looked at the port")
    assert opened == [port]
    stop.set()
    await asyncio.gather(first, second)


async def test_a_process_that_is_not_ready_leaves_a_shared_port_to_one_that_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "UNREADY_S", 0.1)
    port, stop = free_ports(["clients"])["clients"], asyncio.Event()
    ready = {1: asyncio.Event(), 2: asyncio.Event()}

    def process(number: int) -> asyncio.Task[None]:
        async def app(_: Scope, __: Receive, send: Send) -> None:
            await respond(
                send, 200 if ready[number].is_set() else 503, b"%d" % number, b"text/plain"
            )

        return asyncio.create_task(
            serve(app, host="127.0.0.1", port=port, stop=stop, shared_port=ready[number].is_set)
        )

    async def answers(http: httpx.AsyncClient) -> str:
        try:
            return (await http.get("/")).text
        except httpx.TransportError:
            return ""

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as kept:
        first = process(1)
        await eventually(lambda: answers(kept), "the port")
        second = process(2)
        ready[2].set()

        async def by_the_second() -> bool:
            async with httpx.AsyncClient(base_url=str(kept.base_url)) as fresh:
                return {await answers(fresh), await answers(kept)} == {"2"}

        await eventually(by_the_second, "a connection that the first had is the second's")
        assert server._listeners(port) == 1
        ready[1].set()
        await eventually(lambda: server._listeners(port) == 2, "the first serves again")
    stop.set()
    await asyncio.gather(first, second)


async def test_a_process_that_is_never_ready_stops() -> None:
    ports, stop = free_ports(["clients"]), asyncio.Event()
    app = OperationsApp(Health(), CollectorRegistry(), answered)
    serving = asyncio.create_task(
        serve(app, host="127.0.0.1", port=ports["clients"], stop=stop, shared_port=lambda: False)
    )
    await asyncio.sleep(0)
    stop.set()
    async with asyncio.timeout(60):
        await serving
