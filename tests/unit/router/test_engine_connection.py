"""The engines' HTTP client against a server that says exactly what it is told to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvloop

from deploy.local.ports import free_ports
from services.router import engine_connection
from services.router.engine_connection import (
    AttemptDeadlines,
    ConnectFailed,
    ConnectionLost,
    EngineAnswerTooLarge,
    EngineConnection,
    EnginePool,
    header_lines,
)
from shared.http.asgi import Receive, Scope, Send
from shared.http.head_limit import HeadLimitProtocol
from shared.http.server import serve
from tests.support.waiting import eventually

LONG = AttemptDeadlines(60.0)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class ScriptedEngine:
    """Answers each request on a connection with the next of `answers`; None closes it."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r")[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                if answer is None:
                    return
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.open -= 1


@asynccontextmanager
async def pool_of(engine: ScriptedEngine) -> AsyncIterator[EnginePool]:
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    pool = EnginePool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base")
    try:
        yield pool
    finally:
        await pool.close()
        await eventually(lambda: not engine.open, "the engine saw every connection end")
        server.close()


async def ask(pool: EnginePool, deadlines: AttemptDeadlines = LONG) -> bytes:
    response = await pool.post("/v1/x", b"{}", {"traceparent": "t"}, deadlines)
    return await response.read()


async def test_the_request_as_it_is_sent() -> None:
    engine = ScriptedEngine(OK)
    async with pool_of(engine) as pool:
        assert await ask(pool) == b"ok"
    (request,) = engine.requests
    line, *headers = request.split(b"\r\n\r\n")[0].split(b"\r\n")
    assert line == b"POST /base/v1/x HTTP/1.1"
    assert {header.split(b":")[0].lower() for header in headers} == {
        b"host", b"content-type", b"traceparent", b"content-length",
    }  # fmt: skip
    assert request.endswith(b"\r\n\r\n{}")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_connection_is_used_again_on_either_loop(run: Callable[..., None]) -> None:
    async def twice() -> None:
        engine = ScriptedEngine(OK, OK)
        async with pool_of(engine) as pool:
            assert [await ask(pool), await ask(pool)] == [b"ok", b"ok"]
        assert engine.connections == 1

    run(twice())


async def answers_ok(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_small_events_leave_at_once_both_ways(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nagle's algorithm and delayed ACKs would hold each event of a stream back by 40 ms."""
    seen: set[tuple[str, bool]] = set()

    def watch(protocol: Any) -> None:
        made = protocol.connection_made

        def look(self: Any, transport: asyncio.Transport) -> None:
            given = transport.get_extra_info("socket")
            nodelay = given.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            seen.add((protocol.__name__, bool(nodelay)))
            made(self, transport)

        monkeypatch.setattr(protocol, "connection_made", look)

    async def once() -> None:
        port = free_ports(["router"])["router"]
        stop = asyncio.Event()
        serving = asyncio.create_task(serve(answers_ok, host="127.0.0.1", port=port, stop=stop))
        pool = EnginePool(f"http://127.0.0.1:{port}")

        async def answered() -> bool:
            try:
                return await ask(pool) == b"ok"
            except ConnectFailed:
                return False

        await eventually(answered, "the server answers")
        await pool.close()
        stop.set()
        await serving

    for protocol in (EngineConnection, HeadLimitProtocol):
        watch(protocol)
    run(once())
    assert seen == {("EngineConnection", True), ("HeadLimitProtocol", True)}


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK,
    ],
    ids=["chunked", "continue", "early hints"],
)
async def test_framings_that_keep_the_connection(answer: bytes) -> None:
    engine = ScriptedEngine(answer, OK)
    async with pool_of(engine) as pool:
        assert [await ask(pool), await ask(pool)] == [b"ok", b"ok"]
    assert engine.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        OK + OK,
    ],
    ids=["close", "1.0", "an answer that nobody asked for"],
)
async def test_answers_after_which_the_connection_is_not_used_again(answer: bytes) -> None:
    engine = ScriptedEngine(answer, OK)
    async with pool_of(engine) as pool:
        first = await pool.post("/", b"{}", {}, LONG)
        try:
            assert await first.read() == b"ok"
        except ConnectionLost:
            assert answer == OK + OK
        assert await ask(pool) == b"ok"
    assert engine.connections == 2


async def test_a_connection_that_the_engine_ended_is_given_to_nobody_from_then_on() -> None:
    engine = ScriptedEngine(OK, OK)
    async with pool_of(engine) as pool:
        assert await ask(pool) == b"ok"
        (idle,) = pool._idle
        idle.eof_received()  # what the loop calls a step before `connection_lost`
        assert await ask(pool) == b"ok"
    assert engine.connections == 2


