"""Heads that are too large or too slow, over real connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from deploy.local.ports import free_ports
from shared.http import head_limit
from shared.http.asgi import Receive, Scope, Send, respond
from shared.http.head_limit import MAX_HEAD_BYTES
from shared.http.server import serve
from tests.support.waiting import eventually

REQUEST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n"


class Server:
    """Answers with the length of each body; `heads` counts what reached the application."""

    def __init__(self) -> None:
        self.heads = 0
        self.port = free_ports(["test"])["test"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.heads += 1
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message["body"])
            more = message["more_body"]
        await respond(send, 200, str(size).encode(), b"text/plain")

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server, stop = Server(), asyncio.Event()
    task = asyncio.create_task(serve(server, host="127.0.0.1", port=server.port, stop=stop))
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await server.connect()
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                break
    yield server
    stop.set()
    await task


async def answer(reader: asyncio.StreamReader) -> bytes:
    """All until the server closes."""
    async with asyncio.timeout(60):
        return await reader.read()


@pytest.mark.parametrize("in_one_piece", [True, False])
async def test_a_head_over_the_limit_is_refused_and_read_no_further(in_one_piece: bool) -> None:
    """Case oversized-traceparent."""
    head = REQUEST % 0 + b"traceparent: " + b"0" * MAX_HEAD_BYTES
    async with serving() as server:
        reader, writer = await server.connect()
        writer.write(head + b"\r\n\r\n" if in_one_piece else head)
        assert (await answer(reader)).startswith(b"HTTP/1.1 431 ")
        assert server.heads == 0
        writer.close()


async def test_a_head_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_limit, "HEAD_TIMEOUT_S", 0.2)
    async with serving() as server:
        reader, writer = await server.connect()
        writer.write(REQUEST % 0)
        for _ in range(3):
            writer.write(b"a: b\r\n")
            await asyncio.sleep(0.05)
        assert (await answer(reader)).startswith(b"HTTP/1.1 408 ")
        assert server.heads == 0
        writer.close()


async def test_bodies_and_kept_connections_are_not_bounded_by_the_heads_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head_limit, "HEAD_TIMEOUT_S", 0.1)
    size = 3 * MAX_HEAD_BYTES
    async with serving() as server:
        reader, writer = await server.connect()
        for number in range(3):
            writer.write(REQUEST % size + b"\r\n" + b"x" * (size // 2))
            await eventually(lambda want=number + 1: server.heads == want, "the head is read")
            await asyncio.sleep(0.15)  # longer than a head may take
            writer.write(b"x" * (size - size // 2))
            async with asyncio.timeout(60):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
                assert await reader.readexactly(len(str(size))) == str(size).encode()
        writer.close()
