"""Responses over real connections, and how many writes they take."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from deploy.local.ports import free_ports
from shared.http import keep_alive
from shared.http.asgi import Receive, Scope, Send
from shared.http.keep_alive import KeepAliveProtocol
from shared.http.response_writes import CoalescingCycle
from shared.http.server import serve
from shared.http.streaming import StreamedResponse
from tests.support.waiting import eventually

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}
STREAM = {"type": "http.response.start", "status": 200, "headers": []}
LARGE = 32 * 1024 * 1024
"""Bytes that fit into no socket's buffers."""


def body(data: bytes, *, more: bool = False) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}


ended = asyncio.Event()


async def endless() -> AsyncIterator[bytes]:
    """A stream that says when it is over, as one does that holds a turn."""
    ended.clear()
    try:
        while True:
            yield b"x" * 65_536
    finally:
        await asyncio.sleep(0)  # what closes a stream may wait, though its client has left
        ended.set()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers by the path."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/stream":
        await send(STREAM)
        await send(body(b"one", more=True))
        await send(body(b"two"))
    elif scope["path"] == "/endless":
        await StreamedResponse(endless())(scope, receive, send)
    elif scope["path"] == "/large":
        await send(STREAM)
        await send(body(bytes(LARGE)))
    elif scope["path"] == "/break":
        await send(HEAD)
        raise RuntimeError("the application broke")
    else:
        await receive()
        await send(HEAD)
        await send(body(b"" if scope["method"] == "HEAD" else b"body"))


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Everything that responses write to their connections, one entry a write."""
    seen: list[bytes] = []

    class Recorded(CoalescingCycle):
        def __init__(self, *, transport: asyncio.Transport, **settings: Any) -> None:
            class Recorder:
                def write(self, data: bytes) -> None:
                    seen.append(data)
                    transport.write(data)

                def __getattr__(self, name: str) -> object:
                    return getattr(transport, name)

            super().__init__(transport=Recorder(), **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("shared.http.keep_alive.CoalescingCycle", Recorded)
    return seen


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    port, stop = free_ports(["test"])["test"], asyncio.Event()
    serving = asyncio.create_task(serve(app, host="127.0.0.1", port=port, stop=stop))

    async def connection() -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return None

    reader, writer = await eventually(connection, "the server listens")
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        stop.set()
        await serving


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_whole_response_is_one_write(run: Callable[..., None], writes: list[bytes]) -> None:
    async def ask() -> None:
        async with connected() as (reader, writer):
            for _ in range(2):
                writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                assert (await reader.readuntil(b"body")).startswith(b"HTTP/1.1 200")

    run(ask())
    assert len(writes) == 2


async def test_a_streams_pieces_leave_as_they_come(writes: list[bytes]) -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET /stream HTTP/1.1\r\nhost: a\r\n\r\n")
        await reader.readuntil(b"0\r\n\r\n")
    assert [write.partition(b"\r\n\r\n")[2] or write for write in writes] == [
        b"3\r\none\r\n",
        b"3\r\ntwo\r\n0\r\n\r\n",
    ]


async def test_a_client_that_stops_reading_ends_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_alive, "STALLED_S", 0.1)
    async with connected() as (reader, writer):
        writer.write(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.wait_for(ended.wait(), 60)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_client_that_stops_reading_a_whole_answer_is_disconnected(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        lost = asyncio.Event()

        def connection_lost(protocol: KeepAliveProtocol, error: Exception | None) -> None:
            known(protocol, error)
            lost.set()

        known = KeepAliveProtocol.connection_lost
        monkeypatch.setattr(keep_alive, "STALLED_S", 0.1)
        monkeypatch.setattr(KeepAliveProtocol, "connection_lost", connection_lost)
        async with connected() as (reader, writer):
            writer.write(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.wait_for(lost.wait(), 60)
            writer.transport.abort()

    run(ask())
    monkeypatch.undo()


async def test_a_client_that_reads_slowly_stays_connected_until_it_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keep_alive, "STALLED_S", 0.001)
    unread, aborted = [9, 7, 7, 3, 3, 3], asyncio.Event()
    protocol = KeepAliveProtocol.__new__(KeepAliveProtocol)
    protocol.loop = asyncio.get_running_loop()
    protocol.transport = SimpleNamespace(  # type: ignore[assignment]
        get_write_buffer_size=lambda: unread.pop(0), abort=aborted.set
    )
    protocol._watch_buffer()
    await asyncio.wait_for(aborted.wait(), 60)
    assert not unread


async def test_a_head_request_gets_its_head() -> None:
    async with connected() as (reader, writer):
        for _ in range(2):
            writer.write(b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert b"content-length: 4" in await reader.readuntil(b"\r\n\r\n")


async def test_continue_is_not_held_back() -> None:
    async with connected() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n")
        writer.write(b"content-length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert await reader.readuntil(b"body")


async def test_a_response_that_breaks_off_still_sends_its_head() -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET /break HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")


async def test_pipelined_requests_are_answered_in_order(writes: list[bytes]) -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET /stream HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n")
        answers = await reader.readuntil(b"body")
    assert answers.index(b"two") < answers.index(b"body")
    assert len(writes) == 3