async def test_a_body_that_ends_with_its_connection() -> None:
    class Closing(ScriptedEngine):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"{}")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
            writer.close()

    async with pool_of(Closing()) as pool:
        assert await ask(pool) == b"all of it"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    ],
    ids=["nothing", "no HTTP", "upgrade"],
)
async def test_a_connection_that_gives_no_answer_is_lost(answer: bytes | None) -> None:
    engine = ScriptedEngine(answer, OK)
    async with pool_of(engine) as pool:
        with pytest.raises(ConnectionLost):
            await ask(pool)
        assert await ask(pool) == b"ok"


async def test_a_body_that_is_cut_is_not_taken_for_whole() -> None:
    class Cutting(ScriptedEngine):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"{}")
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9\r\n\r\nhalf")
            writer.close()

    async with pool_of(Cutting()) as pool:
        with pytest.raises(ConnectionLost):
            await ask(pool)


@pytest.mark.parametrize(
    ("answer", "deadlines"),
    [
        (b"", AttemptDeadlines(0.05)),
        (b"", AttemptDeadlines(60.0, 0.05)),
        (OK[:-1], AttemptDeadlines(0.05)),
        (OK[:-1], AttemptDeadlines(60.0, 0.05)),
    ],
    ids=["head, total", "head, part", "body, total", "body, part"],
)
async def test_a_deadline_ends_the_request_and_its_connection(
    answer: bytes, deadlines: AttemptDeadlines
) -> None:
    engine = ScriptedEngine(answer, OK)
    async with pool_of(engine) as pool:
        with pytest.raises(TimeoutError):
            await ask(pool, deadlines)
        assert await ask(pool) == b"ok"
    assert engine.connections == 2


@pytest.mark.parametrize(
    "begun",
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nx: ",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: ",
    ],
    ids=["headers", "one header", "a trailer"],
)
async def test_a_head_without_end_is_read_to_its_limit(begun: bytes) -> None:
    poured = 0

    class Endless(ScriptedEngine):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal poured
            await reader.readuntil(b"{}")
            writer.write(begun)
            line = b"x" * 1_000 if begun.endswith(b": ") else b"x: y\r\n" * 200
            with suppress(ConnectionError):
                while True:
                    writer.write(line)
                    await writer.drain()
                    poured += len(line)

    async with pool_of(Endless()) as pool:
        with pytest.raises(EngineAnswerTooLarge, match="head or trailer is over 65536 bytes"):
            await ask(pool)
    assert poured < 64 * 1024 * 1024


async def test_a_long_body_in_small_pieces_is_no_long_head() -> None:
    pieces = b"".join(b"1\r\n%c\r\n" % (97 + number % 26) for number in range(50_000))
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    engine = ScriptedEngine(head + pieces + b"0\r\n\r\n", OK)
    async with pool_of(engine) as pool:
        assert len(await ask(pool)) == 50_000
        assert await ask(pool) == b"ok"


async def test_an_idle_connection_closes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_connection, "IDLE_CONNECTION_S", 0.05)
    engine = ScriptedEngine(OK)
    async with pool_of(engine) as pool:
        assert await ask(pool) == b"ok"
        await eventually(lambda: not engine.open, "the idle connection ended")


async def test_an_unread_answer_stops_reading_and_is_no_silence_of_the_engine() -> None:
    size = 64 * engine_connection.READ_BYTES
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size
    sent = asyncio.Event()

    class Pouring(ScriptedEngine):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"{}")
            writer.write(head + b"x" * size)
            await writer.drain()
            sent.set()
            writer.close()
            await writer.wait_closed()

    async with pool_of(Pouring()) as pool:
        response = await pool.post("/", b"{}", {}, AttemptDeadlines(60.0, 0.2))
        first = await response.readany()
        with pytest.raises(TimeoutError):  # nobody reads for longer than a part may take
            await asyncio.wait_for(sent.wait(), 0.5)
        assert len(first) + len(await response.read()) == size


async def test_nobody_listens() -> None:
    pool = EnginePool(f"http://127.0.0.1:{free_ports(['nobody'])['nobody']}")
    with pytest.raises(ConnectFailed, match=r"127\.0\.0\.1:\d+: "):
        await ask(pool)
    await pool.close()


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nx: y", "a\rx"])
def test_a_header_with_a_line_break_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="traceparent"):
        header_lines({"traceparent": value})
