"""When kept connections are closed, over real ones."""

from __future__ import annotations

import asyncio
import time

import pytest

from shared.http import server
from shared.http.asgi import Receive, Scope, Send, respond
from shared.http.keep_alive import MAX_PIPELINED
from tests.unit.shared.test_head_limit import answer, serving

KEEP_ALIVE_S = 0.4


async def test_a_connection_is_closed_once_it_was_idle_and_not_while_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", KEEP_ALIVE_S)
    async with serving() as app:
        reader, writer = await app.connect()
        began = time.monotonic()
        for size in (
            2,
            3,
        ):  # the second request comes when the timer of the connection is half over
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size)
            await asyncio.sleep(KEEP_ALIVE_S * 0.75)
            writer.write(b"x" * size)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(1) == b"%d" % size
        answered = time.monotonic()
        assert answered - began > KEEP_ALIVE_S
        assert await answer(reader) == b""
        assert time.monotonic() - answered >= KEEP_ALIVE_S * 0.9
        writer.close()


async def test_a_connection_that_sends_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.05)
    async with serving() as app:
        reader, writer = await app.connect()
        assert await answer(reader) == b""
        writer.close()


@pytest.mark.parametrize("answered", [False, True])
async def test_a_connection_that_sends_line_ends_alone_is_closed(
    answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.2)
    async with serving() as app:
        reader, writer = await app.connect()
        if answered:
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n0")
        writer.write(b"\r\n")
        assert await answer(reader) == b""
        writer.close()


async def test_a_body_that_stops_after_its_refusal_keeps_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.2)

    async def refuse(_self: object, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(send, 401, b"no", b"text/plain")

    async with serving() as app:
        monkeypatch.setattr(type(app), "__call__", refuse)
        reader, writer = await app.connect()
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n")
        await reader.readuntil(b"no")
        writer.write(b"1234")
        assert await answer(reader) == b""
        writer.close()


async def test_a_connection_that_pipelines_without_bound_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def wait(_self: object, scope: Scope, receive: Receive, send: Send) -> None:
        while scope["type"] == "http" and (await receive())["type"] != "http.disconnect":
            pass

    async with serving() as app:
        monkeypatch.setattr(type(app), "__call__", wait)
        reader, writer = await app.connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" * (MAX_PIPELINED + 2))
        assert (await answer(reader)).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_pipelined_requests_up_to_the_bound_are_answered_in_order() -> None:
    async with serving() as app:
        reader, writer = await app.connect()
        sizes = range(10, 10 + MAX_PIPELINED + 1)
        for size in sizes:
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size)
            writer.write(b"x" * size)
        for size in sizes:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(2) == b"%d" % size
        writer.close()


async def test_who_answers_is_told_that_the_client_left_with_a_request_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, left = asyncio.Event(), asyncio.Event()

    async def stream(_self: object, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await receive()
        began.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with serving() as app:
        monkeypatch.setattr(type(app), "__call__", stream)
        _, writer = await app.connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" * 2)
        async with asyncio.timeout(60):
            await began.wait()
            writer.close()
            await left.wait()


async def test_a_target_is_split_into_path_and_query() -> None:
    seen: list[tuple[str, bytes, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            seen.append((scope["path"], scope["raw_path"], scope["query_string"]))
            await receive()
            await respond(send, 200, b"ok", b"text/plain")

    async with serving() as served:
        monkey = pytest.MonkeyPatch()
        monkey.setattr(type(served), "__call__", lambda _self, *given: app(*given))
        reader, writer = await served.connect()
        long = b"/" + b"p" * 300
        for target in (b"/a%20b?c=%20d", b"/", long, b"/a%20b?c=%20d"):
            writer.write(b"GET %b HTTP/1.1\r\nhost: a\r\n\r\n" % target)
            await reader.readuntil(b"ok")
        monkey.undo()
        writer.close()
    assert seen[0] == seen[3] == ("/a b", b"/a%20b", b"c=%20d")
    assert seen[1:3] == [("/", b"/", b""), (long.decode(), long, b"")]
