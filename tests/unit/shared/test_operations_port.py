"""With an operations port, strangers on the service's port read neither metrics nor documents."""

from __future__ import annotations

import asyncio

import httpx
from prometheus_client import CollectorRegistry

from deploy.local.ports import free_ports
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

        await eventually(both, "both ports", 20)
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
    await eventually(lambda: opened("operators"), "the operations port", 60)
    assert not await opened("clients")
    ready.set()
    await eventually(lambda: opened("clients"), "the clients' port", 60)
    stop.set()
    await serving


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
